"""`TrainConfig`: the flags of the trainer, named as in diffusers' DreamBooth scripts.

The same object is filled from Python, from flags, from a file and from the app, and is written back
into the run directory as `config.toml`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

from sdatoms.atoms.config import AtomConfig, read_atom_flags
from sdatoms.training.checks import check_settings
from sdatoms.training.kinds import check_kinds

__all__ = [
    "ATOM_LAYERS",
    "DEFAULT_RATES",
    "TrainConfig",
    "make_atom_config",
    "make_text_config",
]

DEFAULT_RATES = {"atoms": 1e-2, "overcomplete": 3e-3, "coefficients": 3e-3, "full": 3e-3}
"""Learning rate by variant while `--learning_rate` is not given, in relative weight change per
step."""


ATTENTION = ("*.attn1.*", "*.attn2.*")
CONVOLUTIONS = ("*.conv1", "*.conv2", "*.conv_shortcut", "*samplers.0.conv")
ATOM_LAYERS: dict[str, tuple[str, ...] | None] = {
    "all": None,
    "attention+convolutions": (*ATTENTION, *CONVOLUTIONS),
    "attention": ATTENTION,
    "cross-attention": ("*.attn2.*",),
    "text": ("*.attn2.to_k", "*.attn2.to_v"),
    "convolutions": CONVOLUTIONS,
}
"""Patterns on module paths, as diffusers' UNets spell them; None: all that the family takes."""


