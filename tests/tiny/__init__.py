"""Tiny models, pictures and runs for the tests: built from configs, seconds on a CPU."""
