"""Markup, plots and messages that every tab uses; imports the ground and sdatoms."""