@dataclass(frozen=True)
class TrainConfig:
    """Flags of the trainer; names as in diffusers' DreamBooth scripts."""

    # What is learnt
    instance_data_dir: str = ""
    """Folder or zip with pictures of the subject or style; a `.txt` beside a picture is its own
    prompt."""
    instance_prompt: str = ""
    """Prompt with the trigger word, such as "a sks dog"."""
    output_dir: str = "atoms-run"
    """Run directory."""
    pretrained_model_name_or_path: str | None = None
    """Diffusers pipeline directory, single safetensors file or hub id; the bundled base when not
    given."""
    revision: str | None = None
    """Revision of the hub repository."""
    variant: str | None = None
    """Which weight files to load, such as fp16."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """What `--base_dtype` is too, under the name that all commands know."""
    base_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """What the frozen base is held in; auto: float32 on a CPU, 16 bits on a GPU."""
    offload: Literal["auto", "none", "model"] = "auto"
    """Whether encoders leave the GPU while they are not needed (model, and auto) or stay (none)."""
    vae: str | None = None
    """Another autoencoder: a folder, a safetensors file or a hub id."""
    text_encoders: str | None = None
    """Where a single file without text encoders takes them from: a pipeline's folder, or another
    single file of its family."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What a single file's UNet predicts, where it is not told right."""
    trigger: str | None = None
    """Words recorded in the file as its trigger; the instance prompt when not given."""
    seed: int = 0
    """Seeds order, noise, timesteps, class pictures and samples."""

    # Pictures
    data_config: str | None = None
    """In place of a folder, a `data.toml` that describes several concepts, each with its pictures,
    prompt, class, repeats and share."""
    dataset_name: str | None = None
    """In place of a folder, a data set of the `datasets` library: hub name or folder."""
    image_column: str = "image"
    """Where `--dataset_name` has its pictures."""
    resolution: int | None = None
    """Side of the training pictures in px; the base's own when not given."""
    aspect_ratio_buckets: str | None = None
    """Keep pictures' proportions: "auto", or sizes such as "64,64;48,80" (height,width; …)."""
    crop_style: Literal["center", "random", "face"] = "center"
    """Which part of a picture is trained on: its middle, parts drawn at random, or that around its
    largest face."""
    face_detector: str | None = None
    """Object detection model of transformers, folder or hub id, that finds faces; OpenCV's, before
    its version 5, when not given."""
    crop_copies: int = 4
    """How many parts of each picture `--crop_style random` draws."""
    random_flip: bool = False
    """Also train on mirrored pictures; wrong for faces, text and whatever has a left and a
    right."""
    color_jitter: float = 0.0
    """Also train on copies whose brightness, contrast, saturation and hue move by this share."""
    color_copies: int = 3
    """How many recoloured copies of each picture `--color_jitter` makes."""
    caption_column: str = "text"
    """Key of the captions in the folder's metadata.jsonl."""
    shuffle_caption: bool = False
    """Let the parts of a caption between commas change places each time it comes."""
    keep_tokens: int = 0
    """How many parts at the front of a caption stay there, whole."""
    caption_tag_dropout_rate: float = 0.0
    """Chance of each further part of a caption to be left out."""
    caption_prefix: str = ""
    """Words before every caption."""
    caption_suffix: str = ""
    """Words after every caption."""
    enable_wildcard: bool = False
    """Draw one of `{a|b}` in a caption each time it comes."""
    proportion_empty_prompts: float = 0.0
    """Share of rows trained with an empty prompt, which keeps guidance working."""
    mask_data_dir: str | None = None
    """Folder with masks named as the pictures; by default `<picture>.mask.png` beside them."""
    alpha_mask: bool = False
    """Mask a picture without a mask by its own opacity."""
    unmasked_weight: float = 0.0
    """Weight of the loss where a mask is black."""
    normalize_masked_area_loss: bool = False
    """Let small masked areas weigh as much as large ones."""
    encoding_cache_dir: str | None = None
    """Folder that keeps encoded pictures and prompts for later runs."""

    # Keeping the class
    with_prior_preservation: bool = False
    """Also train on the class, so that it stays what it was."""
    prior_preservation_mode: Literal["images", "prediction"] = "images"
    """Class pictures, or the base's own prediction for the class prompt, which needs none."""
    class_data_dir: str | None = None
    """Folder with class pictures; missing ones are painted by the base. Default: class_images in
    the run directory."""
    class_prompt: str | None = None
    """Prompt of the class, such as "a dog"."""
    num_class_images: int = 100
    """How many class pictures there should be."""
    prior_loss_weight: float = 1.0
    """Weight of the class's loss."""
    prior_share: float = 0.0
    """Share of a batch's rows that keep the class by prediction, in pictures' place; 0: all do."""
    sample_batch_size: int = 8
    """Class pictures painted at once."""

    # Loss and noise
    loss_type: Literal["l2", "l1", "huber", "smooth_l1"] = "l2"
    """How errors are punished; huber and smooth_l1 are the pseudo-Huber forms."""
    huber_c: float = 0.1
    """Error at which huber and smooth_l1 turn from square to straight."""
    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    """How huber_c depends on the timestep."""
    snr_gamma: float | None = None
    """min-SNR-γ weighting of the loss; 5 is the paper's value. Not used when not given."""
    noise_offset: float = 0.0
    """Offset noise, which lets a picture's mean brightness move; 0.05 to 0.1 is usual."""
    input_perturbation: float = 0.0
    """Extra input noise that is not predicted; 0.1 is the paper's value."""
    rescale_betas_zero_snr: bool = False
    """Train on a noise schedule that ends in pure noise, for bases that predict v; paint with the
    scheduler's option of the same name."""
    timestep_bias_strategy: Literal["none", "earlier", "later", "range"] = "none"
    """Which timesteps are drawn more (or less) often than others."""
    timestep_bias_multiplier: float = 1.0
    """How much more often the chosen timesteps are drawn."""
    timestep_bias_portion: float = 0.25
    """Share of the timesteps that "earlier" or "later" choose."""
    timestep_bias_begin: int = 0
    """First timestep of "range"."""
    timestep_bias_end: int = 1000
    """Timestep after the last of "range"."""

    # Steps and rates
    train_batch_size: int = 4
    """Instance pictures per step and process."""
    max_train_steps: int = 300
    """Optimizer steps in all."""
    gradient_accumulation_steps: int = 1
    """Batches per optimizer step."""
    learning_rate: float | None = None
    """Peak learning rate; by default the variant's own."""
    scale_lr: bool = False
    """Multiply the learning rate by pictures a step: batch, accumulated batches and processes."""
    spatial_learning_rate: float | None = None
    """Rate of the spatial atoms, where it is another; 0 does not train them."""
    block_learning_rate: float | None = None
    """Rate of the block atoms, where it is another; 0 does not train them."""
    text_encoder_lr: float | None = None
    """Rate of the text encoders' atoms, where it is another."""
    lr_scheduler: str = "constant_with_warmup"
    """linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup or
    piecewise_constant."""
    lr_warmup_steps: int = 20
    """Steps of linear warm-up."""
    lr_num_cycles: int = 1
    """Restarts of cosine_with_restarts."""
    lr_power: float = 1.0
    """Exponent of polynomial."""
    lr_step_rules: str | None = None
    """Multipliers of piecewise_constant, such as "1:100,0.1:200,0.01"."""

    # Optimizer
    optimizer: str = "adamw"
    """adamw, prodigy, adafactor, or any importable class such as torch.optim.SGD."""
    optimizer_args: tuple[str, ...] = ()
    """More of the optimizer's arguments, such as momentum=0.9."""
    use_8bit_adam: bool = False
    """AdamW with its state in 8 bits (bitsandbytes)."""
    adam_beta1: float = 0.9
    """AdamW's first decay."""
    adam_beta2: float = 0.99
    """AdamW's second decay."""
    adam_weight_decay: float = 0.0
    """AdamW's weight decay, which pulls the delta to zero."""
    adam_epsilon: float = 1e-8
    """AdamW's ε."""
    prodigy_beta3: float | None = None
    """Prodigy's decay of its step size estimate; the root of beta2 when not given."""
    prodigy_decouple: bool = True
    """Prodigy with decoupled weight decay."""
    prodigy_use_bias_correction: bool = True
    """Prodigy with Adam's bias correction."""
    prodigy_safeguard_warmup: bool = True
    """Prodigy's step size estimate leaves the warm-up out."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 clips none."""
    use_ema: bool = False
    """Keep running averages of the atoms."""
    ema_decay: float = 0.99
    """Decay of the running averages."""
    ema_output: bool = True
    """With `--use_ema`, samples and the final file hold the averages; else the live atoms."""

    # Text encoder
    train_text_encoder: bool = False
    """Also train atoms in the text encoders, kept in the same file."""

    train_text_encoder_ti: bool = False
    """Also learn the embedding of a new word, `--token_abstraction`, kept in the same file."""
    token_abstraction: str = "<new>"
    """The new word, as it stands in the prompts: lower case in angle brackets."""
    num_new_tokens_per_abstraction: int = 2
    """Vectors the new word has."""
    initializer_concept: str | None = None
    """Words whose embeddings the new word starts from; noise when not given."""
    token_lr: float = 1e-3
    """Rate of the new word's embedding."""

    # Memory and speed
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Autocast of the base; atoms stay in float32. A base in 16 bits always has it."""
    allow_tf32: bool = False
    """Let the GPU multiply float32 matrices in TF32, which is faster."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    load_in: Literal["8bit", "4bit"] | None = None
    """Hold the frozen UNet's linear layers in so many bits (bitsandbytes)."""
    dynamo_backend: Literal["no", "eager", "aot_eager", "inductor", "cudagraphs"] = "no"
    """Compile the UNet with torch.compile; inductor is the fast one."""

    # Life cycle
    checkpointing_steps: int = 100
    """Steps between checkpoints."""
    checkpoints_total_limit: int | None = 3
    """How many checkpoints are kept."""
    resume_from_checkpoint: str | None = None
    """"latest", or the name of a checkpoint in the run directory."""

    # Seeing it
    validation_prompt: str | None = None
    """Prompt of the sample pictures; the instance prompt when not given."""
    validation_prompts: tuple[str, ...] = ()
    """Several prompts of sample pictures."""
    validation_scheduler: str | None = None
    """Sampler of the samples, as `sdatoms generate --sampler` takes it; the base's own when not
    given."""
    num_inference_steps: int = 25
    """Denoising steps of the samples and of the pictures that drift is measured on."""
    num_validation_images: int = 4
    """Sample pictures of each prompt each time."""
    num_drift_images: int = 4
    """Pictures of unrelated prompts whose way from the base's is the drift, where samples are
    measured."""
    validation_steps: int = 100
    """Steps between samples, and between measurements of the validation loss; 0 for neither."""
    validation_split: float | None = None
    """Share of the pictures that is held back, by the seed, and only measured: the validation
    loss."""
    num_validation_pictures: int | None = None
    """In place of a share, how many pictures are held back; 0 holds none back."""
    validation_data_dir: str | None = None
    """In place of pictures held back, a folder or zip of others to measure the validation loss
    on."""
    evaluator: str | None = None
    """What measures the samples: clip, dinov2, or a CLIP model, folder or hub id; the bundled base
    has its own."""
    style_evaluator: str | None = None
    """What measures fidelity beside a CLIP model that is not ours: dinov2, clip, or a vision model,
    folder or hub id."""
    best_metric: str | None = None
    """Measured name that chooses the final file: auto, fidelity, alignment, diversity, drift,
    balance, truth, validation_loss."""
    best_metric_goal: Literal["max", "min"] = "max"
    """Whether more or less of `--best_metric` is better."""
    early_stopping_patience: int | None = None
    """Stop when `--best_metric` has not improved for so many measurements."""
    report_to: str | None = None
    """Also write to tensorboard, wandb or another tracker of accelerate; all for each found."""

    push_to_hub: bool = False
    """Upload the finished run to the Hugging Face hub."""
    hub_model_id: str | None = None
    """Repository to upload to; the run directory's name when not given."""

    # The method
    atom_variant: Literal["atoms", "overcomplete", "coefficients", "full"] = "overcomplete"
    """Which tensors are trained."""
    atom_layers: Literal[
        "all", "attention+convolutions", "attention", "cross-attention", "text", "convolutions"
    ] = "all"
    """Which of the denoiser's layers get atoms; text: those of cross-attention that read the
    prompt."""
    atom_decomposition: Literal["linear", "sparse"] = "linear"
    """How coefficients are found."""
    num_atoms: int | None = None
    """Atoms per spatial filter; all the weight has when not given."""
    num_inner_atoms: int | None = None
    """Inner atoms behind each atom in overcomplete and full (3)."""
    block_atoms: int | None = None
    """Atoms of the block view in coefficients and full; all the weight has when not given, and 4
    where layers share them."""
    block_size: int | None = None
    """Side of a channel block in coefficients and full (4)."""
    block_view: Literal["channel", "joint"] | None = None
    """Whether block atoms are shared over kernel positions or hold them (joint)."""
    block_share: float | None = None
    """In place of block_atoms, the share of a layer's weights its block atoms may hold."""
    block_form: Literal["map", "product", "shared"] | None = None
    """How a channel block changes: by one full map, by two small factors, or by atoms that layers
    share (map)."""
    block_factors: Literal["shared", "each"] | None = None
    """Whether blocks share two factors, or layers an encoder, or each has its own (shared)."""
    shared_atoms: Literal["trained", "captions"] = "trained"
    """Whether atoms that layers share are trained, or are fixed: what captions say and other words
    do not."""
    word_decay: float = 0.0
    """How fast trained shared atoms of layers that read the prompt forget what other words than the
    captions' say; 0 not at all."""
    sparsity: float | None = None
    """λ of the sparse decomposition, in units of the weight's root mean square (0.15)."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        check_kinds(self)
        check_settings(self)

    @property
    def trains_text(self) -> bool:
        """Whether prompts must be encoded anew in every step."""
        return self.train_text_encoder or self.train_text_encoder_ti


def make_atom_config(config: TrainConfig) -> AtomConfig:
    """The method's flags as the denoiser's `AtomConfig`; flags not given keep its defaults, budget
    rule included."""
    layers = ATOM_LAYERS[config.atom_layers]
    return AtomConfig(**read_atom_flags(vars(config)), target_modules=layers, seed=config.seed)


def make_text_config(config: TrainConfig) -> AtomConfig:
    """The text encoders' settings: block atoms in every linear layer of a transformer block, since
    there are no spatial filters."""
    layers = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    return replace(
        make_atom_config(config),
        variant="coefficients",
        target_modules=tuple(f"*.{name}" for name in layers),
    )
