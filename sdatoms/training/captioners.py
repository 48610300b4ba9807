"""Captions and masks made by models of transformers, by hub name or folder.

A captioning model is any that makes text of a picture: BLIP, GIT, Florence-2 and those one talks
to. A segmentation model is CLIPSeg, which is told in words what to look for, or any that names the
parts of a picture. Neither runs code of its own or opens a pickle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPSegForImageSegmentation,
    pipeline,
)
from transformers.models.auto import modeling_auto

from sdatoms.errors import AtomError, clip, first_line
from sdatoms.storage import reach_hub

__all__ = [
    "load_captioner",
    "load_segmenter",
]

Caption = Callable[[Image.Image], str]
Segment = Callable[[Image.Image], Image.Image]
SAFE: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
SEGMENTERS = (
    modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_IMAGE_SEGMENTATION_MAPPING_NAMES,
)
TASKS = {"florence2": "<DETAILED_CAPTION>"}
"""Kind of model → the words it is asked with where nothing else is said."""
BACKGROUND = {"background", "wall", "floor", "sky", "grass", "ceiling", "road", "ground"}
"""Parts that are no subject, where none is named."""


def load_captioner(
    name: str, *, prompt: str | None = None, max_tokens: int = 60, device: str = "cpu"
) -> Caption:
    """A function from a picture to what it shows, in one line.

    Args:
        name: hub id or folder.
        prompt: what a model that is talked to is asked, or how the caption begins.
        max_tokens: the longest caption.

    Raises:
        AtomError: the model is not at hand, or makes no text of pictures.
    """
    with explain(name, "captioning"):
        kind = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
        processor: Any = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        model: Any = AutoModelForImageTextToText.from_pretrained(name, **SAFE)
        model.to(device).eval()
    asked = prompt or TASKS.get(kind)

    @torch.no_grad()
    def caption(picture: Image.Image) -> str:
        given: dict[str, Any] = {"images": picture, "return_tensors": "pt"}
        if getattr(processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": asked or "Describe the image."}]
            talk = [{"role": "user", "content": content}]
            given["text"] = processor.apply_chat_template(talk, add_generation_prompt=True)
        elif asked:
            given["text"] = asked
        inputs = processor(**given).to(device)
        tokens = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        if getattr(processor, "chat_template", None):
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        text = processor.batch_decode(tokens, skip_special_tokens=True)[0]
        return " ".join(text.split())

    return caption


def load_segmenter(name: str, *, subject: str | None = None, device: str = "cpu") -> Segment:
    """A function from a picture to its mask in grey, as large, white where the subject is.

    Args:
        name: hub id or folder.
        subject: what to look for, in words; CLIPSeg needs it, others take parts whose name has it,
            or without it all but background.

    Raises:
        AtomError: the model is not at hand, or finds no parts of pictures.
    """
    with explain(name, "segmentation"):
        kind = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
    if kind == "clipseg":
        return load_clipseg(name, subject, device)
    if not any(kind in names for names in SEGMENTERS):
        raise AtomError(
            f"the segmentation model {name!r} cannot be loaded: it is a {clip(kind, 40)}, which "
            "finds no parts of pictures; it takes CLIPSeg, SegFormer, Mask2Former and the like"
        )
    with explain(name, "segmentation"):
        parts: Any = pipeline(
            "image-segmentation",
            model=name,
            device=device,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )

    def segment(picture: Image.Image) -> Image.Image:
        mask = Image.new("L", picture.size, 0)
        for part in parts(picture):
            label = str(part["label"]).lower()
            if subject.lower() in label if subject else label not in BACKGROUND:
                mask.paste(255, mask=part["mask"].convert("L").resize(picture.size))
        return mask

    return segment


def load_clipseg(name: str, subject: str | None, device: str) -> Segment:
    if not subject:
        raise AtomError(f"the model {name!r} is told what to look for; name it with --subject")
    with explain(name, "segmentation"):
        processor: Any = AutoProcessor.from_pretrained(name, trust_remote_code=False)
        model: Any = CLIPSegForImageSegmentation.from_pretrained(name, **SAFE)
        model.to(device).eval()

    @torch.no_grad()
    def segment(picture: Image.Image) -> Image.Image:
        inputs = processor(text=[subject], images=[picture], return_tensors="pt", padding=True)
        shares = model(**inputs.to(device)).logits.reshape(1, 1, *model_side(model)).sigmoid()
        size = (picture.height, picture.width)
        wide = torch.nn.functional.interpolate(shares, size, mode="bilinear")[0, 0]
        return Image.fromarray(((wide > 0.5).cpu().numpy() * 255).astype("uint8"))

    return segment


def model_side(model: Any) -> tuple[int, int]:
    side = model.config.vision_config.image_size
    return side, side


@contextlib.contextmanager
def explain(name: str, what: str) -> Iterator[None]:
    """Say in one sentence why a model cannot be loaded."""
    try:
        with reach_hub(name):
            yield
    except AtomError:
        raise
    except Exception as error:  # the hub, files and configurations fail in many ways
        local = Path(name).is_dir()
        advice = (
            f"it takes the folder of a {what} model of transformers"
            if local
            else "offline, name the folder of one on this machine"
        )
        raise AtomError(
            f"the {what} model {name!r} cannot be loaded: {first_line(error, 120)}; {advice}"
        ) from None
