"""What is open on the server: base, adapters, history; imports shared and below."""
