"""What a run is given on disk, refused before any model is loaded: instance and class pictures."""

from __future__ import annotations

from pathlib import Path

from sdatoms.diffusion.family import read_resolution, refuse_inpainting
from sdatoms.errors import AtomError
from sdatoms.storage import locate
from sdatoms.training.class_pictures import check_classes, find_class_folder
from sdatoms.training.config import TrainConfig
from sdatoms.training.folder import PictureFolder, check_folder

__all__ = [
    "check_inputs",
]


def check_places(config: TrainConfig) -> None:
    """Refuse folders that lie in each other where one's pictures would become the other's.

    Raises:
        AtomError: names both, and what would happen.
    """
    instances, run = locate(config.instance_data_dir), locate(config.output_dir)
    if run.is_relative_to(instances):
        raise AtomError(
            f"--output_dir {config.output_dir!r} lies in --instance_data_dir "
            f"{config.instance_data_dir!r}: samples would become pictures to train on; name "
            "another folder"
        )
    if config.class_data_dir is None or not config.with_prior_preservation:
        return
    classes = locate(config.class_data_dir)
    for flag, other in (("instance_data_dir", instances), ("output_dir", run)):
        inside = flag == "output_dir" and classes != other and not other.is_relative_to(classes)
        if not inside and (classes.is_relative_to(other) or other.is_relative_to(classes)):
            raise AtomError(
                f"--class_data_dir {config.class_data_dir!r} and --{flag} "
                f"{getattr(config, flag)!r} lie in each other: pictures of one would become the "
                "other's; name another folder"
            )


def check_inputs(config: TrainConfig) -> PictureFolder:
    """The instance folder; refuses, before any model is loaded, what cannot be trained on.

    Raises:
        AtomError: a folder or prompt is missing, or pictures cannot be used.
    """
    for name in ("instance_data_dir", "instance_prompt"):
        if not getattr(config, name):
            raise AtomError(
                f"--{name} is missing; training needs a folder of pictures and a prompt for them"
            )
    check_places(config)
    refuse_inpainting(config.pretrained_model_name_or_path, "training")
    found = check_folder(
        Path(config.instance_data_dir),
        config.instance_prompt,
        resolution=config.resolution or read_resolution(config.pretrained_model_name_or_path),
        caption_column=config.caption_column,
        mask_dir=Path(config.mask_data_dir) if config.mask_data_dir else None,
    )
    if config.with_prior_preservation and config.prior_preservation_mode == "images":
        folder = find_class_folder(config.class_data_dir, config.output_dir)
        check_classes(folder, config.class_prompt or "")
    return found
