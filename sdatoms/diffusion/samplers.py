"""Samplers and noise schedules by the names people know them by, and what diffusers calls them.

Names are those of A1111's web UI, after the table in diffusers' documentation
(https://huggingface.co/docs/diffusers/api/schedulers/overview), with two differences. "DPM++ SDE"
is `DPMSolverSDEScheduler`, the port of k-diffusion's sampler, which asks the UNet twice a step; the
table's `DPMSolverSinglestepScheduler` adds no noise. And the Karras, exponential and beta schedules
go from the base's largest noise to its smallest with every sampler, as A1111's do: where diffusers
cuts the ends off by the base's spacing of steps, the spacing becomes "linspace".

A base keeps its noise (β), what its UNet predicts, and with the schedule "normal" its spacing too.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sdatoms.errors import AtomError, clip

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "KnownSampler",
    "KnownSchedule",
    "build_scheduler",
    "check_sampler",
    "name_scheduler",
    "read_sampler",
    "read_schedule",
    "seed_noise",
    "swap_scheduler",
    "write_sampler",
]

MOST_SEED = 1 << 64


@dataclass(frozen=True)
class KnownSchedule:
    """How the noise falls from step to step."""

    name: str
    label: str
    """A1111's "Schedule type"."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of diffusers' scheduler."""
    aliases: tuple[str, ...] = ()
    package: str | None = None
    """What it needs besides diffusers."""


@dataclass(frozen=True)
class KnownSampler:
    """One way from noise to picture."""

    name: str
    """A1111's "Sampler"."""
    scheduler: str
    """diffusers' class."""
    schedules: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    """What other programs call it."""
    automatic: str = "normal"
    """The schedule that A1111's "Automatic" stands for."""
    most_steps: int | None = None
    package: str | None = None
    """What it needs besides diffusers."""
    any_prediction: bool = True
    """Whether it also takes UNets that predict the clean sample."""
    zero_snr: bool = True
    """Whether it takes noise schedules rescaled to a terminal SNR of zero."""


SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
FULL = ("normal", "karras", "exponential", "beta", "sgm_uniform")
SMOOTH = ("normal", "karras", "exponential", "sgm_uniform")
"""Of samplers that learn from earlier steps: the beta schedule's few, uneven steps between small
noises throw them off, so that they paint coloured blots."""
SPACED = ("normal", "sgm_uniform")

SCHEDULES: dict[str, KnownSchedule] = {
    schedule.name: schedule
    for schedule in (
        KnownSchedule("normal", "Normal", aliases=("uniform",)),
        KnownSchedule(
            "karras", "Karras", {"use_karras_sigmas": True, "timestep_spacing": "linspace"}
        ),
        KnownSchedule(
            "exponential",
            "Exponential",
            {"use_exponential_sigmas": True, "timestep_spacing": "linspace"},
        ),
        KnownSchedule(
            "beta",
            "Beta",
            {"use_beta_sigmas": True, "timestep_spacing": "linspace"},
            package="scipy",
        ),
        KnownSchedule(
            "sgm_uniform",
            "SGM Uniform",
            {"timestep_spacing": "trailing"},
            aliases=("sgmuniform", "trailing"),
        ),
    )
}
SAMPLERS: dict[str, KnownSampler] = {
    sampler.name: sampler
    for sampler in (
        KnownSampler("DDIM", "DDIMScheduler", SPACED, {"clip_sample": False}),
        KnownSampler(
            "Euler",
            "EulerDiscreteScheduler",
            FULL,
            aliases=("k_euler",),
            any_prediction=False,
        ),
        KnownSampler(
            "Euler a",
            "EulerAncestralDiscreteScheduler",
            SPACED,
            aliases=("euler_ancestral", "euler_a", "k_euler_a", "k_euler_ancestral"),
            any_prediction=False,
        ),
        KnownSampler(
            "DPM++ 2M",
            "DPMSolverMultistepScheduler",
            SMOOTH,
            {"algorithm_type": "dpmsolver++"},
            aliases=("dpmpp_2m", "k_dpmpp_2m"),
            automatic="karras",
        ),
        KnownSampler(
            "DPM++ SDE",
            "DPMSolverSDEScheduler",
            FULL,
            aliases=("dpmpp_sde", "k_dpmpp_sde"),
            automatic="karras",
            package="torchsde",
            any_prediction=False,
            zero_snr=False,
        ),
        KnownSampler(
            "DPM++ 2M SDE",
            "DPMSolverMultistepScheduler",
            SMOOTH,
            {"algorithm_type": "sde-dpmsolver++"},
            aliases=("dpmpp_2m_sde", "k_dpmpp_2m_sde"),
            automatic="exponential",
        ),
        KnownSampler("UniPC", "UniPCMultistepScheduler", SMOOTH, aliases=("uni_pc",)),
        KnownSampler("LCM", "LCMScheduler", ("normal",), {"clip_sample": False}, most_steps=50),
    )
}


