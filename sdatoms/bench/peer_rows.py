"""The rows of peers: PEFT's methods, and what needs no library."""

from __future__ import annotations

from typing import Any

from sdatoms.bench.rows import CONVOLUTIONS, EVERYWHERE, PLACES, TEXT, Method, rates_around

__all__ = ["SLOW", "WORD", "list_peers"]

WORD = "<new>"
"""What stands in the trigger's place where a new word is trained."""
SLOW = "BOFT b4 attention + conv"


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


def list_peers() -> list[Method]:
    rows = [Method("full fine-tuning", "all", rates_around(1e-4))]
    for rank in (1, 4, 16):
        rows += use_peft(f"LoRA r{rank}", "LoraConfig", 3e-3, r=rank, lora_alpha=rank)
    rows += [
        Method(
            f"LoRA r4 {place}",
            "LoraConfig",
            rates_around(3e-3),
            {"r": 4, "lora_alpha": 4, "target_modules": pattern},
        )
        for place, pattern in (("text", TEXT), ("all layers", EVERYWHERE))
    ]
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
