"""The Atoms tab; imports studio and below."""
