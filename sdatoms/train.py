"""DreamBooth training of filter atoms: one loop, a generator.

    for step in train(config):
        print(step.step, step.loss)

The loss is Stable Diffusion's denoising error on instance pictures, plus `prior_loss_weight` times
the same on class pictures, optionally weighted by min-SNR-γ.

Reference: Ruiz et al., "DreamBooth", CVPR 2023, https://arxiv.org/abs/2208.12242, equation 2;
Hang et al., "Min-SNR weighting", ICCV 2023, https://arxiv.org/abs/2303.09556, equation 5.
"""

from __future__ import annotations

import contextlib
import platform
import resource
import tempfile
import time
from collections.abc import Generator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdatoms.adapters import bake_injection
from sdatoms.checkpoint import pack_atoms
from sdatoms.dreambooth import (
    Examples,
    check_folders,
    draw_batch,
    encode_examples,
    make_class_pictures,
)
from sdatoms.errors import AtomError
from sdatoms.inject import inject
from sdatoms.pictures import draw_grid, make_thumbnail
from sdatoms.pipeline import find_base, load_base, paint
from sdatoms.run_directory import RunDirectory
from sdatoms.train_config import DEFAULT_RATES, TrainConfig, make_atom_config

__all__ = ["TrainStep", "Trainer", "estimate", "train"]


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
    """The state of one run: pipeline, injection, optimizer, run directory. `train` drives it."""

    def __init__(self, config: TrainConfig) -> None:
        if not config.instance_data_dir or not config.instance_prompt:
            missing = "instance_data_dir" if not config.instance_data_dir else "instance_prompt"
            raise AtomError(
                f"--{missing} is missing; training needs a folder of pictures and a prompt for them"
            )
        check_folders(
            Path(config.instance_data_dir), config.with_prior_preservation, config.class_prompt
        )
        self.config = config
        AcceleratorState._reset_state()  # one process may train twice, with another precision
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision)
        self.main = self.accelerator.is_main_process
        self.run = RunDirectory(Path(config.output_dir))
        set_seed(config.seed)
        self.began = time.time()
        if self.main:
            self.run.set_status("loading", 0, config.max_train_steps, None)
            self.run.write_config(asdict(config))
        self.pipe = load_base(
            config.pretrained_model_name_or_path,
            revision=config.revision,
            variant=config.variant,
            device=self.accelerator.device,
        )
        for name in ("vae", "text_encoder"):
            getattr(self.pipe, name).requires_grad_(False)
        self.resolution = (
            config.resolution or self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor
        )
        self.instances = encode_examples(
            self.pipe,
            Path(config.instance_data_dir),
            config.instance_prompt,
            self.resolution,
            self.log,
            config.random_flip,
        )
        self.classes = self.prepare_classes()
        self.injection = inject(self.pipe.unet, make_atom_config(config))
        if config.gradient_checkpointing:
            self.pipe.unet.enable_gradient_checkpointing()
        self.unet = (
            self.accelerator.prepare(self.pipe.unet)
            if self.accelerator.num_processes > 1
            else self.pipe.unet
        )
        self.optimizer = torch.optim.AdamW(
            self.injection.parameters(),
            lr=config.learning_rate or DEFAULT_RATES[config.atom_variant],
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            eps=config.adam_epsilon,
        )
        self.scaler = torch.amp.GradScaler(
            self.accelerator.device.type, enabled=config.mixed_precision == "fp16"
        )  # pyright: ignore[reportPrivateImportUsage]
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler,
            self.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.noise_scheduler = make_noise_scheduler(self.pipe)
        self.snr_weights = weigh_timesteps(self.noise_scheduler, config.snr_gamma)
        self.step = 0
        self.samples: list[Image.Image] = []

    def log(self, text: str) -> None:
        if self.main:
            self.run.log(text)

    def prepare_classes(self) -> Examples | None:
        config = self.config
        if not config.with_prior_preservation:
            return None
        folder = (
            Path(config.class_data_dir) if config.class_data_dir else self.run.path / "class_images"
        )
        assert config.class_prompt is not None
        if self.main:
            self.run.set_status("class images", 0, config.max_train_steps, None)
            make_class_pictures(
                self.pipe,
                folder,
                config.class_prompt,
                config.num_class_images,
                seed=config.seed,
                batch_size=config.sample_batch_size,
                log=self.log,
            )
        self.accelerator.wait_for_everyone()
        return encode_examples(self.pipe, folder, config.class_prompt, self.resolution, self.log)

    def take_step(self) -> TrainStep:
        """One optimizer step over `gradient_accumulation_steps` batches."""
        config, device = self.config, self.accelerator.device
        began = time.perf_counter()
        self.unet.train()
        sums = {"loss": 0.0, "instance": 0.0, "prior": 0.0}
        for micro in range(config.gradient_accumulation_steps):
            batch = draw_batch(
                self.instances,
                self.classes,
                index=self.step * config.gradient_accumulation_steps + micro,
                batch_size=config.train_batch_size,
                num_processes=self.accelerator.num_processes,
                process=self.accelerator.process_index,
                num_train_timesteps=self.noise_scheduler.config.num_train_timesteps,
                prior_loss_weight=config.prior_loss_weight,
                seed=config.seed,
            )
            latents, context, noise, t, weights = (tensor.to(device) for tensor in batch)
            noisy = self.noise_scheduler.add_noise(latents, noise, t)
            last = micro == config.gradient_accumulation_steps - 1
            sync = contextlib.nullcontext() if last else self.accelerator.no_sync(self.unet)
            with sync:
                with self.accelerator.autocast(), choose_attention(device):
                    predicted = self.unet(noisy, t, context, return_dict=False)[0]
                error = (
                    (predicted.float() - self.make_target(latents, noise, t))
                    .square()
                    .mean((1, 2, 3))
                )
                error = error * self.snr_weights[batch.timesteps].to(device)
                loss = (weights * error).sum() / config.train_batch_size
                self.scaler.scale(loss / config.gradient_accumulation_steps).backward()
            size, share = config.train_batch_size, 1 / config.gradient_accumulation_steps
            sums["loss"] += float(loss.detach()) * share
            sums["instance"] += float(error.detach()[:size].mean()) * share
            if self.classes is not None:
                sums["prior"] += float(error.detach()[size:].mean()) * share
        if not all(map(torch.isfinite, map(torch.tensor, sums.values()))):
            raise AtomError(
                f"the loss became {sums['loss']} at step {self.step + 1}; lower --learning_rate "
                f"({self.optimizer.param_groups[0]['lr']:g} now); the last checkpoint is whole"
            )
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(list(self.injection.parameters()), config.max_grad_norm)
        lr = self.optimizer.param_groups[0]["lr"]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1
        prior = sums["prior"] if self.classes is not None else None
        seconds = time.perf_counter() - began
        return TrainStep(
            self.step, config.max_train_steps, sums["loss"], sums["instance"], prior, lr, seconds
        )

    def make_target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the UNet should predict, by the scheduler's `prediction_type`."""
        kind = self.noise_scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            return self.noise_scheduler.get_velocity(latents, noise, t)
        return latents

    def save_checkpoint(self) -> None:
        """Atoms, optimizer, schedule, scaler and RNG as `checkpoints/step-…`, without a pickle."""
        if not self.main:
            return
        state: dict[str, Tensor] = {"rng.torch": torch.get_rng_state()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            for name, value in entry.items():
                state[f"optimizer.{index}.{name}"] = torch.as_tensor(value).clone()
        state["schedule.last_epoch"] = torch.tensor(self.lr_scheduler.last_epoch)
        if self.scaler.is_enabled():
            state["scaler.scale"] = torch.tensor(self.scaler.get_scale())
        atoms = self.pack()
        files = {"atoms.safetensors": save_tensors(atoms.tensors, atoms.metadata)}
        self.run.save_checkpoint(self.step, files, state, self.config.checkpoints_total_limit)
        self.log(f"saved checkpoint step-{self.step:06d}")

    def resume(self, wanted: str) -> None:
        """Continue from a checkpoint as if never interrupted; `latest` with none there starts
        afresh."""
        found = self.run.find_checkpoint(wanted)
        if found is None:
            self.log("no checkpoint to resume from; starting afresh")
            return
        step, folder = found
        if step > self.config.max_train_steps:
            raise AtomError(
                f"the checkpoint is at step {step}, past --max_train_steps "
                f"{self.config.max_train_steps}"
            )
        tensors = load_tensors((folder / "atoms.safetensors").read_bytes())
        self.injection.load_state_dict({key.removeprefix("unet."): t for key, t in tensors.items()})
        state = self.run.load_state(folder)
        groups = self.optimizer.state_dict()
        entries: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                entries.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups["param_groups"]})
        schedule = self.lr_scheduler.state_dict() | {"last_epoch": step, "_step_count": step + 1}
        self.lr_scheduler.load_state_dict(schedule)
        rates = [
            base * f(step)
            for base, f in zip(
                self.lr_scheduler.base_lrs, self.lr_scheduler.lr_lambdas, strict=True
            )
        ]  # pyright: ignore[reportAttributeAccessIssue]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.lr_scheduler._last_lr = rates
        if "scaler.scale" in state:
            self.scaler.load_state_dict(
                self.scaler.state_dict() | {"scale": float(state["scaler.scale"])}
            )
        torch.set_rng_state(state["rng.torch"])
        self.step = step
        self.run.trim_metrics(step)
        self.log(f"resumed from step-{step:06d}")

    def pack(self, thumbnail: str | None = None):  # noqa: ANN201
        """The atoms as they are now, as a file in memory."""
        config = self.config
        return pack_atoms(
            {"unet": self.injection},
            trigger=config.trigger or config.instance_prompt,
            base_model=config.pretrained_model_name_or_path or "sdatoms/emoji-sd",
            base_revision=config.revision,
            step=self.step,
            seed=config.seed,
            title=config.trigger or config.instance_prompt,
            resolution=self.resolution,
            prediction_type=self.noise_scheduler.config.prediction_type,
            thumbnail=thumbnail,
        )

    def paint_samples(self, base: bool = False) -> None:
        """Sample pictures as the saved file would give them, or those of the untouched base."""
        config = self.config
        count = config.num_validation_images
        if not self.main or not count or not config.validation_steps:
            return
        prompts = [config.validation_prompt or config.instance_prompt] * count
        rng = torch.get_rng_state()
        tensors = {} if base else self.pack().tensors
        mode = self.pipe.unet.training
        with bake_injection(self.injection, tensors) if tensors else contextlib.nullcontext():
            self.samples = paint(self.pipe, prompts, [config.seed + k for k in range(count)])
        self.pipe.unet.train(mode)
        torch.set_rng_state(rng)
        self.run.samples.mkdir(exist_ok=True)
        name = "base" if base else f"step-{self.step:06d}"
        for k, picture in enumerate(self.samples):
            picture.save(self.run.samples / f"{name}-{k}.png")

    def finish(self) -> None:
        """Write `atoms.safetensors`, the strip of samples and `report.json`."""
        if not self.main:
            return
        thumbnail = make_thumbnail(self.samples[0]) if self.samples else None
        path = self.pack(thumbnail).save(self.run.path / "atoms.safetensors")
        rows = {}
        for picture in sorted(self.run.samples.glob("*-?.png")):
            rows.setdefault(picture.stem.rsplit("-", 1)[0], []).append(Image.open(picture))
        if rows:
            draw_grid(list(rows.values()), list(rows)).save(self.run.path / "samples.png")
        self.run.write_json("report.json", describe_run(self, path))


