"""The Generate and Compare tabs; imports studio and below."""
