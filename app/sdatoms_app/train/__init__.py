"""The Train tab; imports queue and below."""
