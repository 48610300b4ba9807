"""Pipeline folders on disk, named as older programs know them.

transformers 5 saves CLIP's text encoder without the `text_model.` in front of its weights that
transformers 4, ComfyUI and converters to single files look for, and a tokenizer without the
`vocab.json` and `merges.txt` that transformers 4 reads. It opens both spellings alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from sdatoms.models.header import read_opening
from sdatoms.storage import read_table, write_whole

__all__ = [
    "rename_tensors",
    "write_known_names",
]

CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
INNER = ("embeddings.", "encoder.", "final_layer_norm.")
"""What the names inside the text model begin with."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def write_known_names(folder: Path) -> list[Path]:
    """Rename the text encoders' weights of a pipeline folder, and add the files of its vocabulary.

    Numbers stay as they are, and a folder that has these names already is left alone.

    Returns:
        What was written.
    """
    written: list[Path] = []
    for config in sorted(folder.glob("*/config.json")):
        table = read_table(config)
        if set(table.get("architectures") or ()) & set(CLIP):
            for pattern in WEIGHTS:
                for path in sorted(config.parent.glob(pattern)):
                    written += [path] if rename_tensors(path, add_text_model) else []
    for tokenizer in sorted(folder.glob("*/tokenizer.json")):
        written += write_vocabulary(tokenizer)
    return written


def add_text_model(name: str) -> str:
    return f"text_model.{name}" if name.startswith(INNER) else name


def rename_tensors(path: Path, rename: Callable[[str], str]) -> bool:
    """Rename the tensors of a safetensors file, or of the index of several, without touching one.

    Returns:
        Whether any name changed.
    """
    if path.suffix == ".json":
        index = read_table(path)
        found = {rename(name): where for name, where in index["weight_map"].items()}
        if found.keys() == index["weight_map"].keys():
            return False
        text = json.dumps(index | {"weight_map": found}, indent=2)
        write_whole(path, f"{text}\n".encode())
        return True
    with path.open("rb") as file:
        _, header = read_opening(file, f"the file {path.name!r}")
        data = file.read()
    plain = lambda name: name if name == "__metadata__" else rename(name)
    renamed = {plain(name): entry for name, entry in header.items()}
    if renamed.keys() == header.keys():
        return False
    text = json.dumps(renamed, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    write_whole(path, b"".join([len(text).to_bytes(8, "little"), text, data]))
    return True


def write_vocabulary(tokenizer: Path) -> list[Path]:
    """`vocab.json` and `merges.txt` beside a byte-pair `tokenizer.json`, where they are missing."""
    vocabulary, merges = tokenizer.with_name("vocab.json"), tokenizer.with_name("merges.txt")
    model = read_table(tokenizer).get("model", {})
    if vocabulary.exists() or merges.exists() or model.get("type") != "BPE":
        return []
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    write_whole(vocabulary, json.dumps(model["vocab"], ensure_ascii=False).encode())
    write_whole(merges, "\n".join(["#version: 0.2", *pairs, ""]).encode())
    return [vocabulary, merges]
