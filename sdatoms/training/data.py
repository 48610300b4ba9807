"""What one run learns from: its pictures and prompts, encoded before the training starts.

Encoders are freed when nothing needs them afterwards, or kept off the accelerator between samples.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdatoms.training.batches import Batch
from sdatoms.training.buckets import list_buckets
from sdatoms.training.class_pictures import find_class_folder, make_class_pictures
from sdatoms.training.conditions import Condition, PromptTable, TextStack
from sdatoms.training.config import TrainConfig
from sdatoms.training.encodings import Encoded, encode_pictures
from sdatoms.training.folder import PictureFolder, check_folder

__all__ = [
    "Material",
]


class Material:
    """Encoded instances, class pictures and prompts, and the encoders they came from.

    Args:
        pipe: the base, without atoms.
        paints: whether this process paints class pictures; the others wait for it.
        wait: returns when all processes have come here.
        log, tell: take a line for the log, and the name of what goes on.
    """

    def __init__(
        self,
        pipe: Any,
        config: TrainConfig,
        folder: PictureFolder,
        *,
        paints: bool,
        wait: Callable[[], None],
        log: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> None:
        self.pipe, self.config, self.device = pipe, config, pipe.device
        self.log, self.tell = log, tell
        self.sources = folder.sources
        unet, factor = pipe.unet, pipe.vae_scale_factor
        self.resolution: int = config.resolution or unet.config.sample_size * factor
        grid = factor * 2 ** (len(unet.config.block_out_channels) - 1)
        self.buckets = list_buckets(config.aspect_ratio_buckets, self.resolution, grid, factor)
        self.text = TextStack(pipe)
        for module in (pipe.vae, *self.text.encoders.values()):
            module.requires_grad_(False)
        cache = Path(config.encoding_cache_dir) if config.encoding_cache_dir else None
        self.classes: list[Encoded] | None = None
        if config.with_prior_preservation and config.prior_preservation_mode == "images":
            if paints:
                self.paint_classes(find_class_folder(config))
            wait()
            found = check_folder(find_class_folder(config), config.class_prompt or "")
            self.classes = encode_pictures(pipe, found.sources, self.buckets, cache=cache)
        self.instances = encode_pictures(
            pipe,
            folder.sources,
            self.buckets,
            flip=config.random_flip,
            jitter=config.color_jitter,
            copies=config.color_copies,
            seed=config.seed,
            cache=cache,
            tell=lambda: tell("encoding"),
        )
        self.prompts = PromptTable(self.text, cache)
        if config.class_prompt:
            self.prompts.add([config.class_prompt])
        if not config.trains_text:
            self.prompts.add([row.prompt for row in (*self.instances, *(self.classes or ()))])
            self.prompts.add([""] if config.proportion_empty_prompts else [])
        self.park()

    def paint_classes(self, folder: Path) -> None:
        config = self.config
        assert config.class_prompt is not None
        make_class_pictures(
            self.pipe,
            folder,
            config.class_prompt,
            config.num_class_images,
            seed=config.seed,
            batch_size=config.sample_batch_size,
            log=self.log,
            tell=lambda: self.tell("class images"),
        )

    @property
    def paints(self) -> bool:
        """Whether samples are painted while training."""
        return bool(self.config.validation_steps and self.config.num_validation_images)

    def park(self) -> None:
        """Free the encoders, or keep them off the accelerator while nothing is painted."""
        parked = ["vae"] + ([] if self.config.trains_text else list(self.text.encoders))
        for name in parked:
            if not self.paints:
                setattr(self.pipe, name, None)
            elif self.device.type != "cpu":
                getattr(self.pipe, name).to("cpu")
        if not self.paints and not self.config.trains_text:
            self.text.encoders.clear()

    def fetch(self) -> None:
        """Bring parked encoders back for painting."""
        if self.device.type != "cpu":
            self.pipe.vae.to(self.device)
            for encoder in self.text.encoders.values():
                encoder.to(self.device)

    def condition(self, batch: Batch, base: bool = False) -> Condition:
        """The batch's prompts as the UNet reads them; `base` reads them without atoms."""
        if self.config.trains_text and not base:
            return self.text.encode(batch.prompts, grad=True)
        found = self.prompts.encode(batch.prompts)
        pooled = None if found.pooled is None else found.pooled.to(self.device)
        return Condition(found.context.to(self.device), pooled)
