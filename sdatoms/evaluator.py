"""Two ways to look at a picture, for scores: what it shows, and how and which one exactly.

- *concept*: CLIP's image and text embeddings, one space for pictures and words; made to overlook
  who drew a thing and in which style.
- *style*: made to overlook what is shown and to see the drawing instead. The bundled evaluator has
  a small head for it on the same image tower; beside a real CLIP model a DINOv2 model does this.

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

from sdatoms.checkpoint import clip
from sdatoms.errors import AtomError
from sdatoms.pipeline import find_assets

__all__ = ["Evaluator", "StyleHead", "load_evaluator", "save_evaluator"]

HEAD_FILE = "style_head.safetensors"
BATCH = 64


class StyleHead(nn.Module):
    """Hidden states of a vision transformer → style embedding `(B, size)`, rows of length 1.

    Reads mean and deviation over the patches after block `layer`, and the mean after the last one.
    The first half of the embedding tells pictures apart, the second half drawing styles; each half
    has length √½, so that a cosine is the mean of the two halves' cosines.
    """

    def __init__(self, width: int, size: int = 128, layer: int = 2) -> None:
        super().__init__()
        self.layer = layer
        self.norm = nn.LayerNorm(3 * width)
        self.hidden = nn.Linear(3 * width, 2 * width)
        self.out = nn.Linear(2 * width, size)

    def forward(self, hidden_states: Sequence[Tensor]) -> Tensor:
        """`hidden_states`: `(B, 1 + patches, width)` before the first block and after each one."""
        middle, last = hidden_states[self.layer][:, 1:], hidden_states[-1][:, 1:]
        pooled = torch.cat([middle.mean(1), middle.std(1), last.mean(1)], 1)
        embedding = self.out(F.gelu(self.hidden(self.norm(pooled))))
        halves = [F.normalize(half.float(), dim=1) for half in embedding.chunk(2, 1)]
        return torch.cat(halves, 1) / 2**0.5

    def extra_repr(self) -> str:
        return f"layer={self.layer}"


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

    def embed_concepts(self, pictures: Sequence[Image.Image]) -> Tensor:
        """What pictures show, `(n, d)` float32 on the CPU."""
        return embed(pictures, self.processor, self.clip, self.read_concepts)

    def embed_styles(self, pictures: Sequence[Image.Image]) -> Tensor:
        """How pictures are drawn and which ones they are, `(n, e)` float32 on the CPU."""
        return embed(pictures, self.style_processor, self.clip, self.read_styles)

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

    def read_styles(self, pixels: Tensor) -> Tensor:
        if isinstance(self.style, StyleHead):
            states = self.clip.vision_model(pixel_values=pixels, output_hidden_states=True)
            return self.style(states.hidden_states)
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

    A CLIP model that has no style head of ours takes a DINOv2 model, or another vision model with a
    pooled output, as `style_name_or_path`; named beside the bundled one it replaces the head.

    Raises:
        AtomError: a model cannot be opened, or there is nothing to see style with.
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

    where = name_or_path or str(find_assets() / "emoji-clip")
    if name_or_path is None and not Path(where).is_dir():
        raise AtomError(f"the bundled evaluator is missing from {where!r}; name a CLIP model")
    head = Path(where) / HEAD_FILE
    if style_name_or_path is None and not head.is_file():
        raise AtomError(
            f"the evaluator {where!r} has no {HEAD_FILE}, so nothing sees style; name a DINOv2 "
            "model beside it"
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
        options = {"dtype": torch.float32} if "Processor" not in cls.__name__ else {}
        options = {} if "Tokenizer" in cls.__name__ else options
        try:
            found.append(cls.from_pretrained(where, **options))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise AtomError(
                f"the evaluator {where!r} cannot be opened: {clip(lines[0], 200)}"
            ) from None
    return found


def read_head(path: Path) -> StyleHead:
    """A style head from its safetensors file; widths are the tensors', the layer is in the header.

    Raises:
        AtomError: the file is no safetensors file of a style head.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}
            layer = int((file.metadata() or {})["layer"])
        size, width = tensors["out.weight"].shape
        head = StyleHead(width // 2, size, layer)
        head.load_state_dict(tensors)
    except Exception as error:  # safetensors has an error class of its own for broken files
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise AtomError(f"the style head {str(path)!r} cannot be read: {clip(lines[0])}") from None
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
    tensors = {name: value.half().contiguous() for name, value in head.state_dict().items()}
    save_file(tensors, folder / HEAD_FILE, metadata={"layer": str(head.layer)})
