"""The Atoms tab; imports queue and below."""
