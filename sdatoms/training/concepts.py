"""What one run learns: one concept from the flags, or several from a description of the data.

A description is a table of `[[concepts]]` in a `data.toml`, whose keys are the trainer's own flags;
keys above the tables are meant for all of them. The JSON list of concepts that DreamBooth scripts
take is read too, and so are other trainers' descriptions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from sdatoms.errors import AtomError, check_text, clip, first_line
from sdatoms.settings import build_config, parse_config_file, quote_value, read_config_file
from sdatoms.training.caption_rules import CaptionRules
from sdatoms.training.checks import RANGES
from sdatoms.training.class_pictures import find_class_folder
from sdatoms.training.config import TrainConfig
from sdatoms.training.foreign_data import translate_data
from sdatoms.training.run_folder import write_toml

__all__ = [
    "Concept",
    "complete_config",
    "list_classes",
    "list_concepts",
    "read_data_config",
    "write_data_config",
]


@dataclass(frozen=True)
class Concept:
    """One thing to learn; what is None or empty is as the run's flag of that name says."""

    name: str = ""
    """What it is called in lists; the folder's name when not given."""
    instance_data_dir: str = ""
    """Folder or zip of its pictures; a relative path starts at the description."""
    dataset_name: str | None = None
    """In place of a folder, a data set of the `datasets` library: hub name or folder."""
    instance_prompt: str = ""
    """Prompt of pictures without a caption."""
    trigger: str | None = None
    """What stands for `[trigger]` in its captions."""
    class_prompt: str | None = None
    """Prompt of its class, for prior preservation."""
    class_data_dir: str | None = None
    """Pictures of its class."""
    repeats: int = 1
    """How often its pictures come in a round, beside those of other concepts."""
    share: float | None = None
    """How much of the training it gets beside the others' shares, however many pictures it has."""
    mask_data_dir: str | None = None
    caption_column: str | None = None
    image_column: str | None = None
    alpha_mask: bool | None = None
    shuffle_caption: bool | None = None
    keep_tokens: int | None = None
    caption_dropout_rate: float | None = None
    """Share of its rows with an empty prompt."""
    caption_tag_dropout_rate: float | None = None
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    enable_wildcard: bool | None = None
    random_flip: bool | None = None

    @property
    def place(self) -> str:
        """Where its pictures come from, as it was given."""
        return self.dataset_name or self.instance_data_dir

    @property
    def rules(self) -> CaptionRules:
        """How its captions are read."""
        return CaptionRules(
            prefix=self.caption_prefix or "",
            suffix=self.caption_suffix or "",
            shuffle=bool(self.shuffle_caption),
            keep_tokens=self.keep_tokens or 0,
            tag_dropout=self.caption_tag_dropout_rate or 0.0,
            dropout=self.caption_dropout_rate or 0.0,
            wildcards=bool(self.enable_wildcard),
            trigger=self.trigger or "",
        )


PATHS = ("instance_data_dir", "class_data_dir", "mask_data_dir")
RATES = ("caption_dropout_rate", "caption_tag_dropout_rate")
MAX_CONCEPTS = 1000
MAX_REPEATS = 99_999
SAMPLED = 8
"""Concepts whose prompts are sampled where no prompts are named."""


def list_concepts(config: TrainConfig) -> tuple[Concept, ...]:
    """The concepts of a run, each with all that its flags say.

    Raises:
        AtomError: a prompt, folder or description is missing or cannot be read.
    """
    if config.data_config:
        if config.instance_data_dir or config.dataset_name:
            other = "instance_data_dir" if config.instance_data_dir else "dataset_name"
            raise AtomError(f"--data_config and --{other} both name pictures; leave one out")
        given = read_data_config(Path(config.data_config))[0]
    else:
        if bool(config.instance_data_dir) == bool(config.dataset_name):
            if config.dataset_name:
                raise AtomError(
                    "--dataset_name and --instance_data_dir both name pictures; leave one out"
                )
            raise AtomError(
                "--instance_data_dir is missing; training needs a folder of pictures and a prompt "
                "for them"
            )
        given = (Concept(),)
    found = name_apart(fill_concept(concept, config) for concept in given)
    for concept in found:
        if not concept.instance_prompt:
            where = f" of concept {clip(concept.name)!r}" if config.data_config else ""
            raise AtomError(
                f"--instance_prompt{where} is missing; training needs a folder of pictures and a "
                "prompt for them"
            )
        if config.with_prior_preservation and not concept.class_prompt:
            raise AtomError(
                f"--with_prior_preservation: the concept {clip(concept.name)!r} has no "
                "class_prompt; give it one, or --class_prompt for all"
            )
    check_shares(found)
    return found


def fill_concept(concept: Concept, config: TrainConfig) -> Concept:
    own = asdict(concept)
    named = set(vars(config)) & set(own)
    named -= {"trigger"} if config.data_config else set()  # that of a run names all its concepts
    return Concept(**own | {k: getattr(config, k) for k in named if own[k] in (None, "")})


def name_apart(concepts: Iterable[Concept]) -> tuple[Concept, ...]:
    """Concepts with names that are no two alike."""
    found: dict[str, Concept] = {}
    for concept in concepts:
        plain = concept.name or Path(concept.place).stem or "pictures"
        numbers = (f"{plain}-{k}" if k > 1 else plain for k in range(1, MAX_CONCEPTS + 2))
        name = next(name for name in numbers if name not in found)
        found[name] = replace(concept, name=name)
    return tuple(found.values())


