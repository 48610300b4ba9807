"""The flags by which every command that paints is told how: sampler, steps, guidance."""

from __future__ import annotations

import argparse
from typing import Any

from sdatoms.diffusion.samplers import (
    SAMPLERS,
    SCHEDULES,
    check_sampler,
    read_sampler,
    read_schedule,
)
from sdatoms.errors import AtomError

__all__ = [
    "add_sampling_flags",
    "add_size_flags",
    "check_size",
    "read_sampling",
]


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """`--num_inference_steps`, `--guidance_scale`, `--sampler` and what goes with them."""
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument(
        "--guidance_scale",
        type=float,
        default=None,
        help="how strongly the prompt is followed; 1 not at all guided (default: the base's own)",
    )
    parser.add_argument(
        "--guidance_rescale",
        type=float,
        default=0.0,
        help="how far guidance is kept from overexposing, 0 to 1; 0.7 for bases of zero terminal "
        "SNR (default: 0)",
    )
    parser.add_argument(
        "--sampler",
        "--scheduler",
        dest="scheduler",
        default=None,
        metavar="NAME",
        help=f"{', '.join(SAMPLERS)} (default: the base's own)",
    )
    parser.add_argument(
        "--schedule",
        default=None,
        metavar="NAME",
        help=f"of the noise: {', '.join(SCHEDULES)} (default: normal)",
    )
    parser.add_argument(
        "--clip_skip",
        type=int,
        default=1,
        metavar="N",
        help="read the text encoder's layer N from its end: 1 the last, 2 the one before "
        "(default: 1)",
    )


def add_size_flags(parser: argparse.ArgumentParser, note: str = "") -> None:
    """`--height` and `--width`; `note` tells more of the default."""
    for name, other in (("height", "width"), ("width", "height")):
        parser.add_argument(
            f"--{name}",
            type=int,
            default=None,
            help=f"px, a multiple of 8 up to 2048 (default: the base's own{', ' * bool(note)}"
            f"{note}; with --{other} alone, what makes its area)",
        )


def check_size(args: argparse.Namespace) -> None:
    """Refuse sides that no base takes, before one is opened.

    Raises:
        AtomError: a side is too small, too large or no multiple of 8.
    """
    from sdatoms.diffusion.sizes import check_side

    for name in ("width", "height"):
        if getattr(args, name) is not None:
            check_side(name, getattr(args, name))


def read_sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `sdatoms.diffusion.pipeline.paint` that the flags name.

    Raises:
        AtomError: the sampler or the schedule is unknown, or they do not go together.
    """
    scheduler, schedule = args.scheduler, args.schedule
    if scheduler is not None:
        scheduler, schedule = read_sampler(scheduler, schedule)
        check_sampler(scheduler, schedule, args.num_inference_steps)
    elif schedule is not None:
        schedule = read_schedule(schedule)
        if schedule not in SCHEDULES:
            raise AtomError(
                f"the schedule {schedule!r} is unknown; known are {', '.join(SCHEDULES)}"
            )
    names = ("num_inference_steps", "guidance_scale", "guidance_rescale", "clip_skip")
    plain = {name: getattr(args, name) for name in names}
    return {**plain, "scheduler": scheduler, "schedule": schedule}