def describe_run(trainer: Trainer, path: Path) -> dict[str, Any]:
    import diffusers
    import transformers

    import sdatoms

    return {
        "parameters": trainer.injection.num_parameters,
        "bytes": path.stat().st_size,
        "seconds": round(time.time() - trainer.began, 2),
        "steps": trainer.step,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if platform.system() == "Darwin" else 1024),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        "base_model": find_base(trainer.config.pretrained_model_name_or_path).rsplit("/", 1)[-1],
        "instance_pictures": list(trainer.instances.names),
        "class_pictures": len(trainer.classes) if trainer.classes is not None else 0,
        "versions": {
            "sdatoms": sdatoms.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def make_noise_scheduler(pipe: Any) -> Any:
    """The base's own noise schedule for training."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler.from_config(pipe.scheduler.config)


def weigh_timesteps(scheduler: Any, snr_gamma: float | None) -> Tensor:
    """Loss weight of every timestep, `(num_train_timesteps,)`: min(SNR, γ)/SNR for ε, /(SNR + 1)
    for v."""
    steps = scheduler.config.num_train_timesteps
    if snr_gamma is None:
        return torch.ones(steps)
    snr = compute_snr(scheduler, torch.arange(steps))
    shifted = snr + 1 if scheduler.config.prediction_type == "v_prediction" else snr
    return snr.clamp(max=snr_gamma) / shifted


def choose_attention(device: torch.device) -> Any:
    """On the CPU the plain kernel: the fused one's backward is three times slower there at small
    sizes."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()


def train(config: TrainConfig) -> Generator[TrainStep]:
    """Train and yield after every optimizer step. Stop iterating (`close()`) to stop: the state is
    saved first.

    Raises:
        AtomError: pictures, flags or base cannot be used; the loss is no longer finite.
    """
    trainer = Trainer(config)
    if config.resume_from_checkpoint:
        trainer.resume(config.resume_from_checkpoint)
    else:
        trainer.run.trim_metrics(-1)
    total = config.max_train_steps
    trainer.log(
        f"training {trainer.injection.num_parameters} numbers in "
        f"{len(trainer.injection.layers)} layers on {len(trainer.instances)} pictures for {total} "
        "steps"
    )
    phase = "failed"
    try:
        if trainer.step == 0:
            trainer.paint_samples(base=True)
        start, began = trainer.step, time.time()
        while trainer.step < total:
            step = trainer.take_step()
            rate = (time.time() - began) / (step.step - start)
            if trainer.main:
                trainer.run.add_metrics(step._asdict())
                trainer.run.set_status(
                    "training", step.step, total, rate * (total - step.step), force=False
                )
            if step.step % config.checkpointing_steps == 0 and step.step < total:
                trainer.save_checkpoint()
            if config.validation_steps and (
                step.step % config.validation_steps == 0 or step.step == total
            ):
                trainer.paint_samples()
            yield step
        trainer.save_checkpoint()
        trainer.finish()
        phase = "done"
    except GeneratorExit:
        trainer.save_checkpoint()
        phase = "interrupted"
        raise
    finally:
        if trainer.main:
            trainer.run.set_status(phase, trainer.step, total, 0.0)


def estimate(config: TrainConfig) -> dict[str, Any]:
    """Parameters, bytes, memory, steps and minutes of a run, from two real steps in a temporary
    folder."""
    with tempfile.TemporaryDirectory() as folder:
        trial = replace(config, output_dir=folder, resume_from_checkpoint=None)
        if config.with_prior_preservation:
            trial = replace(trial, class_data_dir=config.instance_data_dir, num_class_images=1)
        trainer = Trainer(trial)
        seconds = [trainer.take_step().seconds for _ in range(2)]
        path = trainer.pack().save(Path(folder) / "atoms.safetensors")
        facts = describe_run(trainer, path)
    return {
        "parameters": facts["parameters"],
        "bytes": facts["bytes"],
        "memory": f"{max(facts['peak_memory_bytes'], facts['peak_gpu_bytes']) / 2**30:.1f} GiB",
        "steps": config.max_train_steps,
        "minutes": f"{config.max_train_steps * min(seconds) / 60:.1f} "
        "(without class pictures and samples)",
    }
