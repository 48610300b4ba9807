"""Atom files on a live model: loaded, mixed, taken off, exported; imports files and below."""
