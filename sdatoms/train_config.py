"""`TrainConfig`: the flags of the trainer, named as in diffusers' DreamBooth scripts.

The same object is filled from Python, from flags, from a file and from the app, and is written back
into the run directory as `config.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from sdatoms.errors import AtomError
from sdatoms.inject import AtomConfig

__all__ = ["DEFAULT_RATES", "TrainConfig", "make_atom_config"]

DEFAULT_RATES = {"atoms": 1e-2, "overcomplete": 3e-3, "coefficients": 3e-3, "full": 3e-3}
"""Learning rate by variant while `--learning_rate` is not given, in relative weight change per
step."""


@dataclass(frozen=True)
class TrainConfig:
    """Flags of the trainer; names as in diffusers' DreamBooth scripts."""

    instance_data_dir: str = ""
    """Folder with pictures of the subject or style; a `.txt` beside a picture is its own prompt."""
    instance_prompt: str = ""
    """Prompt with the trigger word, such as "a sks dog"."""
    output_dir: str = "atoms-run"
    """Run directory."""
    pretrained_model_name_or_path: str | None = None
    """Diffusers pipeline directory or hub id; the bundled base when not given."""
    revision: str | None = None
    """Revision of the hub repository."""
    variant: str | None = None
    """Which weight files to load, such as fp16."""
    with_prior_preservation: bool = False
    """Also train on class pictures, so that the class stays what it was."""
    class_data_dir: str | None = None
    """Folder with class pictures; missing ones are painted by the base. Default: class_images in
    the run directory."""
    class_prompt: str | None = None
    """Prompt of the class pictures, such as "a dog"."""
    num_class_images: int = 100
    """How many class pictures there should be."""
    prior_loss_weight: float = 1.0
    """Weight of the class pictures' loss."""
    seed: int = 0
    """Seeds order, noise, timesteps, class pictures and samples."""
    resolution: int | None = None
    """Side of the training pictures in px; the base's own when not given."""
    random_flip: bool = False
    """Also train on mirrored pictures."""
    train_batch_size: int = 4
    """Instance pictures per step and process."""
    sample_batch_size: int = 8
    """Pictures painted at once."""
    max_train_steps: int = 300
    """Optimizer steps in all."""
    gradient_accumulation_steps: int = 1
    """Batches per optimizer step."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    learning_rate: float | None = None
    """Peak learning rate; by default the variant's own."""
    lr_scheduler: str = "constant_with_warmup"
    """linear, cosine, cosine_with_restarts, polynomial, constant or constant_with_warmup."""
    lr_warmup_steps: int = 20
    """Steps of linear warm-up."""
    adam_beta1: float = 0.9
    """AdamW's first decay."""
    adam_beta2: float = 0.99
    """AdamW's second decay."""
    adam_weight_decay: float = 0.0
    """AdamW's weight decay, which pulls the delta to zero."""
    adam_epsilon: float = 1e-8
    """AdamW's ε."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    snr_gamma: float | None = None
    """min-SNR-γ weighting of the loss; 5 is the paper's value. Not used when not given."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Autocast of the base; atoms stay in float32."""
    checkpointing_steps: int = 100
    """Steps between checkpoints."""
    checkpoints_total_limit: int | None = 3
    """How many checkpoints are kept."""
    resume_from_checkpoint: str | None = None
    """"latest", or the name of a checkpoint in the run directory."""
    validation_prompt: str | None = None
    """Prompt of the sample pictures; the instance prompt when not given."""
    num_validation_images: int = 4
    """Sample pictures each time."""
    validation_steps: int = 100
    """Steps between samples; 0 paints none."""
    atom_variant: Literal["atoms", "overcomplete", "coefficients", "full"] = "overcomplete"
    """Which tensors are trained."""
    atom_decomposition: Literal["linear", "sparse"] = "linear"
    """How coefficients are found."""
    num_atoms: int | None = None
    """Atoms per spatial filter; all the weight has when not given."""
    num_inner_atoms: int | None = None
    """Inner atoms behind each atom in overcomplete and full (3)."""
    block_size: int | None = None
    """Side of a channel block in coefficients and full (4)."""
    block_view: Literal["channel", "joint"] | None = None
    """Whether block atoms are shared over kernel positions or hold them (joint)."""
    trigger: str | None = None
    """Words recorded in the file as its trigger; the instance prompt when not given."""

    def __post_init__(self) -> None:
        at_least = {
            "max_train_steps": 1,
            "train_batch_size": 1,
            "sample_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_class_images": 1,
            "checkpointing_steps": 1,
            "validation_steps": 0,
            "num_validation_images": 0,
            "lr_warmup_steps": 0,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise AtomError(f"--{name} is {getattr(self, name)}; it takes at least {least}")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise AtomError(f"--learning_rate is {self.learning_rate}; it takes a number above 0")
        hints = get_type_hints(type(self))
        for name in ("mixed_precision", "atom_variant", "atom_decomposition", "block_view"):
            choices = [c for hint in (hints[name], *get_args(hints[name])) for c in get_args(hint)]
            if getattr(self, name) is not None and getattr(self, name) not in choices:
                words = " | ".join(c for c in choices if isinstance(c, str))
                raise AtomError(f"--{name} is {getattr(self, name)!r}; it takes {words}")
        if self.resolution is not None and (self.resolution < 8 or self.resolution % 8):
            raise AtomError(f"--resolution is {self.resolution}; it takes a multiple of 8")


def make_atom_config(config: TrainConfig) -> AtomConfig:
    """The method's flags as an `AtomConfig`; flags not given keep its defaults, budget rule
    included."""
    given = {
        "num_atoms": config.num_atoms,
        "num_inner_atoms": config.num_inner_atoms,
        "block_size": config.block_size,
        "block_view": config.block_view,
    }
    return AtomConfig(
        variant=config.atom_variant,
        decomposition=config.atom_decomposition,
        seed=config.seed,
        **{k: v for k, v in given.items() if v is not None},  # pyright: ignore[reportArgumentType]
    )
