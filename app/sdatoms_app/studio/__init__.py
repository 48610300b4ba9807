"""What is open on the server: base, atom files, history, painting; imports shared."""
