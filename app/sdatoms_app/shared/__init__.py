"""Markup, plots, messages and events that every tab uses; imports the library alone."""
