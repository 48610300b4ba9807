"""Which settings of the trainer a visitor may choose, field by field.

`GROUPS` names what is offered, `CAPS` how far whole numbers go, `CHOICES` which words are taken
where the trainer takes more, `HIDDEN` what is not offered, and why. A field of the trainer that
stands neither in `GROUPS` nor in `HIDDEN` fails a test.
"""

from __future__ import annotations

from importlib.util import find_spec

from sdatoms.diffusion.samplers import SAMPLERS, SCHEDULES, write_sampler

__all__ = [
    "CAPS",
    "CHOICES",
    "GROUPS",
    "HIDDEN",
    "PLAIN",
]

PLAIN = ("instance_prompt", "class_prompt", "with_prior_preservation")
"""Settings that stand in the open; all others are folded away, and presets change them."""
GROUPS = {
    "Method": (
        "atom_variant",
        "atom_layers",
        "atom_decomposition",
        "num_atoms",
        "num_inner_atoms",
        "block_size",
        "block_view",
        "block_atoms",
        "block_share",
        "block_form",
        "block_factors",
        "shared_atoms",
        "word_decay",
        "sparsity",
    ),
    "Steps and learning rate": (
        "max_train_steps",
        "train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "scale_lr",
        "spatial_learning_rate",
        "block_learning_rate",
        "lr_scheduler",
        "lr_warmup_steps",
        "lr_num_cycles",
        "lr_power",
        "seed",
    ),
    "Keeping the class what it was": (
        "with_prior_preservation",
        "class_prompt",
        "prior_preservation_mode",
        "prior_loss_weight",
        "prior_share",
        "num_class_images",
        "sample_batch_size",
    ),
    "Pictures": (
        "instance_prompt",
        "trigger",
        "resolution",
        "aspect_ratio_buckets",
        "crop_style",
        "crop_copies",
        "random_flip",
        "color_jitter",
        "color_copies",
        "alpha_mask",
        "unmasked_weight",
        "normalize_masked_area_loss",
    ),
    "Captions": (
        "caption_prefix",
        "caption_suffix",
        "shuffle_caption",
        "keep_tokens",
        "caption_tag_dropout_rate",
        "enable_wildcard",
        "proportion_empty_prompts",
    ),
    "Samples and checkpoints": (
        "validation_prompt",
        "validation_scheduler",
        "num_inference_steps",
        "validation_steps",
        "num_validation_images",
        "num_drift_images",
        "num_validation_pictures",
        "validation_split",
        "best_metric",
        "best_metric_goal",
        "early_stopping_patience",
        "checkpointing_steps",
        "checkpoints_total_limit",
    ),
    "Loss": (
        "loss_type",
        "huber_c",
        "huber_schedule",
        "snr_gamma",
        "noise_offset",
        "input_perturbation",
        "rescale_betas_zero_snr",
        "timestep_bias_strategy",
        "timestep_bias_multiplier",
        "timestep_bias_portion",
        "timestep_bias_begin",
        "timestep_bias_end",
    ),
    "Optimizer": (
        "optimizer",
        "use_8bit_adam",
        "adam_beta1",
        "adam_beta2",
        "adam_weight_decay",
        "adam_epsilon",
        "prodigy_beta3",
        "prodigy_decouple",
        "prodigy_use_bias_correction",
        "prodigy_safeguard_warmup",
        "max_grad_norm",
        "use_ema",
        "ema_decay",
        "ema_output",
    ),
    "Text encoder and new words": (
        "train_text_encoder",
        "text_encoder_lr",
        "train_text_encoder_ti",
        "token_abstraction",
        "num_new_tokens_per_abstraction",
        "initializer_concept",
        "token_lr",
    ),
    "Memory and speed": (
        "mixed_precision",
        "allow_tf32",
        "gradient_checkpointing",
        "load_in",
        "dynamo_backend",
    ),
}
"""Group → the settings offered in it, in order."""
HIDDEN = {
    "dtype": "the server's memory",
    "base_dtype": "the server's memory",
    "offload": "the server's memory",
    "vae": "a path of the server",
    "text_encoders": "a path of the server",
    "prediction_type": "told by the base's own file",
    "instance_data_dir": "the run's own copies of the pictures",
    "data_config": "names folders of the server",
    "face_detector": "a model of the operator's",
    "dataset_name": "the hub, or a folder of the server",
    "image_column": "of a data set",
    "class_data_dir": "a folder of the server",
    "mask_data_dir": "a folder of the server; masks come beside the pictures",
    "output_dir": "the run's own folder",
    "encoding_cache_dir": "a folder of the server",
    "pretrained_model_name_or_path": "the operator's base",
    "revision": "of the operator's base",
    "variant": "of the operator's base",
    "evaluator": "a model of the operator's",
    "style_evaluator": "a model of the operator's",
    "optimizer_args": "any argument of any class",
    "lr_step_rules": "of a schedule that is not offered",
    "caption_column": "captions come as text files",
    "validation_data_dir": "a folder of the server",
    "validation_prompts": "one prompt is asked for",
    "resume_from_checkpoint": "the Runs tab resumes",
    "report_to": "sends numbers elsewhere",
    "push_to_hub": "sends files elsewhere",
    "hub_model_id": "sends files elsewhere",
}
"""Settings that are the operator's or the app's own, and why."""
CAPS = {
    "num_atoms": 4096,
    "num_inner_atoms": 4096,
    "block_size": 4096,
    "block_atoms": 4096,
    "max_train_steps": 20_000,
    "train_batch_size": 64,
    "gradient_accumulation_steps": 64,
    "lr_warmup_steps": 20_000,
    "lr_num_cycles": 1000,
    "seed": 2**32 - 1,
    "num_class_images": 1000,
    "sample_batch_size": 64,
    "resolution": 1024,
    "color_copies": 16,
    "crop_copies": 16,
    "keep_tokens": 1000,
    "validation_steps": 20_000,
    "num_inference_steps": 200,
    "num_validation_images": 16,
    "num_drift_images": 16,
    "num_validation_pictures": 100,
    "early_stopping_patience": 1000,
    "checkpointing_steps": 20_000,
    "checkpoints_total_limit": 20,
    "timestep_bias_begin": 1000,
    "timestep_bias_end": 1000,
    "num_new_tokens_per_abstraction": 16,
}
"""Whole number → the most it takes."""
CHOICES = {
    "aspect_ratio_buckets": ("auto",),
    "crop_style": ("center", "random", *(["face"] if find_spec("cv2") else [])),
    "lr_scheduler": (
        "constant_with_warmup",
        "constant",
        "cosine",
        "cosine_with_restarts",
        "linear",
        "polynomial",
    ),
    "optimizer": ("adamw", "prodigy", "adafactor"),
    "validation_scheduler": tuple(
        write_sampler(name, schedule)
        for name, known in SAMPLERS.items()
        for schedule in ("normal", "karras")
        if schedule in known.schedules
        and all(find_spec(p) for p in (known.package, SCHEDULES[schedule].package) if p)
    ),
    "best_metric": (
        *("auto", "fidelity", "alignment", "diversity", "drift", "balance"),
        "validation_loss",
    ),
}
"""Setting that takes free words elsewhere, and which of them are offered here."""