def fold(text: str) -> str:
    """A name without case, spaces and underscores."""
    return "".join(text.lower().split()).replace("_", "")


SAMPLER_NAMES = {
    fold(word): name
    for name, known in reversed(SAMPLERS.items())  # of two with one class, the first is meant
    for word in (name, known.scheduler, *known.aliases)
}
SCHEDULE_NAMES = {
    fold(word): name
    for name, known in SCHEDULES.items()
    for word in (name, known.label, *known.aliases)
}


def read_sampler(sampler: str, schedule: str | None = None) -> tuple[str, str]:
    """Our names of a sampler and its schedule, from those of any program.

    "DPM++ 2M Karras", as A1111 wrote before 1.9, is a sampler and its schedule; "Automatic" is the
    schedule that A1111 takes for the sampler. What is not known stays as it is.
    """
    name = " ".join(sampler.split())
    found = SAMPLER_NAMES.get(fold(name))
    given = SCHEDULE_NAMES.get(fold(schedule or ""))
    if found is None:
        for word, other in SCHEDULE_NAMES.items():
            folded = fold(name)
            if folded.endswith(word) and folded.removesuffix(word) in SAMPLER_NAMES:
                found = SAMPLER_NAMES[folded.removesuffix(word)]
                given = given or other
    if fold(schedule or "") == "automatic":
        schedule, given = None, given or (SAMPLERS[found].automatic if found else None)
    return found or name, given or schedule or "normal"


def read_schedule(schedule: str) -> str:
    """Our name of a schedule, from that of any program; what is not known stays as it is."""
    return SCHEDULE_NAMES.get(fold(schedule), schedule)


def write_sampler(sampler: str, schedule: str) -> str:
    """Both in a few words, such as "DPM++ 2M Karras"; the schedule "normal" goes without saying."""
    known = SCHEDULES.get(schedule)
    words = known.label if known else schedule
    return sampler if schedule == "normal" else f"{sampler} {words}"


def check_sampler(sampler: str, schedule: str = "normal", steps: int | None = None) -> None:
    """See that a sampler and its schedule can be had, by our names.

    Raises:
        AtomError: one of them is unknown, they do not go together, there are more steps than the
            sampler takes, or a package is missing.
    """
    known = SAMPLERS.get(sampler)
    if known is None:
        raise AtomError(f"the sampler {clip(sampler)!r} is unknown; known are {join(SAMPLERS)}")
    if schedule not in SCHEDULES:
        raise AtomError(f"the schedule {clip(schedule)!r} is unknown; known are {join(SCHEDULES)}")
    if schedule not in known.schedules:
        raise AtomError(
            f"{sampler} has no schedule {schedule!r}; it takes {join(known.schedules)}, and "
            f"{schedule!r} goes with {join(list_samplers(schedule))}"
        )
    if steps is not None and known.most_steps is not None and steps > known.most_steps:
        raise AtomError(f"{sampler} takes at most {known.most_steps} steps; {steps} were asked for")
    for package in (known.package, SCHEDULES[schedule].package):
        if package and importlib.util.find_spec(package) is None:
            raise AtomError(
                f"{write_sampler(sampler, schedule)} needs the package {package}; "
                'install it with: pip install "sdatoms[samplers]"'
            )


