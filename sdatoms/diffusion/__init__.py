"""Stable Diffusion: pipelines, prompts, pictures and their recipes; imports adapters and below."""
