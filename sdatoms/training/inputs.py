"""What a run is given on disk, refused before any model is loaded: instance and class pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sdatoms.diffusion.family import read_resolution, refuse_inpainting
from sdatoms.errors import AtomError, clip
from sdatoms.storage import locate
from sdatoms.training.caption_rules import has_wildcard
from sdatoms.training.class_pictures import check_classes
from sdatoms.training.concepts import Concept, list_classes, list_concepts, read_data_config
from sdatoms.training.config import TrainConfig
from sdatoms.training.faces import load_detector
from sdatoms.training.folder import PictureFolder, Source, check_folder
from sdatoms.training.folder_tree import share_repeats
from sdatoms.training.held_back import choose_held, count_held, refuse_shared, take_as_held
from sdatoms.training.samples import read_sample_sampler
from sdatoms.training.stored_data import open_pictures

__all__ = [
    "check_inputs",
]


def check_places(config: TrainConfig, concepts: Sequence[Concept]) -> None:
    """Refuse folders that lie in each other where one's pictures would become the other's.

    Raises:
        AtomError: names both, and what would happen.
    """
    run = locate(config.output_dir)
    for concept in concepts:
        given = concept.instance_data_dir
        instances = locate(given) if given else None
        if instances and run.is_relative_to(instances):
            raise AtomError(
                f"--output_dir {config.output_dir!r} lies in --instance_data_dir "
                f"{given!r}: samples would become pictures to train on; name another folder"
            )
        if concept.class_data_dir is None or not config.with_prior_preservation:
            continue
        classes = locate(concept.class_data_dir)
        for flag, other, name in (
            ("instance_data_dir", instances, given),
            ("output_dir", run, config.output_dir),
        ):
            if other is None:
                continue
            inside = flag == "output_dir" and classes != other and not other.is_relative_to(classes)
            if not inside and (classes.is_relative_to(other) or other.is_relative_to(classes)):
                raise AtomError(
                    f"--class_data_dir {concept.class_data_dir!r} and --{flag} {name!r} lie in "
                    "each other: pictures of one would become the other's; name another folder"
                )


def check_inputs(config: TrainConfig) -> PictureFolder:
    """The pictures of all concepts; refuses, before any model is loaded, what cannot be trained on.

    Raises:
        AtomError: a folder or prompt is missing, or pictures cannot be used.
    """
    concepts = list_concepts(config)
    check_places(config, concepts)
    refuse_inpainting(config.pretrained_model_name_or_path, "training")
    read_sample_sampler(config)
    if config.crop_style == "face":
        load_detector(config.face_detector)
    side = config.resolution or read_resolution(config.pretrained_model_name_or_path)
    found = [check_concept_pictures(config, concept, side) for concept in concepts]
    sources = [source for folder in found for source in folder.sources]
    repeats = share_repeats([source.repeats for source in sources])
    sources = [replace(s, repeats=n) for s, n in zip(sources, repeats, strict=True)]
    count = count_held(config, len(sources))
    sources, held = choose_held(sources, count, config.seed) if count else (sources, [])
    if config.validation_data_dir:
        held = read_held(config, concepts[0], side)
        refuse_shared(sources, held)
    if held:
        repeats = share_repeats([source.repeats for source in sources])
        sources = [replace(s, repeats=n) for s, n in zip(sources, repeats, strict=True)]
    if config.with_prior_preservation and config.prior_preservation_mode == "images":
        for prompt, folder in list_classes(config, concepts).items():
            check_classes(folder, prompt)
    whole = sum(concept.share or 0.0 for concept in concepts)
    return PictureFolder(
        tuple(replace(s, share=s.share / whole) if s.share else s for s in sources),
        (*list_passed(config), *(note for folder in found for note in folder.notes)),
        (
            *(describe_concept(c, sources, config) for c in concepts),
            *([describe_held(held)] if held else []),
        ),
        tuple(take_as_held(source) for source in held),
    )


def read_held(config: TrainConfig, concept: Concept, side: int) -> list[Source]:
    """The pictures of `--validation_data_dir`, read as the first concept's are.

    Raises:
        AtomError: it lies among the pictures to train on, or its pictures cannot be used.
    """
    where = str(config.validation_data_dir)
    place = locate(where)
    given = concept.instance_data_dir
    if given and (place == locate(given) or place.is_relative_to(locate(given))):
        raise AtomError(
            f"--validation_data_dir {where!r} lies in --instance_data_dir {given!r}, whose "
            "subfolders are trained on; move it beside it"
        )
    other = replace(
        concept, instance_data_dir=where, dataset_name=None, mask_data_dir=None, repeats=1
    )
    return list(check_concept_pictures(config, other, side).sources)


def describe_held(held: Sequence[Source]) -> str:
    names = ", ".join(clip(source.name, 60) for source in held[:5]) + "…" * (len(held) > 5)
    return f"validation: {len(held)} not trained on ({names})"


def list_passed(config: TrainConfig) -> list[str]:
    """What a description says that nothing here reads."""
    passed = read_data_config(Path(config.data_config))[1] if config.data_config else ()
    return [f"not read of {Path(config.data_config or '').name}: {', '.join(passed)}"] * bool(
        passed
    )


def check_concept_pictures(config: TrainConfig, concept: Concept, side: int) -> PictureFolder:
    """One concept's pictures, with all that is said of them, by names that tell concepts apart."""
    column = concept.caption_column or config.caption_column
    folder, notes = open_pictures(
        concept.instance_data_dir,
        dataset=concept.dataset_name,
        image_column=concept.image_column or config.image_column,
        text_column=column,
    )
    found = check_folder(
        folder,
        concept.instance_prompt,
        resolution=side,
        caption_column=column,
        mask_dir=Path(concept.mask_data_dir) if concept.mask_data_dir else None,
        alpha_mask=bool(concept.alpha_mask),
    )
    notes += found.notes
    several = bool(config.data_config)
    captions = [text for s in found.sources for text in (*s.captions, s.prompt)]
    if not concept.enable_wildcard and any(has_wildcard(text) for text in captions):
        notes.append("captions hold {a|b}, read as it stands; --enable_wildcard draws one of them")
    rules = concept.rules
    if not any("[trigger]" in text or "[name]" in text for text in captions):
        rules = replace(rules, trigger="")
    elif not rules.trigger:
        notes.append("captions hold [trigger] or [name], read as it stands; --trigger replaces it")
    other_class = concept.class_prompt != config.class_prompt
    sources = [
        replace(
            source,
            name=clip(f"{concept.name}/{source.name}") if several else source.name,
            repeats=source.repeats * concept.repeats,
            concept=concept.name if several else "",
            rules=rules,
            class_prompt=concept.class_prompt if other_class else None,
            share=concept.share,
            flip=concept.random_flip if concept.random_flip != config.random_flip else None,
        )
        for source in found.sources
    ]
    label = f"{clip(concept.name)}: " if several else ""
    return PictureFolder(tuple(sources), tuple(f"{label}{note}" for note in notes))


