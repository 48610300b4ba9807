"""Atom files: read, written, summed, looked into; imports layers and below."""
