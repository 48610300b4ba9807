"""What a checkpoint was made from, and what a run that resumes it may have changed since.

Steps, rates, losses, samples and the like may change and are named; pictures, prompts, base and all
that decides what the trained numbers mean may not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sdatoms.adapters.plan import same_base
from sdatoms.atoms.config import ATOM_FLAGS
from sdatoms.errors import AtomError, clip
from sdatoms.fingerprint import hash_tensors
from sdatoms.training.config import TrainConfig
from sdatoms.training.folder import PictureFolder, Source

__all__ = [
    "FIXED",
    "PLACES",
    "RATE_SETTINGS",
    "RECORD",
    "compare_record",
    "make_record",
    "read_record",
]

RECORD = "record.json"
FIXED = (
    *("instance_prompt", "seed", "base_dtype"),
    *(*ATOM_FLAGS, "atom_layers"),
    *("train_text_encoder", "train_text_encoder_ti", "token_abstraction"),
    *("num_new_tokens_per_abstraction", "initializer_concept"),
    *("optimizer", "optimizer_args", "use_8bit_adam", "use_ema"),
    *("prodigy_beta3", "prodigy_decouple", "prodigy_use_bias_correction"),
    "prodigy_safeguard_warmup",
)
"""Settings that the checkpoint's tensors and optimizer state depend on."""
PLACES = (
    *("instance_data_dir", "pretrained_model_name_or_path", "revision", "variant"),
    *("output_dir", "resume_from_checkpoint", "mask_data_dir", "caption_column"),
    *("class_data_dir", "encoding_cache_dir", "data_config", "dataset_name", "image_column"),
    *("dtype", "offload", "validation_data_dir"),
)
"""Settings that only say where things are; the things themselves are compared."""
RATE_SETTINGS = (
    *("learning_rate", "scale_lr", "spatial_learning_rate", "block_learning_rate"),
    *("text_encoder_lr", "token_lr", "train_batch_size", "gradient_accumulation_steps"),
    *("lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power", "lr_step_rules"),
    *("max_train_steps", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon"),
)
"""Settings that the optimizer's groups and the schedule hold."""
SHOWN = 5
HOW = ("alpha", "rules", "class_prompt", "share", "flip")
"""What is said of a picture beside its prompt; `alpha` decides its mask."""


def make_record(
    config: TrainConfig, folder: PictureFolder, pipe: Any, base_dtype: str
) -> dict[str, Any]:
    """Settings, pictures and base of a run, as JSON can hold them.

    The UNet is not in it: its fingerprints stand in the checkpoint's atom file.

    Args:
        base_dtype: what `--base_dtype` came to, which "auto" decides by machine.
    """
    names = [n for n in ("vae", "text_encoder", "text_encoder_2") if getattr(pipe, n, None)]
    settings = asdict(config) | {"base_dtype": base_dtype}
    return {
        "settings": json.loads(json.dumps(settings)),
        "pictures": {source.name: describe_source(source) for source in folder.sources},
        "base": {name: hash_tensors(getattr(pipe, name).state_dict()) for name in names},
    }


def describe_source(source: Source) -> list[str]:
    mask = source.mask.read_bytes() if source.mask else b""
    told = [source.digest, source.prompt, sha256(mask).hexdigest() if mask else ""]
    further = {
        f.name: getattr(source, f.name)
        for f in fields(source)
        if f.name in HOW and getattr(source, f.name) != f.default
    }
    return told + ([json.dumps(further, default=asdict, sort_keys=True)] if further else [])


def read_record(checkpoint: Path) -> dict[str, Any] | None:
    """What `make_record` found when the checkpoint was made; None where it is older than records.

    Raises:
        AtomError: it is damaged.
    """
    path = checkpoint / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {key: dict(record[key]) for key in ("settings", "pictures", "base")}
    except (OSError, ValueError, KeyError, TypeError):
        raise AtomError(f"the record of checkpoint {checkpoint.name!r} cannot be read") from None


def compare_record(
    checkpoint: Path, made: Mapping[str, Any] | None, now: Mapping[str, Any], prints: str
) -> dict[str, tuple[Any, Any]]:
    """Settings that changed since a checkpoint: name → before and now.

    Args:
        made: the checkpoint's record; None: only the UNet can be compared.
        now: the same of this run.
        prints: `base_fingerprints` of this run's atom file.

    Raises:
        AtomError: something changed that may not, all of it named.
    """
    wrong = compare_prints(checkpoint, json.loads(prints))
    changes: dict[str, tuple[Any, Any]] = {}
    if made is not None:
        before, after = made["settings"], now["settings"]
        changes = {
            name: (before[name], value)
            for name, value in after.items()
            if name in before and before[name] != value and name not in PLACES
        }
        fixed = [name for name in changes if name in FIXED]
        wrong += [f"--{n} was {changes[n][0]!r} and is {changes[n][1]!r}" for n in fixed]
        wrong += compare_pictures(made["pictures"], now["pictures"])
        others = [n for n, digest in now["base"].items() if made["base"].get(n, digest) != digest]
        if others and "base_dtype" not in fixed:
            older = "" if "base_dtype" in before else ", or was held in another --base_dtype"
            wrong += [f"the base's {', '.join(others)} has other weights{older}"]
    if wrong:
        raise AtomError(
            f"{checkpoint.name} cannot be resumed: {'; '.join(wrong)}; put that back, or begin a "
            "new run in another --output_dir"
        )
    return changes


def compare_prints(checkpoint: Path, now: Mapping[str, dict[str, list[float]]]) -> list[str]:
    try:
        with safe_open(checkpoint / "atoms.safetensors", "pt") as file:
            made = json.loads((file.metadata() or {})["base_fingerprints"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise AtomError(f"the checkpoint {checkpoint.name!r} cannot be read: {error}") from None
    both = [name for name in now if name in made and now[name].keys() == made[name].keys()]
    other = [name for name in both if not same_base(made[name], now[name])]
    return [f"the base's {', '.join(other)} has other weights"] if other else []


def compare_pictures(
    made: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]
) -> list[str]:
    """What differs between two lists of pictures, in words."""
    both = sorted(made.keys() & now.keys())
    found = (
        ("pictures are gone", sorted(made.keys() - now.keys())),
        ("pictures are new", sorted(now.keys() - made.keys())),
        ("pictures were changed", [n for n in both if made[n][0] != now[n][0]]),
        ("prompts were changed", [n for n in both if made[n][1] != now[n][1]]),
        ("masks were changed", [n for n in both if made[n][2] != now[n][2]]),
        (
            "what is made of captions, classes or shares was changed",
            [n for n in both if list(made[n][3:]) != list(now[n][3:])],
        ),
    )
    return [
        f"{what} ({', '.join(clip(n, 60) for n in names[:SHOWN])}{'…' * (len(names) > SHOWN)})"
        for what, names in found
        if names
    ]