def describe_concept(concept: Concept, sources: Sequence[Source], config: TrainConfig) -> str:
    """What a concept's pictures are taken for, in a line."""
    mine = [s for s in sources if s.concept in ("", concept.name)]
    rows = sum(s.repeats for s in sources)
    parts = [f"{len(mine)} {'picture' if len(mine) == 1 else 'pictures'}"]
    own = sum(s.own for s in mine)
    parts += [f"{own} with captions of their own"] if own else []
    several = sum(len(s.captions) > 1 for s in mine)
    parts += [f"{several} with several, drawn in turn"] if several else []
    masks = sum(s.mask is not None or s.alpha for s in mine)
    parts += [f"{masks} masked"] if masks else []
    asked = {s.prompt for s in mine if not s.own}
    parts += [f"prompt {clip(text, 60)!r}" for text in sorted(asked)[:3]]
    if config.with_prior_preservation:
        parts.append(f"class {clip(concept.class_prompt or '', 60)!r}")
    if config.data_config:
        shares = {s.concept: s.share for s in sources if s.share}
        part = sum(s.repeats for s in mine) / rows
        if shares:
            part = shares[concept.name] / sum(shares.values())
        parts.append(f"{part:.0%} of the training")
    if any(s.flip if s.flip is not None else config.random_flip for s in mine):
        parts.append("mirrored too, which is wrong for faces and text")
    return f"{clip(concept.name)}: {', '.join(parts)}"