def list_samplers(schedule: str) -> list[str]:
    """The samplers that take a schedule."""
    return [name for name, known in SAMPLERS.items() if schedule in known.schedules]


def join(names: Iterable[str]) -> str:
    return ", ".join(names)


def build_scheduler(own: Any, sampler: str, schedule: str = "normal") -> Any:
    """diffusers' scheduler for a sampler, with the noise of the base's own.

    Args:
        own: the base's own scheduler.
        sampler: one of `SAMPLERS`.
        schedule: one of `SCHEDULES`.

    Raises:
        AtomError: as `check_sampler`, or the sampler does not go with what the base predicts.
    """
    import diffusers

    check_sampler(sampler, schedule)
    known, config = SAMPLERS[sampler], own.config
    if config.get("prediction_type") == "sample" and not known.any_prediction:
        raise AtomError(
            f"{sampler} does not go with a base that predicts the clean sample; take DDIM"
        )
    if config.get("rescale_betas_zero_snr") and not known.zero_snr:
        raise AtomError(
            f"{sampler} does not go with a base whose noise ends at zero terminal SNR; "
            "take DPM++ 2M SDE"
        )
    plain = dict.fromkeys(SIGMAS, False) if "karras" in known.schedules else {}
    arguments = {**plain, **known.arguments, **SCHEDULES[schedule].arguments}
    return getattr(diffusers, known.scheduler).from_config(config, **arguments)


def name_scheduler(scheduler: Any) -> tuple[str, str]:
    """Our names for a scheduler as diffusers has it, such as a base's own; its class where there is
    none, with the schedule "normal"."""
    config = scheduler.config
    same = [s for s in SAMPLERS.values() if s.scheduler == type(scheduler).__name__]
    algorithm = config.get("algorithm_type")
    fitting = [s for s in same if s.arguments.get("algorithm_type") in (None, algorithm)]
    if not fitting:
        return type(scheduler).__name__, "normal"
    for name, flag in zip(("karras", "exponential", "beta"), SIGMAS, strict=True):
        if config.get(flag) and name in fitting[0].schedules:
            return fitting[0].name, name
    return fitting[0].name, "normal"


@contextmanager
def swap_scheduler(pipe: Any, sampler: str | None, schedule: str | None) -> Iterator[None]:
    """Paint with a sampler in a `with` block; afterwards the pipeline has its own again.

    Args:
        sampler: None: the base's own.
        schedule: None: as the sampler has it.

    Raises:
        AtomError: as `build_scheduler`, or the base's own sampler is none of `SAMPLERS` and so
            takes no schedule.
    """
    own = pipe.scheduler
    if sampler is None and schedule is None:
        yield
        return
    if sampler is None:
        sampler = name_scheduler(own)[0]
        if sampler not in SAMPLERS:
            raise AtomError(
                f"the base's own sampler is {sampler}, which takes no schedule; name one of "
                f"{join(SAMPLERS)} too"
            )
    pipe.scheduler = build_scheduler(own, sampler, schedule or "normal")
    try:
        with warnings.catch_warnings():
            # of torchsde, where the ends of a Brownian path are rounded
            warnings.filterwarnings("ignore", "Should have t[ab]", UserWarning)
            yield
    finally:
        pipe.scheduler = own


def seed_noise(scheduler: Any, seeds: Sequence[int]) -> None:
    """Seed a sampler that draws its noise by itself: DPM++ SDE walks a Brownian path of its own."""
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler_seed = [int(seed) % MOST_SEED for seed in seeds]
