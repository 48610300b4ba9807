"""The parts of a run, made from its settings: here alone does a `TrainConfig` meet them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
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
from sdatoms.diffusion.family import find_side
from sdatoms.diffusion.prompts import MAX_WINDOWS, count_tokens
from sdatoms.diffusion.samplers import build_scheduler
from sdatoms.errors import AtomError, clip
from sdatoms.layers.inject import Injection, inject, without_atoms
from sdatoms.training.buckets import Size, list_buckets
from sdatoms.training.class_pictures import make_class_pictures
from sdatoms.training.concepts import list_classes, list_concepts
from sdatoms.training.config import TrainConfig, make_atom_config, make_text_config
from sdatoms.training.data import TrainingData
from sdatoms.training.denoising import Denoising
from sdatoms.training.encodings import Encoded, encode_pictures
from sdatoms.training.faces import load_detector
from sdatoms.training.folder import PictureFolder, Source, check_folder
from sdatoms.training.optimizers import choose_rate, group_parameters, make_optimizer
from sdatoms.training.reading import (
    draw_captions,
    fix_reading_atoms,
    list_other_words,
    list_word_atoms,
    measure_other_words,
)
from sdatoms.training.samples import read_sample_sampler
from sdatoms.training.stopping import stop_together
from sdatoms.training.word_decay import WordDecay

__all__ = [
    "add_tokens",
    "check_prompts",
    "check_sample_sampler",
    "inject_atoms",
    "make_buckets",
    "make_denoising",
    "make_run_optimizer",
    "prepare_data",
    "start_word_decay",
]


def make_buckets(pipe: Any, config: TrainConfig) -> list[Size]:
    """Sizes of the training pictures.

    Raises:
        AtomError: a size does not fit the base.
    """
    factor = pipe.vae_scale_factor
    grid = factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    side = config.resolution or find_side(pipe)
    return list_buckets(config.aspect_ratio_buckets, side, grid, factor)


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


def check_prompts(pipe: Any, prompts: Iterable[str]) -> list[str]:
    """Notes about prompts that are longer than what is read of them.

    Raises:
        AtomError: a weight in one of them is out of range.
    """
    notes = []
    for prompt in dict.fromkeys(prompts):
        count = count_tokens(pipe, prompt)
        if count.windows > MAX_WINDOWS:
            notes.append(
                f"a prompt is cut: of {count.tokens} tokens the first {MAX_WINDOWS * count.window} "
                f"are read of {clip(prompt, 60)!r}"
            )
    return notes


def prepare_data(
    pipe: Any,
    injections: dict[str, Injection],
    folder: PictureFolder,
    buckets: list[Size],
    config: TrainConfig,
    *,
    paints: bool = True,
    wait: Callable[[], None] = lambda: None,
    log: Callable[[str], None] = lambda text: None,
    report: Callable[[str], None] = lambda phase: None,
) -> TrainingData:
    """Paint missing class pictures with the base, and encode pictures and prompts.

    Args:
        injections: switched off meanwhile.
        paints: whether this process paints class pictures; the others wait for it.
        wait: returns when all processes have come here.
        report: takes the name of what goes on, before each picture.
    """
    cache = Path(config.encoding_cache_dir) if config.encoding_cache_dir else None
    concepts, faces = list_concepts(config), config.crop_style == "face"
    prompts = [text for text in (config.class_prompt, *list_classes(config, concepts)) if text]
    prompts += [""] if config.proportion_empty_prompts and not config.trains_text else []
    classes: list[Encoded] | None = None
    instances: list[Encoded] = []
    held: list[Encoded] = []
    class_sources: Sequence[Source] | None = None
    with ExitStack() as stack:
        for injection in injections.values():
            stack.enter_context(without_atoms(injection))
        if config.with_prior_preservation and config.prior_preservation_mode == "images":
            folders = list_classes(config, concepts)
            with stop_together(wait):
                for class_prompt, class_folder in folders.items() if paints else ():
                    make_class_pictures(
                        pipe,
                        class_folder,
                        class_prompt,
                        config.num_class_images,
                        seed=config.seed,
                        batch_size=config.sample_batch_size,
                        log=log,
                        report=lambda: report("class images"),
                    )
            class_sources = [
                source
                for class_prompt, class_folder in folders.items()
                for source in check_folder(class_folder, class_prompt).sources
            ]
        find_face = load_detector(config.face_detector) if faces else None
        with stop_together(wait):
            if class_sources is not None:
                classes = encode_pictures(
                    pipe, class_sources, buckets, cache=cache, report=lambda: report("encoding")
                )
            instances = encode_pictures(
                pipe,
                folder.sources,
                buckets,
                flip=config.random_flip,
                jitter=config.color_jitter,
                copies=config.color_copies,
                seed=config.seed,
                cache=cache,
                crops=config.crop_copies if config.crop_style == "random" else 0,
                find_face=find_face,
                report=lambda: report("encoding"),
                log=log,
            )
            held = encode_pictures(
                pipe,
                folder.held,
                buckets,
                cache=cache,
                find_face=find_face,
                report=lambda: report("encoding"),
                log=log,
            )
        return TrainingData(
            pipe,
            instances,
            classes,
            held=held,
            prompts=prompts,
            trains_text=config.trains_text,
            paints=bool(config.validation_steps and config.num_validation_images),
            cache=cache,
            parks=config.offload != "none",
        )
