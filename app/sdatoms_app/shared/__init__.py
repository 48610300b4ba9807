"""Markup, plots and messages that every tab uses; imports sdatoms alone."""
