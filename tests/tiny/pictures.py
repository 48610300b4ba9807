"""Pictures of noise: as large as asked for, no two alike, the same for a seed."""

import numpy as np
from PIL import Image


def draw_noise(sizes=((16, 16),), seed=0):
    """One picture for each (width, height) in px, every pixel drawn by itself."""
    numbers = np.random.default_rng(seed)
    return [
        Image.fromarray(numbers.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in sizes
    ]


def save_pictures(folder, sizes=((20, 20),) * 4, seed=0):
    """Make the folder and write `draw_noise` as 0.png, 1.png, …; returns the folder."""
    folder.mkdir()
    for k, picture in enumerate(draw_noise(sizes, seed)):
        picture.save(folder / f"{k}.png")
    return folder


def draw(path, size=(96, 80), seed=0, **options):
    """Write a picture of 6×6 coloured fields, which survives a change of size; returns the path."""
    (fields,) = draw_noise(((6, 6),), seed)
    fields.resize(size, Image.Resampling.NEAREST).save(path, **options)
    return path
