"""`Method`, a row of the comparison, and the rows of atoms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sdatoms.training.config import ATOM_LAYERS

__all__ = [
    "BASE",
    "CONVOLUTIONS",
    "EVERYWHERE",
    "PLACES",
    "TEXT",
    "Method",
    "list_atoms",
    "rates_around",
]

ATTENTION = r".*(to_q|to_k|to_v|to_out\.0)"
CONVOLUTIONS = r".*(conv1|conv2|conv_shortcut|samplers\.0\.conv|to_q|to_k|to_v|to_out\.0)"
CROSS = r".*attn2\.(to_q|to_k|to_v|to_out\.0)"
TEXT = r".*attn2\.(to_k|to_v)"
"""The layers that read the prompt."""
PLACES = {"cross-attention": CROSS, "attention": ATTENTION, "attention + conv": CONVOLUTIONS}
EVERYWHERE = f"{CONVOLUTIONS}|.*(conv_in|conv_out|proj_in|proj_out|net\\.0\\.proj|net\\.2)"
"""The layers that block atoms take by default."""
LORA_LAYERS = (
    "*.to_q",
    "*.to_k",
    "*.to_v",
    "*.to_out.0",
    "*.conv1",
    "*.conv2",
    "*.conv_shortcut",
    "*samplers.0.conv",
)
"""Those of `CONVOLUTIONS`, as atoms are told."""


@dataclass(frozen=True)
class Method:
    """One row: how something is trained, and the learning rates that are tried first."""

    name: str
    tuner: str
    """`atoms`, `all`, `biases`, `singular values`, `subspaces`, `word`, or the name of a PEFT
    config."""
    rates: tuple[float, ...]
    """Five, ascending; the grid grows where the best is at an edge."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the PEFT config or the tuner."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `TrainConfig` other than its defaults, those of atoms among them."""
    targets: tuple[str, ...] | None = None
    """Patterns on the paths of layers that get atoms; None: the default."""
    spatial: float = 1.0
    """Rate of spatial atoms, as a multiple of the rate."""
    strength: str = ""
    """How the saved atoms are painted with, as `sdatoms.atoms.schedules` spells it; empty: at 1."""
    group: Literal["base", "atoms", "peers", "ablations"] = "peers"
    note: str = ""
    """What one has to know of the row."""
    left_out: str = ""
    """Why it is tried only where it is asked for by name."""

    @property
    def is_foreign(self) -> bool:
        """Whether another library may refuse it."""
        return self.tuner.endswith("Config")

    def describe(self) -> dict[str, Any]:
        """All that a result depends on, as JSON."""
        return {
            "tuner": self.tuner,
            "options": dict(self.options),
            "training": dict(self.training),
            "targets": list(self.targets) if self.targets else None,
            "spatial": self.spatial,
            "strength": self.strength,
        }


def rates_around(middle: float) -> tuple[float, ...]:
    """Five rates, about √10 apart."""
    steps = [m * 10.0**e for e in range(-7, 2) for m in (1, 3)]
    place = min(range(len(steps)), key=lambda k: abs(steps[k] / middle - 1))
    return tuple(float(f"{rate:g}") for rate in steps[place - 2 : place + 3])


def use_atoms(name: str, middle: float, targets: Any = None, **settings: Any) -> Method:
    training = {k if k != "variant" else "atom_variant": v for k, v in settings.items()}
    return Method(
        name, "atoms", rates_around(middle), training=training, targets=targets, group="atoms"
    )


def list_atoms() -> list[Method]:
    rows = [
        use_atoms("atoms, 4 a filter", 3e-2, variant="atoms", num_atoms=4),
        use_atoms("atoms", 3e-2, variant="atoms"),
        use_atoms("overcomplete", 1e-2, variant="overcomplete"),
        use_atoms("coefficients", 1e-2, variant="coefficients"),
        use_atoms("full", 1e-2, variant="full"),
    ]
    rows += [
        use_atoms(f"{v}, sparse", 1e-2, variant=v, atom_decomposition="sparse")
        for v in ("atoms", "overcomplete", "coefficients", "full")
    ]
    blocks = {"variant": "coefficients"}
    for view, sides in (
        ("channel", {2: None, 4: None, 8: 0.045, 16: 0.045}),
        ("joint", {4: 0.045, 8: 0.045, 16: 0.01}),
    ):
        for side, share in sides.items():
            more = {"block_share": share} if share else {}
            rows.append(
                use_atoms(
                    f"coefficients b{side} {view}" + (f", share {share}" * bool(share)),
                    1e-2,
                    **blocks,
                    block_size=side,
                    block_view=view,
                    **more,
                )
            )
    rows += [
        use_atoms(
            f"coefficients b8 channel, share {share}",
            1e-2,
            **blocks,
            block_size=8,
            block_view="channel",
            block_share=share,
        )
        for share in (0.01, 0.15)
    ]
    rows += [
        use_atoms("coefficients b2", 1e-2, variant="coefficients", block_size=2),
        use_atoms("full atoms b2", 3e-3, variant="full", block_size=2),
    ]
    product = {"block_form": "product"}
    middles = {6: 3e-3, 8: 3e-3, 12: 3e-3, 16: 3e-3, 24: 1e-3, 32: 1e-3, 64: 1e-3}
    for side, middle in middles.items():
        rows.append(use_atoms(f"product b{side}", middle, **blocks, **product, block_size=side))
        for place, layers, rate in (
            ("LoRA's layers", LORA_LAYERS, middle),
            ("cross-attention", ATOM_LAYERS["cross-attention"], 3e-3),
        ):
            rows.append(
                use_atoms(
                    f"product b{side}, {place}",
                    rate,
                    layers,
                    **blocks,
                    **product,
                    block_size=side,
                )
            )
        rows.append(
            use_atoms(
                f"product b{side} + spatial",
                middle,
                variant="full",
                num_inner_atoms=1,
                **product,
                block_size=side,
            )
        )
    rows += [
        use_atoms(
            f"product b{side}, one a block",
            middles[side],
            **blocks,
            **product,
            block_size=side,
            block_factors="each",
        )
        for side in (8, 16)
    ]
    rows.append(
        use_atoms(
            "product b16 + spatial, one a block",
            3e-3,
            variant="full",
            num_inner_atoms=1,
            **product,
            block_size=16,
            block_factors="each",
        )
    )
    rows += [
        use_atoms(
            f"shared r{count}{label}, {place}",
            3e-3,
            layers,
            **blocks,
            block_form="shared",
            block_atoms=count,
            **factors,
        )
        for label, factors in (("", {}), (" each", {"block_factors": "each"}))
        for place, layers in (
            ("text", ATOM_LAYERS["text"]),
            ("cross-attention", ATOM_LAYERS["cross-attention"]),
            ("LoRA's layers", LORA_LAYERS),
        )
        for count in (1, 2, 4, 8, 16, 32)
    ]
    rows += [
        use_atoms(
            f"word decay 10 r{count} each, {place}",
            1e-3,
            **blocks,
            block_form="shared",
            block_atoms=count,
            block_factors="each",
            atom_layers=layers,
            word_decay=10.0,
        )
        for place, layers, counts in (
            ("cross-attention", "cross-attention", (16,)),
            ("all layers", "all", (4, 8, 16)),
            ("attention + conv", "attention+convolutions", (2, 4, 8, 16)),
        )
        for count in counts
    ]
    rows += [
        use_atoms(
            f"{name} r{count}{label}, text",
            middle,
            **blocks,
            block_form="shared",
            block_atoms=count,
            **factors,
            atom_layers="text",
            **settings,
        )
        for name, middle, settings in (
            ("reading", 1e-2, {"shared_atoms": "captions"}),
            ("word decay 10", 1e-3, {"word_decay": 10.0}),
        )
        for label, factors in (("", {}), (" each", {"block_factors": "each"}))
        for count in (1, 2, 4, 8, 16)
    ]
    return rows


BASE = Method("base", "none", (), group="base")
"""The row of what was not trained."""
