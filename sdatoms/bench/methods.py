"""The methods that personalization is compared by, as a table: atoms, peers and ablations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sdatoms.bench.peers import (
    Peer,
    hold_atoms,
    join_word,
    tune_all,
    tune_biases,
    tune_peft,
    tune_singular_values,
    tune_word,
)
from sdatoms.layers.inject import inject
from sdatoms.models.families import FAMILY_EXCLUDES
from sdatoms.training.config import TrainConfig, make_atom_config
from sdatoms.training.parts import inject_atoms

__all__ = ["BASE", "METHODS", "TRIGGER", "Method", "attach_method", "count_method"]

TRIGGER, WORD = "sks", "<new>"
ATTENTION = r".*(to_q|to_k|to_v|to_out\.0)"
CONVOLUTIONS = r".*(conv1|conv2|conv_shortcut|samplers\.0\.conv|to_q|to_k|to_v|to_out\.0)"
PLACES = {"attention": ATTENTION, "attention + conv": CONVOLUTIONS}
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
    """`atoms`, `all`, `biases`, `singular values`, `word`, or the name of a PEFT config."""
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


def use_peft(name: str, config: str, middle: float, note: str = "", **options: Any) -> list[Method]:
    """A row for attention and one for attention and convolutions."""
    return [
        Method(
            f"{name} {place}",
            config,
            rates_around(middle),
            {**options, "target_modules": pattern},
            note=note,
        )
        for place, pattern in PLACES.items()
    ]


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
        rows.append(
            use_atoms(
                f"product b{side}, LoRA's layers",
                middle,
                LORA_LAYERS,
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
    return rows


def list_peers() -> list[Method]:
    rows = [Method("full fine-tuning", "all", rates_around(1e-4))]
    for rank in (1, 4, 16):
        rows += use_peft(f"LoRA r{rank}", "LoraConfig", 3e-3, r=rank, lora_alpha=rank)
    rows.append(
        Method(
            "LoRA r4 all layers",
            "LoraConfig",
            rates_around(3e-3),
            {"r": 4, "lora_alpha": 4, "target_modules": EVERYWHERE},
        )
    )
    rows += use_peft("DoRA r4", "LoraConfig", 3e-3, r=4, lora_alpha=4, use_dora=True)
    rows += use_peft("LoHa r4", "LoHaConfig", 3e-3, r=4, alpha=4)
    rows += use_peft("LoKr r4", "LoKrConfig", 3e-3, r=4, alpha=4)
    rows += use_peft(
        "OFT b4",
        "OFTConfig",
        3e-3,
        "PEFT unfolds convolutions without padding, which fails on maps of 2×2",
        r=0,
        oft_block_size=4,
    )
    rows += use_peft(
        "BOFT b4",
        "BOFTConfig",
        3e-3,
        "without its CUDA kernel PEFT takes one butterfly factor",
        boft_block_size=4,
    )
    return [
        *rows,
        Method("BitFit", "biases", rates_around(3e-3)),
        Method("singular values", "singular values", rates_around(3e-2), {"targets": CONVOLUTIONS}),
        Method(
            "textual inversion",
            "word",
            rates_around(1e-2),
            training={"train_text_encoder_ti": True, "token_abstraction": WORD},
        ),
    ]


ABLATED = "product b16"
"""The row that every ablation changes in one point."""
CHANGES: dict[str, dict[str, Any]] = {
    "weight decay 1": {"adam_weight_decay": 1.0},
    "weight decay 10": {"adam_weight_decay": 10.0},
    "averages": {"use_ema": True},
    "prior by prediction": {
        "with_prior_preservation": True,
        "prior_preservation_mode": "prediction",
    },
    "prior by prediction, a quarter of the rows": {
        "with_prior_preservation": True,
        "prior_preservation_mode": "prediction",
        "prior_share": 0.25,
    },
    "prior by prediction, half": {
        "with_prior_preservation": True,
        "prior_loss_weight": 0.5,
        "prior_preservation_mode": "prediction",
    },
    "no warm-up": {"lr_warmup_steps": 0},
    "warm-up 100": {"lr_warmup_steps": 100},
    "falling rate": {"lr_scheduler": "cosine"},
    "min-SNR 5": {"snr_gamma": 5.0},
    "offset noise": {"noise_offset": 0.05},
    "early steps": {"timestep_bias_strategy": "earlier", "timestep_bias_multiplier": 2.0},
    "late steps": {"timestep_bias_strategy": "later", "timestep_bias_multiplier": 2.0},
    "empty prompts 0.1": {"proportion_empty_prompts": 0.1},
    "text encoder too": {"train_text_encoder": True},
}
PARTS = {
    "attention alone": ("*.attentions.*",),
    "convolutions alone": ("*.resnets.*", "*samplers.*"),
    "down alone": ("down_blocks.*",),
    "middle alone": ("mid_block.*",),
    "up alone": ("up_blocks.*",),
}
STRENGTHS = {
    "strength 0.8": "0.8",
    "strength 1.2": "1.2",
    "half over the first 0.3 of the steps": "0.5 until 0.3, then 1",
    "half over the last 0.3 of the steps": "1 until 0.7, then 0.5",
    "falling from 1.2 to 0.6": "1.2 to 0.6",
}
"""What is painted with, by the noise level; the training is the same."""


def list_ablations(rows: Mapping[str, Method]) -> list[Method]:
    own, beside = rows[ABLATED], rows[f"{ABLATED} + spatial"]
    changed = [
        replace(own, name=f"{ABLATED}: {name}", training={**own.training, **change})
        for name, change in CHANGES.items()
    ]
    changed += [
        replace(own, name=f"{ABLATED}: {name}", targets=paths) for name, paths in PARTS.items()
    ]
    changed += [
        replace(beside, name=f"{beside.name}: spatial rate x {ratio:g}", spatial=ratio)
        for ratio in (0.3, 3.0, 10.0)
    ]
    changed += [
        replace(own, name=f"{ABLATED}: {name}", strength=text) for name, text in STRENGTHS.items()
    ]
    return [replace(row, group="ablations") for row in changed]


SLOW = "BOFT b4 attention + conv"


def list_methods() -> dict[str, Method]:
    rows = {row.name: row for row in [*list_atoms(), *list_peers()]}
    rows[SLOW] = replace(rows[SLOW], left_out="a step takes 47 processor seconds without CUDA")
    return rows | {row.name: row for row in list_ablations(rows)}


METHODS = list_methods()
"""Name → row."""
BASE = Method("base", "none", (), group="base")
"""The row of what was not trained."""


def attach_method(pipe: Any, method: Method, config: TrainConfig) -> Peer:
    """Put a method into a pipeline, in place; everything else is frozen.

    Raises:
        AtomError: no layer takes it.
    """
    base = config.pretrained_model_name_or_path or "sdatoms/emoji-sd"
    for name in ("vae", "text_encoder"):
        getattr(pipe, name).requires_grad_(False)
    if method.tuner == "atoms":
        word = tune_word(pipe, TRIGGER, WORD) if config.train_text_encoder_ti else None
        if method.targets:
            left = FAMILY_EXCLUDES.get(type(pipe.unet).__name__)
            atoms = replace(
                make_atom_config(config), target_modules=method.targets, exclude_modules=left
            )
            held = hold_atoms({"unet": inject(pipe.unet, atoms)}, base)
        else:
            held = hold_atoms(inject_atoms(pipe, config), base)
        return join_word(held, word) if word else held
    if method.tuner == "all":
        return tune_all(pipe.unet)
    if method.tuner == "biases":
        return tune_biases(pipe.unet)
    if method.tuner == "singular values":
        return tune_singular_values(pipe.unet, method.options["targets"])
    if method.tuner == "word":
        return tune_word(pipe, TRIGGER, WORD)
    import peft

    return tune_peft(pipe.unet, getattr(peft, method.tuner)(**method.options))


def count_method(peer: Peer) -> dict[str, int]:
    """Trained numbers, bytes of the file, and layers."""
    numbers = sum(p.numel() for p in peer.parameters)
    return {"numbers": numbers, "bytes": len(peer.save()), "layers": peer.layers}
