"""Headers of exports: what model browsers and other programs read beside the tensors.

Reference: the ModelSpec metadata standard, https://github.com/Stability-AI/ModelSpec; `ss_*` are
kohya's, by which AUTOMATIC1111's web UI tells versions of Stable Diffusion apart.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sdatoms.files.atom_file import AtomFile, hash_content

__all__ = [
    "describe_export",
    "describe_pipeline",
]

COPIED = (
    "trigger",
    "base_model",
    "sdatoms_version",
    "modelspec.sai_model_spec",
    "modelspec.title",
    "modelspec.author",
    "modelspec.license",
    "modelspec.tags",
    "modelspec.trigger_phrase",
    "modelspec.thumbnail",
    "modelspec.date",
    "modelspec.resolution",
    "modelspec.prediction_type",
)
FORMS = {
    "lora": ("lora", "The nearest LoRA of rank {rank} to"),
    "diff": ("lycoris", "Full differences of"),
    "pipeline": ("", "The base with these baked in:"),
}
"""Form → what the architecture ends in, and what the description begins with."""
VERSIONS = {
    "stable-diffusion-v1": {"ss_base_model_version": "sd_v1", "ss_v2": "False"},
    "stable-diffusion-v2": {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
    "stable-diffusion-xl": {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"},
}
"""Beginning of the base's architecture → kohya's entries for it."""


def describe_export(
    file: AtomFile, form: str, tensors: Mapping[str, Tensor], rank: int = 0
) -> dict[str, str]:
    """The header of a `lora` or `diff` export."""
    header = describe(file, form, rank)
    architecture = header.get("modelspec.architecture", "")
    header |= next((v for name, v in VERSIONS.items() if architecture.startswith(name)), {})
    if rank:
        header |= {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(rank),
        }
    if form == "lora":  # a full difference is as large as the model; hashing it copies it
        header["modelspec.hash_sha256"] = hash_content(tensors)
    return header


def describe_pipeline(file: AtomFile) -> dict[str, str]:
    """The header of the UNet (or transformer) of a baked pipeline."""
    return describe(file, "pipeline", 0)


def describe(file: AtomFile, form: str, rank: int) -> dict[str, str]:
    ending, sentence = FORMS[form]
    header = {key: file.metadata[key] for key in COPIED if key in file.metadata}
    if "modelspec.architecture" in file.metadata:
        base = file.metadata["modelspec.architecture"].partition("/")[0]
        header["modelspec.architecture"] = f"{base}/{ending}" if ending else base
    about = file.metadata.get("modelspec.description", "filter atoms")
    header["modelspec.description"] = f"{sentence.format(rank=rank)} {about[:1].lower()}{about[1:]}"
    return {"format": "pt"} | header
