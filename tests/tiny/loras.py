"""LoRA files of tiny pipelines, in every spelling that is read."""

import torch
from safetensors.torch import save_file
from torch import nn

from sdatoms.adapters.names import Spelling

LAYERS = {
    "unet": ("conv_in", "*attn1.to_q", "*attn2.to_out.0", "*ff.net.2", "*proj_in", "*.0.conv1"),
    "text_encoder": ("*self_attn.*", "*fc1"),
    "text_encoder_2": ("*self_attn.*", "*fc2"),
}
PAIRS = {
    "kohya": ("lora_down", "lora_up"),
    "diffusers": ("lora_A", "lora_B"),
    "older": ("lora.down", "lora.up"),
}


def list_lora_layers(pipe, components=tuple(LAYERS)):
    """`(component, path, layer)` of what `build_lora` changes."""
    from fnmatch import fnmatchcase

    for component in components:
        module = getattr(pipe, component, None)
        for path, layer in module.named_modules() if module is not None else ():
            fits = any(fnmatchcase(path, pattern) for pattern in LAYERS[component])
            if fits and isinstance(layer, nn.Conv2d | nn.Linear):
                yield component, path, layer


def build_lora(pipe, names="kohya", rank=3, alpha=None, size=0.1, seed=0, **more):
    """Tensors by key. Text encoders are left to the two newer spellings."""
    generator = torch.Generator().manual_seed(seed)
    spelling = Spelling("kohya" if names == "kohya" else "diffusers", hasattr(pipe, "tokenizer_2"))
    down, up = PAIRS[names]
    components = tuple(LAYERS) if names != "older" else ("unet",)
    tensors = {}
    for component, path, layer in list_lora_layers(pipe, components, **more):
        o, i, *kernel = layer.weight.shape
        prefix = spelling.prefix(component, path)
        wide = [1] * len(kernel)
        tensors[f"{prefix}.{down}.weight"] = torch.randn(rank, i, *kernel, generator=generator)
        tensors[f"{prefix}.{up}.weight"] = size * torch.randn(o, rank, *wide, generator=generator)
        if names == "kohya" and alpha is not None:
            tensors[f"{prefix}.alpha"] = torch.tensor(float(alpha))
    return tensors


def save_lora(path, pipe, names="kohya", metadata=None, **settings):
    """Write `build_lora`; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(build_lora(pipe, names, **settings), path, metadata or {"format": "pt"})
    return path
