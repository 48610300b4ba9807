"""The parts of a run, made from its settings.

A `TrainConfig` meets them here, and their data in `preparation.py`; it goes no further.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from sdatoms.adapters.words import (
    TrainedTokens,
    add_word,
    check_word,
    list_encoders,
    start_embeddings,
)
from sdatoms.diffusion.samplers import build_scheduler
from sdatoms.errors import AtomError
from sdatoms.layers.inject import Injection, inject
from sdatoms.training.config import TrainConfig, make_atom_config, make_text_config
from sdatoms.training.denoising import Denoising
from sdatoms.training.folder import Source
from sdatoms.training.optimizers import choose_rate, group_parameters, make_optimizer
from sdatoms.training.reading import (
    draw_captions,
    fix_reading_atoms,
    list_other_words,
    list_word_atoms,
    measure_other_words,
)
from sdatoms.training.samples import read_sample_sampler
from sdatoms.training.word_decay import WordDecay

__all__ = [
    "add_tokens",
    "check_sample_sampler",
    "inject_atoms",
    "make_denoising",
    "make_run_optimizer",
    "start_word_decay",
]


def check_sample_sampler(pipe: Any, config: TrainConfig) -> None:
    """See that the base takes the sampler of the samples and its steps, where there are samples.

    Raises:
        AtomError: it does not go with what the base predicts, or with its noise; or there are more
            steps than the base was trained for.
    """
    sampling = read_sample_sampler(config)
    most = pipe.scheduler.config.get("num_train_timesteps", 1000)
    if config.validation_steps and config.num_inference_steps > most:
        raise AtomError(
            f"--num_inference_steps is {config.num_inference_steps}; this base takes 1 to {most}"
        )
    if "scheduler" in sampling:
        build_scheduler(pipe.scheduler, sampling["scheduler"], sampling["schedule"])


def make_denoising(pipe: Any, config: TrainConfig) -> Denoising:
    """Noise schedule and loss."""
    return Denoising(
        pipe.scheduler.config,
        loss_type=config.loss_type,
        huber_c=config.huber_c,
        huber_schedule=config.huber_schedule,
        snr_gamma=config.snr_gamma,
        noise_offset=config.noise_offset,
        input_perturbation=config.input_perturbation,
        unmasked_weight=config.unmasked_weight,
        normalize_masked_area_loss=config.normalize_masked_area_loss,
        rescale_betas_zero_snr=config.rescale_betas_zero_snr,
        timestep_bias_strategy=config.timestep_bias_strategy,
        timestep_bias_multiplier=config.timestep_bias_multiplier,
        timestep_bias_portion=config.timestep_bias_portion,
        timestep_bias_begin=config.timestep_bias_begin,
        timestep_bias_end=config.timestep_bias_end,
    )


def inject_atoms(
    pipe: Any, config: TrainConfig, sources: Sequence[Source] = ()
) -> dict[str, Injection]:
    """Freeze the base and put atoms into it; component → injection.

    Args:
        sources: the pictures, whose captions `--shared_atoms captions` reads.

    Raises:
        AtomError: no layer takes atoms, or there is nothing to read.
    """
    encoders = {name: encoder for name, (encoder, _) in list_encoders(pipe).items()}
    for module in (pipe.vae, *encoders.values()):
        module.requires_grad_(False)
    injections = {"unet": inject(pipe.unet, make_atom_config(config))}
    if config.shared_atoms == "captions":
        fix_reading_atoms(pipe, injections["unet"], draw_captions(sources))
    if config.train_text_encoder:
        for name, encoder in encoders.items():
            injections[name] = inject(encoder, make_text_config(config))
    if config.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
        for name in injections.keys() & encoders.keys():
            encoders[name].gradient_checkpointing_enable()
    return injections


def add_tokens(pipe: Any, config: TrainConfig) -> dict[str, TrainedTokens]:
    """Give the pipeline the new word, where one is learnt; component → its embeddings.

    Raises:
        AtomError: the base knows the word already, or the initializer concept holds no token.
    """
    if not config.train_text_encoder_ti:
        return {}
    word, count = config.token_abstraction, config.num_new_tokens_per_abstraction
    encoders = list_encoders(pipe)
    start = {
        component: start_embeddings(*pair, count, config.initializer_concept)
        for component, pair in encoders.items()
    }
    check_word(pipe, word, start)
    add_word(pipe, "training", word, start)
    return {name: TrainedTokens(*pair, word, count) for name, pair in encoders.items()}


def make_run_optimizer(
    injections: dict[str, Injection],
    embeddings: Sequence[nn.Parameter],
    config: TrainConfig,
    *,
    processes: int,
    log: Callable[[str], None],
) -> torch.optim.Optimizer:
    """The optimizer over atoms and a new word's embeddings, each at its rate.

    Raises:
        AtomError: every rate is 0, or the optimizer cannot be made.
    """
    pictures = config.train_batch_size * config.gradient_accumulation_steps * processes
    rate = choose_rate(
        config.learning_rate,
        variant=config.atom_variant,
        optimizer=config.optimizer,
        pictures_per_step=pictures if config.scale_lr else 1,
    )
    groups = group_parameters(
        injections,
        rate,
        spatial=config.spatial_learning_rate,
        block=config.block_learning_rate,
        text_encoder=config.text_encoder_lr,
        embeddings=embeddings,
        # Prodigy takes one rate for all.
        embeddings_rate=None if config.optimizer == "prodigy" else config.token_lr,
    )
    if not groups:
        raise AtomError("every learning rate is 0; there is nothing to train")
    return make_optimizer(
        groups,
        rate,
        name=config.optimizer,
        arguments=config.optimizer_args,
        eight_bit=config.use_8bit_adam,
        adam={
            "betas": (config.adam_beta1, config.adam_beta2),
            "weight_decay": config.adam_weight_decay,
            "eps": config.adam_epsilon,
        },
        prodigy={
            "decouple": config.prodigy_decouple,
            "use_bias_correction": config.prodigy_use_bias_correction,
            "safeguard_warmup": config.prodigy_safeguard_warmup,
            "beta3": config.prodigy_beta3,
        },
        log=log,
    )


def start_word_decay(
    pipe: Any,
    injections: dict[str, Injection],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    sources: Sequence[Source],
) -> None:
    """Where `--word_decay` asks for it, turn the denoiser's shared atoms that read words away from
    what other words say, and let them decay so after every step of the optimizer.

    Args:
        sources: the pictures, whose captions' words are no other words.

    Raises:
        AtomError: the tokenizer's vocabulary holds hardly any words, or no atoms read words alone.
    """
    if not config.word_decay:
        return
    atoms = list_word_atoms(injections["unet"])
    words = list_other_words(pipe, draw_captions(sources))
    others = measure_other_words(pipe, words, random.Random(0))
    decay = WordDecay(others, config.word_decay, atoms)
    decay.start()
    decay.follow(optimizer)
