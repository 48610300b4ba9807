"""Two ways to look at a picture, for scores: what it shows, and how and which one exactly.

- *concept*: CLIP's image and text embeddings, one space for pictures and words; made to overlook
  who drew a thing and in which style.
- *style*: made to overlook what is shown and to see the drawing instead. The bundled evaluator has
  a small head for it; beside a real CLIP model a DINOv2 model does this.

Every embedding is a row of length 1, so that a product of two rows is their cosine, in [-1, 1].

References: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
2021, https://arxiv.org/abs/2103.00020. Oquab et al., "DINOv2", 2023,
https://arxiv.org/abs/2304.07193.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sdatoms.errors import AtomError, first_line
from sdatoms.evaluation.named_models import advise_on_absence, choose_models
from sdatoms.models.header import UNOPENED
from sdatoms.storage import check_place, find_assets, reach_hub

__all__ = [
    "DrawingNet",
    "Evaluator",
    "InstanceNet",
    "StyleHead",
    "load_evaluator",
    "save_evaluator",
]

HEAD_FILE = "style_head.safetensors"
BATCH = 64


class StyleHead(nn.Module):
    """Pictures → style embedding `(B, size)`, rows of length 1, by two small convolutional nets.

    Who drew a thing shows in outlines, gradients and the palette, pixel by pixel, before a vision
    transformer has cut its patches. The first half of the embedding tells pictures apart; the
    second tells drawing styles apart. Each has length √½, so that a cosine is the mean of the two
    halves' cosines.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 96, 128), size: int = 128) -> None:
        """`widths` are the levels' channels; every level but the first halves the resolution."""
        super().__init__()
        self.instance = InstanceNet(widths, size // 2)
        self.drawing = DrawingNet(widths, size // 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`pixel_values`: `(B, 3, height, width)` in [-1, 1], at least 32 px."""
        halves = [net(pixel_values) for net in (self.instance, self.drawing)]
        return torch.cat(halves, 1) / 2**0.5


class InstanceNet(nn.Module):
    """Pictures → `(B, size)`, rows of length 1, from a 4×4 map of the last features: where what
    is."""

    def __init__(self, widths: Sequence[int], size: int) -> None:
        super().__init__()
        steps = list(zip((3, *widths[:-1]), widths, strict=True))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2 if level else 1, padding=1)
            for level, (i, o) in enumerate(steps)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(o // 4, o) for o in widths)
        self.embed = nn.Linear(16 * widths[-1], size)

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.gelu(norm(convolution(x)))
        x = self.embed(F.adaptive_avg_pool2d(x, 4).flatten(1))
        return F.normalize(x.float(), dim=1)


class DrawingNet(nn.Module):
    """Pictures → `(B, size)`, rows of length 1, from mean and deviation of every level's features.

    Batch normalization, because normalizing each picture by itself would take away the very
    statistics that the deviations are to show.
    """

    def __init__(self, widths: Sequence[int], size: int) -> None:
        super().__init__()
        steps = list(zip((3, *widths[:-1]), widths, strict=True))
        self.levels = nn.ModuleList(
            DrawingLevel(i, o, first=level == 0) for level, (i, o) in enumerate(steps)
        )
        self.embed = nn.Linear(2 * sum(widths), size)

    def forward(self, x: Tensor) -> Tensor:
        pooled = []
        for level in self.levels:
            x = level(x)
            pooled += [x.mean((2, 3)), (x.var((2, 3)) + 1e-4).sqrt()]
        return F.normalize(self.embed(torch.cat(pooled, 1)).float(), dim=1)


class DrawingLevel(nn.Module):
    """A plain convolution at full resolution; below it, a residual block that halves the side."""

    def __init__(self, channels: int, width: int, first: bool) -> None:
        super().__init__()
        self.entry = nn.Conv2d(channels, width, 3, stride=1 if first else 2, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.inner = self.inner_norm = self.skip = None
        if not first:
            self.inner = nn.Conv2d(width, width, 3, padding=1)
            self.inner_norm = nn.BatchNorm2d(width)
            self.skip = nn.Conv2d(channels, width, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.entry(x)))
        if self.inner is None or self.inner_norm is None or self.skip is None:
            return y
        return F.relu(self.inner_norm(self.inner(y)) + self.skip(x))


class Evaluator:
    """A CLIP model, and what sees style: its extra head or a model of its own. Frozen, float32."""

    def __init__(
        self,
        clip_model: Any,
        tokenizer: Any,
        processor: Any,
        style: Any,
        style_processor: Any = None,
        name: str = "",
    ) -> None:
        self.clip = clip_model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.processor = processor
        self.style = style.eval().requires_grad_(False)
        self.style_processor = style_processor or processor
        self.name = name
        """Where it came from, for tables."""

    @property
    def is_introduced(self) -> bool:
        """Whether it was trained to be shown a subject first (`introduction`): the bundled one."""
        return isinstance(self.style, StyleHead)

    def embed_concepts(self, pictures: Sequence[Image.Image]) -> Tensor:
        """What pictures show, `(n, d)` float32 on the CPU."""
        return embed(pictures, self.processor, self.clip, self.read_concepts)

    def embed_styles(self, pictures: Sequence[Image.Image]) -> Tensor:
        """How pictures are drawn and which ones they are, `(n, e)` float32 on the CPU."""
        return embed(pictures, self.style_processor, self.clip, self.read_styles)

    def embed_instances(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Which pictures they are, `(n, k)` float32 on the CPU: the style head's first half; what
        sees style where there is no such head."""
        return embed(pictures, self.style_processor, self.clip, self.read_instances)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """What texts say, `(n, d)` float32 on the CPU; long ones are cut where CLIP's window is."""
        rows = []
        for start in range(0, len(texts), BATCH):
            tokens = self.tokenizer(
                list(texts[start : start + BATCH]),
                padding="max_length",
                max_length=self.clip.config.text_config.max_position_embeddings,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            found = self.clip.get_text_features(input_ids=tokens.to(self.clip.device))
            rows.append(F.normalize(found.pooler_output.float(), dim=1).cpu())
        return torch.cat(rows) if rows else torch.empty(0, self.clip.config.projection_dim)

    def read_concepts(self, pixels: Tensor) -> Tensor:
        return self.clip.get_image_features(pixel_values=pixels).pooler_output

    def read_instances(self, pixels: Tensor) -> Tensor:
        if isinstance(self.style, StyleHead):
            return self.style.instance(pixels)
        return self.read_styles(pixels)

    def read_styles(self, pixels: Tensor) -> Tensor:
        if isinstance(self.style, StyleHead):
            return self.style(pixels)
        if hasattr(self.style, "get_image_features"):  # a CLIP model
            return self.style.get_image_features(pixel_values=pixels).pooler_output
        return self.style(pixel_values=pixels).pooler_output


@torch.no_grad()
def embed(
    pictures: Sequence[Image.Image],
    processor: Any,
    model: Any,
    read: Callable[[Tensor], Tensor],
) -> Tensor:
    rows = []
    for start in range(0, len(pictures), BATCH):
        part = [picture.convert("RGB") for picture in pictures[start : start + BATCH]]
        pixels = processor(images=part, return_tensors="pt")["pixel_values"]
        rows.append(F.normalize(read(pixels.to(model.device, model.dtype)).float(), dim=1).cpu())
    if not rows:
        raise AtomError("there is no picture to embed; an evaluator takes at least one")
    return torch.cat(rows)


def load_evaluator(
    name_or_path: str | None = None,
    style_name_or_path: str | None = None,
    *,
    device: str | torch.device = "cpu",
) -> Evaluator:
    """Open the bundled evaluator (None), or a CLIP model by folder or hub name.

    A CLIP model that has no style head of ours takes a DINOv2 model, another vision model with a
    pooled output, or a CLIP model as `style_name_or_path`; named beside the bundled one it replaces
    the head. `clip` and `dinov2` are short names for both, see `sdatoms.evaluation.named_models`.

    Raises:
        AtomError: a model cannot be opened, or there is nothing to see style with.
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

    name_or_path, style_name_or_path = choose_models(name_or_path, style_name_or_path)
    where = name_or_path or str(find_assets() / "emoji-clip")
    check_place(name_or_path, "evaluator")
    check_place(style_name_or_path, "style evaluator")
    if name_or_path is None and not Path(where).is_dir():
        raise AtomError(f"the bundled evaluator is missing from {where!r}; name a CLIP model")
    head = Path(where) / HEAD_FILE
    if style_name_or_path is None and not head.is_file():
        raise AtomError(
            f"the evaluator {where!r} has no {HEAD_FILE}, so nothing sees style; name a DINOv2 "
            "model beside it, --style_evaluator dinov2 or a folder or hub id"
        )
    tokenizer, processor, model = open_parts(where, AutoTokenizer, AutoImageProcessor, CLIPModel)
    if style_name_or_path is None:
        style, style_processor = read_head(head), processor
    else:
        style_processor, style = open_parts(style_name_or_path, AutoImageProcessor, AutoModel)
    name = where if style_name_or_path is None else f"{where} and {style_name_or_path}"
    return Evaluator(
        model.to(device), tokenizer, processor, style.to(device), style_processor, name
    )


def open_parts(where: str, *classes: Any) -> list[Any]:
    found = []
    for cls in classes:
        is_model = not cls.__name__.endswith(("Processor", "Tokenizer"))
        options = {"dtype": torch.float32, "use_safetensors": True} if is_model else {}
        try:
            with reach_hub(where):
                found.append(cls.from_pretrained(where, **options))
        except UNOPENED as error:
            raise AtomError(
                f"the evaluator {where!r} cannot be opened: {first_line(error)}"
                f"{advise_on_absence(where)}"
            ) from None
    return found


def read_head(path: Path) -> StyleHead:
    """A style head from its safetensors file; its widths are the tensors'.

    Raises:
        AtomError: the file is no safetensors file of a style head.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        levels = sum(name.endswith("entry.weight") for name in tensors)
        widths = [len(tensors[f"drawing.levels.{level}.entry.weight"]) for level in range(levels)]
        head = StyleHead(widths, 2 * len(tensors["drawing.embed.weight"]))
        head.load_state_dict(tensors)
    except Exception as error:  # safetensors has an error class of its own for broken files
        raise AtomError(
            f"the style head {str(path)!r} cannot be read: {first_line(error)}"
        ) from None
    return head


def save_evaluator(
    folder: Path, clip_model: Any, head: StyleHead, tokenizer: Any, size: int
) -> None:
    """Write an evaluator that `load_evaluator` and `CLIPModel.from_pretrained` open.

    Weights become float16; pictures will be scaled and cut to `size` px, values to [-1, 1].
    """
    from transformers import CLIPImageProcessor

    folder.mkdir(parents=True, exist_ok=True)
    clip_model.half().save_pretrained(folder, safe_serialization=True)
    clip_model.float()
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)
    tensors = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in head.state_dict().items()
    }
    save_file(tensors, folder / HEAD_FILE)
