"""`Trainer`: what one run trains, and one optimizer step of it; `train` in loop.py drives it.

The loss is Stable Diffusion's denoising error on instance pictures, plus `prior_loss_weight` times
the same on their class.

Reference: Ruiz et al., "DreamBooth", CVPR 2023, https://arxiv.org/abs/2208.12242, equation 2.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdatoms.adapters.words import TrainedTokens
from sdatoms.atoms.deltas import form_once
from sdatoms.diffusion.family import find_side
from sdatoms.diffusion.open import load_base
from sdatoms.errors import AtomError
from sdatoms.files.atom_file import AtomFile
from sdatoms.files.writer import FileFacts, pack_atoms
from sdatoms.layers.inject import without_atoms
from sdatoms.training.batches import Batch, Draw, draw_batches, name_bad_rows
from sdatoms.training.concepts import complete_config
from sdatoms.training.conditions import Condition
from sdatoms.training.config import TrainConfig
from sdatoms.training.failures import check_gradients
from sdatoms.training.folder import PictureFolder
from sdatoms.training.inputs import check_inputs
from sdatoms.training.optimizers import Averages, make_schedule
from sdatoms.training.parts import (
    add_tokens,
    check_sample_sampler,
    inject_atoms,
    make_denoising,
    make_run_optimizer,
    start_word_decay,
)
from sdatoms.training.precision import choose_precision, read_own_dtype, widen_norms
from sdatoms.training.preparation import check_prompts, make_buckets, prepare_data
from sdatoms.training.processes import average

__all__ = [
    "TrainStep",
    "Trainer",
    "choose_attention",
]


class TrainStep(NamedTuple):
    """What one optimizer step reports."""

    step: int
    total: int
    loss: float
    """Weighted mean over the batch, class rows included."""
    instance_loss: float
    prior_loss: float | None
    lr: float
    seconds: float


class Trainer:
    """The state of one run: pipeline, injections, optimizer, training data.

    Args:
        folder: the instance folder, where it was checked already.
        log: takes a line for the run's log.
        report: takes the name of what goes on, before each picture that is painted or encoded.
        accept: called once, when all that can be refused was looked at and before any picture is
            painted or encoded.

    Raises:
        AtomError: pictures, flags or base cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        folder: PictureFolder | None = None,
        log: Callable[[str], None] = lambda text: None,
        report: Callable[[str], None] = lambda phase: None,
        accept: Callable[[Trainer], None] = lambda trainer: None,
    ) -> None:
        self.config = config = complete_config(config)
        self.began = time.time()
        self.folder = folder or check_inputs(config)
        self.log, self.report = log, report
        AcceleratorState._reset_state()  # one process may train twice, with another precision
        place = PartialState().device or torch.device("cpu")
        self.precision = choose_precision(
            config.dtype if config.base_dtype == "auto" else config.base_dtype,
            config.mixed_precision,
            place,
            read_own_dtype(config.pretrained_model_name_or_path, config.variant),
        )
        self.accelerator = Accelerator(mixed_precision=self.precision.mixed)
        self.device = self.accelerator.device
        if config.allow_tf32:
            torch.set_float32_matmul_precision("high")
        self.main = self.accelerator.is_main_process
        self.step = 0
        set_seed(config.seed % (1 << 32))
        self.pipe = load_base(
            config.pretrained_model_name_or_path,
            revision=config.revision,
            variant=config.variant,
            dtype=self.precision.base,
            device=self.device,
            offload="none",
            vae=config.vae,
            text_encoders=config.text_encoders,
            prediction_type=config.prediction_type,
            load_in=config.load_in,
        )
        unet = self.pipe.unet
        if config.load_in and self.device.type == "cpu":
            widen_norms(unet)
        self.resolution: int = config.resolution or find_side(self.pipe)
        self.buckets = make_buckets(self.pipe, config)
        self.denoising = make_denoising(self.pipe, config)
        check_sample_sampler(self.pipe, config)
        self.injections = inject_atoms(self.pipe, config, self.folder.sources)
        self.tokens: dict[str, TrainedTokens] = add_tokens(self.pipe, config)
        backend = config.dynamo_backend
        log(self.precision.describe())
        self.unet: Any = unet if backend == "no" else torch.compile(unet, backend=backend)
        self.prepare_optimizer()
        prompts = [text for s in self.folder.sources for text in s.captions or (s.prompt,)]
        classes = [s.class_prompt or "" for s in self.folder.sources]
        self.notes = check_prompts(self.pipe, [*prompts, config.class_prompt or "", *classes])
        """What a person should know of the prompts."""
        accept(self)
        self.data = prepare_data(
            self.pipe,
            self.injections,
            self.folder,
            self.buckets,
            config,
            paints=self.main,
            wait=self.accelerator.wait_for_everyone,
            log=log,
            report=report,
        )
        self.draw = Draw(
            denoising=self.denoising,
            seed=config.seed,
            batch_size=config.train_batch_size,
            num_processes=self.accelerator.num_processes,
            process=self.accelerator.process_index,
            proportion_empty_prompts=config.proportion_empty_prompts,
            class_prompt=(config.class_prompt or "") if config.with_prior_preservation else None,
            prior_share=config.prior_share,
        )
        self.torn = False
        """Whether an optimizer step began and has not ended."""
        self.checked = False
        """Whether a step's gradients were looked at."""

    def prepare_optimizer(self) -> None:
        """Make the optimizer, its schedule, and what else is kept in checkpoints."""
        config, processes = self.config, self.accelerator.num_processes
        embeddings = [tokens.embeddings for tokens in self.tokens.values()]
        self.optimizer = make_run_optimizer(
            self.injections, embeddings, config, processes=processes, log=self.log
        )
        start_word_decay(self.pipe, self.injections, self.optimizer, config, self.folder.sources)
        self.parameters: list[nn.Parameter] = [
            p for group in self.optimizer.param_groups for p in group["params"]
        ]
        held = {id(p) for p in self.parameters}
        for injection in self.injections.values():
            for parameter in injection.parameters():
                parameter.requires_grad_(id(parameter) in held)
        self.schedule = make_schedule(
            self.optimizer,
            config.lr_scheduler,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
            num_cycles=config.lr_num_cycles,
            power=config.lr_power,
            step_rules=config.lr_step_rules,
        )
        self.scaler = torch.amp.GradScaler(  # pyright: ignore[reportPrivateImportUsage]
            self.device.type, enabled=self.precision.mixed == "fp16"
        )
        named = [
            (f"{component}.{name}", parameter)
            for component, injection in self.injections.items()
            for name, parameter in injection.named_parameters()
        ]
        named += [(f"{c}.tokens.embeddings", t.embeddings) for c, t in self.tokens.items()]
        self.averages = Averages(named, config.ema_decay) if config.use_ema else None

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters)

    def predict(self, unet: Any, noisy: Tensor, batch: Batch, condition: Condition) -> Tensor:
        added = None
        if condition.pooled is not None:
            added = {"text_embeds": condition.pooled, "time_ids": batch.time_ids.to(noisy)}
        return unet(
            noisy,
            batch.timesteps.to(self.device),
            condition.context,
            encoder_attention_mask=condition.mask,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]

    def measure(self, batch: Batch) -> Tensor:
        """Loss of every row of a batch, `(B,)`."""
        device = self.device
        latents, noise, mixed, t = (
            tensor.to(device)
            for tensor in (batch.latents, batch.noise, batch.input_noise, batch.timesteps)
        )
        noisy = self.denoising.mix(latents, mixed, t)
        with self.accelerator.autocast():
            predicted = self.predict(self.unet, noisy, batch, self.data.condition(batch))
            if batch.from_base:
                with torch.no_grad(), without_atoms(self.injections["unet"]):
                    condition = self.data.condition(batch, base=True)
                    target = self.predict(self.pipe.unet, noisy, batch, condition)
            else:
                target = self.denoising.target(latents, noise, t)
        mask = None if batch.mask is None else batch.mask.to(device)
        return self.denoising.error(predicted, target, t, mask)

    def take_step(self) -> TrainStep:
        """One optimizer step over `gradient_accumulation_steps` batches.

        Raises:
            AtomError: the loss or a gradient is no longer finite, or atoms have no gradient in
                the first step; the atoms are as before.
        """
        config, began = self.config, time.perf_counter()
        for component in self.injections:
            getattr(self.pipe, component).train()
        facts = torch.zeros(3, device=self.device)  # loss, instance loss, prior loss
        share, bad = 1 / config.gradient_accumulation_steps, ""
        with self.form_maps():
            for micro in range(config.gradient_accumulation_steps):
                index = self.step * config.gradient_accumulation_steps + micro
                for batch in draw_batches(self.data.instances, self.data.classes, index, self.draw):
                    weight = config.prior_loss_weight if batch.prior else 1.0
                    # The backward pass too: gradient checkpointing runs layers again in it.
                    with choose_attention(self.device):
                        errors = self.measure(batch)
                        self.scaler.scale(weight * errors.mean() * share).backward()
                    mean = errors.detach().mean() * share
                    facts[0] += weight * mean
                    facts[2 if batch.prior else 1] += mean
                    bad = bad or name_bad_rows(batch, errors.detach())
        gradients = self.gather_gradients()
        average([*gradients, facts])
        loss, instance, prior = (float(fact) for fact in facts)
        if not torch.isfinite(facts).all():
            self.optimizer.zero_grad()
            raise AtomError(
                f"the loss became {loss} at step {self.step + 1}{bad}; lower --learning_rate "
                f"({self.optimizer.param_groups[0]['lr']:g} now); the last checkpoint is whole"
            )
        if not self.checked and loss:
            self.check_first_step()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm or math.inf)
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            self.optimizer.zero_grad()
            raise AtomError(
                f"a gradient became {float(norm)} at step {self.step + 1}; lower --learning_rate; "
                "the last checkpoint is whole"
            )
        lr = self.optimizer.param_groups[0]["lr"]
        self.torn = True
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.averages:
            self.averages.update()
        self.optimizer.zero_grad()
        self.step += 1
        self.torn = False
        kept = prior if config.with_prior_preservation else None
        seconds = time.perf_counter() - began
        return TrainStep(self.step, config.max_train_steps, loss, instance, kept, lr, seconds)

    def form_maps(self) -> contextlib.AbstractContextManager[None]:
        """Form the atoms' maps once for all batches of a step; a compiled model forms its own."""
        if self.config.dynamo_backend != "no":
            return contextlib.nullcontext()
        weights = [w for i in self.injections.values() for w in i.weights.values()]
        return form_once(delta for weight in weights for delta in weight.views.values())

    def check_first_step(self) -> None:
        backend = self.config.dynamo_backend
        compiled = None if backend == "no" else backend
        silent = check_gradients(self.injections["unet"], self.parameters, compiled)
        if silent:
            self.log(f"no gradient reaches {len(silent)} tensors of atoms, first {silent[0]}")
        self.checked = True

    def gather_gradients(self) -> list[Tensor]:
        """Every trained tensor's gradient; zeros where this process's rows gave none."""
        found = []
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            found.append(parameter.grad)
        return found

    def live(self) -> dict[str, Tensor]:
        """The atoms as they are now, under the atom file's keys."""
        return {
            f"{component}.{name}": tensor
            for component, injection in self.injections.items()
            for name, tensor in injection.named_tensors()
        } | {f"{c}.tokens.embeddings": t.embeddings for c, t in self.tokens.items()}

    def output(self) -> dict[str, Tensor]:
        """The atoms that samples and the final file hold: the averages where they are asked for."""
        averaged = self.averages.values if self.averages and self.config.ema_output else {}
        return {**self.live(), **averaged}

    def pack(
        self,
        tensors: dict[str, Tensor] | None = None,
        *,
        step: int | None = None,
        thumbnail: str | None = None,
    ) -> AtomFile:
        """An atom file in memory; of the live atoms when no tensors are given."""
        config, held = self.config, self.live() | (tensors or {})
        words = config.trigger or config.instance_prompt
        own = {c: held.pop(f"{c}.tokens.embeddings") for c in self.tokens}
        return pack_atoms(
            self.injections,
            FileFacts(
                trigger=words,
                base_model=config.pretrained_model_name_or_path or "sdatoms/emoji-sd",
                base_revision=config.revision,
                step=self.step if step is None else step,
                seed=config.seed,
                title=words,
                resolution=self.resolution,
                prediction_type=self.denoising.prediction_type,
                thumbnail=thumbnail,
            ),
            tensors=held,
            word=config.token_abstraction if own else None,
            embeddings=own,
        )


def choose_attention(device: torch.device) -> Any:
    """On the CPU the plain kernel: the fused one's backward is three times slower there at small
    sizes."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
