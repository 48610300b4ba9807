"""Small bases of every family, as a directory and as a single file, in every dtype."""

from collections import namedtuple

import numpy as np
import torch
from PIL import Image

from sdatoms import AtomConfig, inject, load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.files.writer import pack_atoms
from tiny.atoms import perturb
from tiny.pipelines import build_inpainting, build_pipeline
from tiny.single_files import build_parts, save_single

Family = namedtuple("Family", "key kind prediction channels")
FAMILIES = {
    "1.x": Family("sd1", "sd", "epsilon", 4),
    "2.x": Family("sd2", "sd2", "epsilon", 4),
    "2.x v": Family("sd2", "sd2", "v_prediction", 4),
    "XL": Family("sdxl", "sdxl", "epsilon", 4),
    "1.x inpainting": Family("sd1", "sd", "epsilon", 9),
    "2.x inpainting": Family("sd2", "sd2", "epsilon", 9),
    "XL inpainting": Family("sdxl", "sdxl", "epsilon", 9),
}
"""Name → the family's key, the kind of `tiny.pipelines`, what its UNet predicts, and the channels
that it is shown."""
PLAIN = [name for name, family in FAMILIES.items() if family.channels == 4]
FORMS = ("directory", "single file")
DTYPES = ("float32", "float16", "bfloat16")
SIDE = 64
"""px of the pictures: latents of 8×8, which the lowest level sees as one pixel."""


class Bases:
    """Writes each base once below a folder: directories tiny, single files with the structure and
    the vocabulary of their family."""

    def __init__(self, folder):
        self.folder = folder

    def find(self, name, form, dtype):
        """The path of a base."""
        family, kind = FAMILIES[name], getattr(torch, dtype)
        path = self.folder / (f"{name} {dtype}" + (".safetensors" if form == "single file" else ""))
        if path.exists():
            return str(path)
        if form == "single file":
            parts = build_parts(family.key, channels=family.channels, dtype=kind)
            said = {"modelspec.prediction_type": family.prediction[0]}
            save_single(path, family.key, parts, dtype=kind, metadata=said)
        else:
            build = build_pipeline if family.channels == 4 else build_inpainting
            settings = {"prediction_type": family.prediction, "size": SIDE, "dtype": kind}
            build(family.kind, **settings).save_pretrained(path)
        return str(path)

    def tune(self, name, form):
        """An atom file of that base, tuned in float32."""
        path = self.folder / f"{name} {form}.atoms.safetensors"
        if not path.exists():
            pipe = open_narrow(self.find(name, form, "float32"))
            pack_atoms({"unet": perturb(inject(pipe.unet, AtomConfig()))}).save(path)
        return path


def open_narrow(path, dtype="float32", offload="none"):
    return load_base(path, device="cpu", dtype=dtype, offload=offload, inpainting=True)


def draw(pipe, steps=2):
    """A picture in pixels; bases that fill in masks fill in the right half of a grey one."""
    over = {}
    if pipe.unet.config.in_channels == 9:
        mask = Image.new("L", (SIDE, SIDE))
        mask.paste(255, (SIDE // 2, 0, SIDE, SIDE))
        over = {"init_picture": Image.new("RGB", (SIDE, SIDE), "grey"), "mask": mask}
        over |= {"mask_blur": 0.0, "denoising_strength": 1.0}
    given = {"height": SIDE, "width": SIDE, "scheduler": "DDIM", "num_inference_steps": steps}
    return np.asarray(paint(pipe, ["a cat"], [1], **given, **over)[0])
