"""Atoms on classifiers: tasks, methods, experiments; imports training, evaluation and below."""
