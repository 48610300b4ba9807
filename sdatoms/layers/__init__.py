"""Atoms inside a torch model: injected, tuned, ejected; imports atoms and below."""
