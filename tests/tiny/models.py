"""Small relatives of the known models, inputs for all of them, and one training step."""

import torch

from sdatoms.models.families import MODELS
from sdatoms.models.open import build_model

LEVELS = {"norm_num_groups": 8, "cross_attention_dim": 12}
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": 8,
    "vocab_size": 64,
}
DIT = {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12}
FOUR = {"depths": (1, 1, 1, 1), "hidden_sizes": (8, 16, 16, 32), "num_labels": 4}
SMALLER = {
    "sd15-unet": LEVELS | {"block_out_channels": (16, 32, 32, 32), "attention_head_dim": 4},
    "sd21-unet": LEVELS
    | {"block_out_channels": (16, 32, 32, 32), "attention_head_dim": (2, 4, 4, 4)},
    "sdxl-unet": LEVELS
    | {
        "block_out_channels": (16, 32, 32),
        "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": (1, 1, 2),
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 8,
    },
    "clip-l": CLIP,
    "clip-h": CLIP,
    "clip-bigg": CLIP,
    "sd3-transformer": DIT
    | {
        "caption_projection_dim": 16,
        "pooled_projection_dim": 8,
        "sample_size": 8,
        "pos_embed_max_size": 8,
    },
    "flux-transformer": DIT
    | {"axes_dims_rope": (4, 2, 2), "pooled_projection_dim": 8, "in_channels": 16},
    "convnext-base": FOUR | {"image_size": 64},
    "vit-base": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "image_size": 32,
        "patch_size": 8,
        "num_labels": 4,
    },
    "resnet-50": FOUR | {"embedding_size": 8},
    "swin-tiny": {
        "embed_dim": 8,
        "depths": (1, 1),
        "num_heads": (2, 2),
        "window_size": 4,
        "image_size": 32,
        "num_labels": 4,
    },
}
"""Name → config entries that make the model tiny, same class and same kinds of layers."""
assert set(SMALLER) == set(MODELS)


def build_small(name, seed=0):
    return build_model(name, seed=seed, changes=SMALLER[name])


def make_inputs(model, rng):
    """One picture, latent or sentence in the model's dtype."""
    kind, config = type(model).__name__, model.config
    dtype = next(model.parameters()).dtype
    draw = lambda *shape: torch.randn(shape, generator=rng).to(dtype)
    if kind == "UNet2DConditionModel":
        inputs = {"sample": draw(1, config.in_channels, 16, 16), "timestep": torch.tensor([500])}
        inputs["encoder_hidden_states"] = draw(1, 7, config.cross_attention_dim)
        if config.addition_embed_type == "text_time":
            width = (
                config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            )
            inputs["added_cond_kwargs"] = {
                "text_embeds": draw(1, width),
                "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]]),
            }
        return inputs
    if kind.startswith("CLIPText"):
        return {"input_ids": torch.arange(1, 8)[None]}
    if kind in ("SD3Transformer2DModel", "FluxTransformer2DModel"):
        inputs = {
            "encoder_hidden_states": draw(1, 7, config.joint_attention_dim),
            "pooled_projections": draw(1, config.pooled_projection_dim),
        }
        if kind == "SD3Transformer2DModel":
            latent = draw(1, config.in_channels, 8, 8)
            return inputs | {"hidden_states": latent, "timestep": torch.tensor([500.0])}
        return inputs | {
            "hidden_states": draw(1, 16, config.in_channels),
            "timestep": torch.tensor([0.5], dtype=dtype),
            "guidance": torch.tensor([3.5], dtype=dtype),
            "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
            "txt_ids": torch.zeros(7, 3),
        }
    size = getattr(config, "image_size", 64)
    return {"pixel_values": draw(1, 3, size, size)}


def take_step(model, injection, rng):
    """One AdamW step of the atoms towards a smaller output; checks what must hold.

    Returns:
        The names of trained tensors whose gradient is zero.
    """
    base = {name: (p, p._version) for name, p in model.named_parameters() if not p.requires_grad}
    own = dict(injection.named_parameters())
    before = {name: p.detach().clone() for name, p in own.items()}
    optimizer = torch.optim.AdamW(own.values(), lr=1e-3)

    loss = model(**make_inputs(model, rng))[0].float().square().mean()
    loss.backward()
    optimizer.step()

    assert torch.isfinite(loss)
    assert len(base) + len(own) == len(list(model.parameters()))
    for name, (parameter, version) in base.items():
        assert parameter.grad is None and parameter._version == version, name
    for name, parameter in own.items():
        assert torch.isfinite(parameter.grad).all(), name
        assert not torch.equal(parameter, before[name]), name
    return {name for name, p in own.items() if not p.grad.any()}
