"""Measures of pictures and of atom files; imports diffusion and below."""
