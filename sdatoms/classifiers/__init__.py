"""Atoms on image classifiers: tasks, methods, experiments; imports evaluation and below."""
