"""DreamBooth training, from a folder of pictures to a run folder; imports diffusion and below."""
