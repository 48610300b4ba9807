"""How speed, memory and quality are measured, a module a figure; imports classifiers and below."""