def check_shares(concepts: Iterable[Concept]) -> None:
    """Refuse shares that some concepts have and others have not.

    Raises:
        AtomError: names the first without.
    """
    without = [c.name for c in concepts if c.share is None]
    if without and any(c.share is not None for c in concepts):
        raise AtomError(
            f"the concept {clip(without[0])!r} has no share where others have; give all of them "
            "one, or none"
        )


def read_data_config(path: Path) -> tuple[tuple[Concept, ...], tuple[str, ...]]:
    """The concepts of a description, with paths that begin at it, and what it says that nothing
    here reads.

    Raises:
        AtomError: it cannot be read, or a key of it is unknown or out of range.
    """
    values = read_description(path)
    try:
        rows, passed = translate_data(values)
    except AtomError as error:
        raise AtomError(f"{path.name!r} cannot be read: {error}") from None
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise AtomError(
            f"the description {path.name!r} is of no kind that is read here: {first_line(error)}"
        ) from None
    found = []
    for number, row in enumerate(rows, 1):
        where = f"concept {number} of {path.name!r}"
        if not isinstance(row, Mapping):
            raise AtomError(f"{where} is no table of settings")
        concept = build_config(Concept, dict(row), where)
        check_concept(concept, where)
        places = {n: place_path(path, getattr(concept, n), f"{where}: {n}") for n in PATHS}
        found.append(replace(concept, **places))
    if not found:
        raise AtomError(f"the description {path.name!r} names no [[concepts]]")
    if len(found) > MAX_CONCEPTS:
        raise AtomError(f"{path.name!r} names {len(found)} concepts; at most {MAX_CONCEPTS} fit")
    return tuple(found), tuple(passed)


def read_description(path: Path) -> Any:
    """A JSON file may hold a list of concepts, which is no table of settings."""
    return parse_config_file(path) if path.suffix == ".json" else read_config_file(path)


def check_concept(concept: Concept, where: str) -> None:
    if bool(concept.instance_data_dir) == bool(concept.dataset_name):
        raise AtomError(
            f"{where} takes instance_data_dir, a folder or zip of pictures, or else dataset_name"
        )
    for name, value in asdict(concept).items():
        if isinstance(value, str):
            check_text(value, f"{where}: {name}")
            if "\0" in value and name in (*PATHS, "dataset_name"):
                raise AtomError(f"{where}: {name} is {value!r}; no path holds a NUL character")
    if not 1 <= concept.repeats <= MAX_REPEATS:
        fits = "at least 1" if concept.repeats < 1 else f"at most {MAX_REPEATS}"
        raise AtomError(f"{where}: repeats is {quote_value(concept.repeats)}; it takes {fits}")
    if concept.share is not None and not 0 < concept.share < float("inf"):
        raise AtomError(f"{where}: share is {concept.share:g}; it takes a number above 0")
    for name in RATES:
        if not 0 <= (getattr(concept, name) or 0.0) <= 1:
            raise AtomError(f"{where}: {name} is {getattr(concept, name):g}; it takes 0 to 1")
    (least, most), kept = RANGES["keep_tokens"], concept.keep_tokens or 0
    if not least <= kept <= most:
        raise AtomError(f"{where}: keep_tokens is {quote_value(kept)}; it takes {least} to {most}")


def place_path(description: Path, given: str | None, what: str) -> str | None:
    """A path of a description, which begins at it, or at a user's home.

    Raises:
        AtomError: there is no such user.
    """
    if not given:
        return given
    try:
        return str(description.parent / Path(given).expanduser())
    except RuntimeError:
        raise AtomError(
            f"{what} is {clip(given)!r}, which begins at the home of a user who has none here"
        ) from None


def write_data_config(concepts: Iterable[Concept], *, absolute: bool = True) -> str:
    """A `data.toml` of the concepts, which `read_data_config` reads back.

    Args:
        absolute: whether paths are written in full; else as they are, to begin at the file.
    """
    plain = {field.name: field.default for field in fields(Concept)}
    tables = []
    for concept in concepts:
        values = {k: v for k, v in asdict(concept).items() if v != plain[k]}
        for name in set(PATHS) & values.keys() if absolute else ():
            values[name] = str(Path(values[name]).absolute())
        tables.append("[[concepts]]\n" + write_toml(values))
    return "\n".join(tables)


def complete_config(config: TrainConfig) -> TrainConfig:
    """The settings with the prompt, trigger and samples that a description implies.

    Raises:
        AtomError: as `list_concepts`.
    """
    if not config.data_config:
        return config
    first, *others = dict.fromkeys(c.instance_prompt for c in list_concepts(config))
    samples = config.validation_prompts
    if others and not config.validation_prompt:
        samples = samples or (first, *others[: SAMPLED - 1])
    return replace(
        config,
        instance_prompt=config.instance_prompt or first,
        trigger=config.trigger or ", ".join([first, *others]),
        validation_prompts=samples,
    )


def list_classes(config: TrainConfig, concepts: Iterable[Concept]) -> dict[str, Path]:
    """Prompt of every class → the folder of its pictures."""
    first: dict[str, Concept] = {}
    for concept in concepts:
        if concept.class_prompt:
            first.setdefault(concept.class_prompt, concept)
    found = {}
    for prompt, concept in first.items():
        own = concept.class_data_dir != config.class_data_dir
        folder = find_class_folder(concept.class_data_dir, config.output_dir)
        found[prompt] = folder if own or len(first) == 1 else folder / name_class(prompt)
    return found


def name_class(prompt: str) -> str:
    """A folder's name for a class; no two classes share one."""
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-")[:40]
    return f"{words}-{hashlib.sha256(prompt.encode(errors='replace')).hexdigest()[:6]}"
