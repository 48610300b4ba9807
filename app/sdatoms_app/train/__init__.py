"""The Train tab; imports generate, atoms and below."""
