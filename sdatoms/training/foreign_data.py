"""Other trainers' descriptions of data, as tables of our own keys.

Read are kohya's `dataset_config`, OneTrainer's `concepts.json`, the `datasets` of an ai-toolkit
config, and the list of concepts that DreamBooth scripts take. What a description says that nothing
here reads is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite, nan
from typing import Any

from sdatoms.errors import AtomError, clip
from sdatoms.settings import quote_value

__all__ = [
    "translate_data",
]

Row = dict[str, Any]

KOHYA = {
    "image_dir": "instance_data_dir",
    "class_tokens": "instance_prompt",
    "num_repeats": "repeats",
    "flip_aug": "random_flip",
    "shuffle_caption": "shuffle_caption",
    "keep_tokens": "keep_tokens",
    "caption_dropout_rate": "caption_dropout_rate",
    "caption_tag_dropout_rate": "caption_tag_dropout_rate",
    "caption_prefix": "caption_prefix",
    "caption_suffix": "caption_suffix",
    "enable_wildcard": "enable_wildcard",
    "alpha_mask": "alpha_mask",
    "conditioning_data_dir": "mask_data_dir",
}
"""kohya's key of a subset → ours."""
AI_TOOLKIT = {
    "folder_path": "instance_data_dir",
    "dataset_path": "instance_data_dir",
    "mask_path": "mask_data_dir",
    "default_caption": "instance_prompt",
    "trigger_word": "trigger",
    "num_repeats": "repeats",
    "caption_dropout_rate": "caption_dropout_rate",
    "shuffle_tokens": "shuffle_caption",
    "token_dropout_rate": "caption_tag_dropout_rate",
    "keep_tokens": "keep_tokens",
    "alpha_mask": "alpha_mask",
    "flip_x": "random_flip",
}
"""ai-toolkit's key of a data set → ours."""
SILENT = {"caption_ext", "caption_extension", "type", "resolution", "batch_size", "enabled", "seed"}
"""Keys that need no word: what they ask for is done, or is the run's own to say."""


def translate_data(values: Any) -> tuple[list[Any], list[str]]:
    """Tables of our keys, and names of what was passed over.

    Raises:
        AtomError: the description is of no kind that is known.
    """
    passed: dict[str, None] = {}
    if isinstance(values, list):
        foreign = any(isinstance(row, Mapping) and "path" in row for row in values)
        rows = read_onetrainer(values, passed) if foreign else [rename_kind(row) for row in values]
    elif not isinstance(values, Mapping):
        raise AtomError("a description of data is a table with [[concepts]], or a list of them")
    elif isinstance(values.get("datasets"), list):
        rows = read_kohya(values, passed)
    elif isinstance(values.get("config"), Mapping):
        rows = read_ai_toolkit(values["config"], passed)
    else:
        shared = {k: v for k, v in values.items() if k != "concepts"}
        concepts = values.get("concepts", [])
        if not isinstance(concepts, list):
            raise AtomError("[[concepts]] of a description is a list of tables")
        rows = [{**shared, **row} if isinstance(row, Mapping) else row for row in concepts]
    return rows, list(passed)


def rename_kind(row: Any) -> Any:
    """A concept of a DreamBooth script's list; `num_class_images` is the run's own to say."""
    if isinstance(row, Mapping):
        return {k: v for k, v in row.items() if k != "num_class_images"}
    return row


def rename(row: Mapping[str, Any], names: Mapping[str, str], passed: dict[str, None]) -> Row:
    for key, value in row.items():
        if key not in names and key not in SILENT and value not in (None, False, 0, "", [], {}):
            passed.setdefault(clip(str(key), 60))
    return {names[k]: v for k, v in row.items() if k in names and v is not None}


def read_kohya(values: Mapping[str, Any], passed: dict[str, None]) -> list[Any]:
    """Subsets with what their data set and `general` say; subsets of a class only where they are
    the class of all."""
    general = values.get("general", {})
    rows, classes = [], []
    for dataset in values["datasets"]:
        if not isinstance(dataset, Mapping):
            raise AtomError("[[datasets]] of a description is a list of tables")
        subsets = dataset.get("subsets", [])
        above = {k: v for k, v in dataset.items() if k != "subsets"}
        for subset in subsets:
            whole = {**general, **above, **subset}
            is_class = whole.pop("is_reg", False)
            row = rename(whole, KOHYA, passed)
            (classes if is_class else rows).append(row)
    if len(classes) == 1:
        kept = {"class_data_dir": classes[0].get("instance_data_dir")}
        kept |= {"class_prompt": classes[0].get("instance_prompt")}
        rows = [row | kept for row in rows]
    elif classes:
        passed.setdefault("is_reg of several subsets: give each concept its class_data_dir")
    return rows


def read_ai_toolkit(config: Mapping[str, Any], passed: dict[str, None]) -> list[Any]:
    processes = config.get("process", [])
    rows = []
    for process in processes if isinstance(processes, list) else []:
        shared = {k: process[k] for k in ("trigger_word",) if process.get(k)}
        for dataset in process.get("datasets", []):
            row = rename({**shared, **dataset}, AI_TOOLKIT, passed)
            row.setdefault("instance_prompt", row.get("trigger", ""))
            rows.append(row)
    return rows


def read_onetrainer(concepts: Iterable[Any], passed: dict[str, None]) -> list[Any]:
    rows = []
    for concept in concepts:
        if not isinstance(concept, Mapping) or not concept.get("enabled", True):
            continue
        text, image = concept.get("text", {}), concept.get("image", {})
        row: Row = {
            "name": concept.get("name") or "",
            "instance_data_dir": concept["path"],
            "shuffle_caption": bool(text.get("enable_tag_shuffling")),
            "keep_tokens": int(read_number(text, "keep_tags_count", 1)),
            "random_flip": bool(image.get("enable_random_flip")),
        }
        if text.get("tag_dropout_enable"):
            row["caption_tag_dropout_rate"] = read_number(text, "tag_dropout_probability", 0)
        if concept.get("balancing_strategy", "REPEATS") == "REPEATS":
            row["repeats"] = max(1, round(read_number(concept, "balancing", 1)))
        else:
            passed.setdefault("balancing by samples")
        if text.get("prompt_source", "sample") != "sample":
            passed.setdefault(f"prompt_source {clip(str(text['prompt_source']), 20)}")
        rows.append(row)
    return rows


def read_number(table: Mapping[str, Any], key: str, default: float) -> float:
    """A number that JSON may spell as a text.

    Raises:
        AtomError: it is none, or not finite.
    """
    value = table.get(key, default)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = nan
    if not isfinite(number):
        raise AtomError(f"a concept's {key} is {quote_value(value)}; it takes a finite number")
    return number
