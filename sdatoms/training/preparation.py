"""What a run learns from, made ready: sizes, class pictures, encoded pictures and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sdatoms.diffusion.family import find_side
from sdatoms.diffusion.prompts import MAX_WINDOWS, count_tokens
from sdatoms.errors import clip
from sdatoms.layers.inject import Injection, without_atoms
from sdatoms.training.buckets import Size, list_buckets
from sdatoms.training.class_pictures import make_class_pictures
from sdatoms.training.concepts import list_classes, list_concepts
from sdatoms.training.config import TrainConfig
from sdatoms.training.data import TrainingData
from sdatoms.training.encodings import Encoded, encode_pictures
from sdatoms.training.faces import load_detector
from sdatoms.training.folder import PictureFolder, Source, check_folder
from sdatoms.training.stopping import stop_together

__all__ = ["check_prompts", "make_buckets", "prepare_data"]


def make_buckets(pipe: Any, config: TrainConfig) -> list[Size]:
    """Sizes of the training pictures.

    Raises:
        AtomError: a size does not fit the base.
    """
    factor = pipe.vae_scale_factor
    grid = factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    side = config.resolution or find_side(pipe)
    return list_buckets(config.aspect_ratio_buckets, side, grid, factor)


def check_prompts(pipe: Any, prompts: Iterable[str]) -> list[str]:
    """Notes about prompts that are longer than what is read of them.

    Raises:
        AtomError: a weight in one of them is out of range.
    """
    notes = []
    for prompt in dict.fromkeys(prompts):
        count = count_tokens(pipe, prompt)
        if count.windows > MAX_WINDOWS:
            notes.append(
                f"a prompt is cut: of {count.tokens} tokens the first {MAX_WINDOWS * count.window} "
                f"are read of {clip(prompt, 60)!r}"
            )
    return notes


def prepare_data(
    pipe: Any,
    injections: dict[str, Injection],
    folder: PictureFolder,
    buckets: list[Size],
    config: TrainConfig,
    *,
    paints: bool = True,
    wait: Callable[[], None] = lambda: None,
    log: Callable[[str], None] = lambda text: None,
    report: Callable[[str], None] = lambda phase: None,
) -> TrainingData:
    """Paint missing class pictures with the base, and encode pictures and prompts.

    Args:
        injections: switched off meanwhile.
        paints: whether this process paints class pictures; the others wait for it.
        wait: returns when all processes have come here.
        report: takes the name of what goes on, before each picture.
    """
    cache = Path(config.encoding_cache_dir) if config.encoding_cache_dir else None
    concepts, faces = list_concepts(config), config.crop_style == "face"
    prompts = [text for text in (config.class_prompt, *list_classes(config, concepts)) if text]
    prompts += [""] if config.proportion_empty_prompts and not config.trains_text else []
    classes: list[Encoded] | None = None
    instances: list[Encoded] = []
    held: list[Encoded] = []
    class_sources: Sequence[Source] | None = None
    with ExitStack() as stack:
        for injection in injections.values():
            stack.enter_context(without_atoms(injection))
        if config.with_prior_preservation and config.prior_preservation_mode == "images":
            folders = list_classes(config, concepts)
            with stop_together(wait):
                for class_prompt, class_folder in folders.items() if paints else ():
                    make_class_pictures(
                        pipe,
                        class_folder,
                        class_prompt,
                        config.num_class_images,
                        seed=config.seed,
                        batch_size=config.sample_batch_size,
                        log=log,
                        report=lambda: report("class images"),
                    )
            class_sources = [
                source
                for class_prompt, class_folder in folders.items()
                for source in check_folder(class_folder, class_prompt).sources
            ]
        find_face = load_detector(config.face_detector) if faces else None
        with stop_together(wait):
            if class_sources is not None:
                classes = encode_pictures(
                    pipe, class_sources, buckets, cache=cache, report=lambda: report("encoding")
                )
            instances = encode_pictures(
                pipe,
                folder.sources,
                buckets,
                flip=config.random_flip,
                jitter=config.color_jitter,
                copies=config.color_copies,
                seed=config.seed,
                cache=cache,
                crops=config.crop_copies if config.crop_style == "random" else 0,
                find_face=find_face,
                report=lambda: report("encoding"),
                log=log,
            )
            held = encode_pictures(
                pipe,
                folder.held,
                buckets,
                cache=cache,
                find_face=find_face,
                report=lambda: report("encoding"),
                log=log,
            )
        return TrainingData(
            pipe,
            instances,
            classes,
            held=held,
            prompts=prompts,
            trains_text=config.trains_text,
            paints=bool(config.validation_steps and config.num_validation_images),
            cache=cache,
            parks=config.offload != "none",
        )
