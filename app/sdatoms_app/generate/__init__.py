"""The Generate and Compare tabs; imports queue and below."""
