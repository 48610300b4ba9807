"""Trainings that wait, run and end; imports studio and below."""
