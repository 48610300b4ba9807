"""What a training step holds at its peak, at sizes that this machine cannot run.

A step is gone through with tensors that have shapes and no numbers (`FakeTensorMode`), while a
ledger adds up the storages that live at once: weights, what backward keeps, gradients, the
optimizer's moments. Attention is the kernel that keeps no scores, as on a GPU. What a device's
libraries and its kernels' scratch space take comes on top.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sdatoms.bench.training import RIVALS, Case, make_step, open_unet, put_in
from sdatoms.diffusion.placement import FIXED

__all__ = [
    "CARDS",
    "SIZES",
    "Ledger",
    "count_step",
    "count_steps",
    "fake_tensors",
    "fuse_attention",
]

SIZES = {
    "sd15": Case("sd15-unet", 512, 1, 2),
    "sd21": Case("sd21-unet", 768, 1, 2),
    "sdxl": Case("sdxl-unet", 1024, 1, 2),
}
"""UNets at their native size."""
CARDS = (8, 12, 16, 24)
"""GB of memory; what a desktop takes of it is not counted."""


class Ledger(TorchDispatchMode):
    """Bytes of all storages that live at once, counted as operations make them."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def note(self, tensor: Tensor) -> None:
        """Count the tensor's storage until it is freed; views of it count once."""
        storage = tensor.untyped_storage()
        key, count = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.live += count
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.drop, key, count)

    def drop(self, key: int, count: int) -> None:
        self.known.discard(key)
        self.live -= count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in tree_iter(result):
            if isinstance(part, Tensor):
                self.note(part)
        return result


def fake_tensors(
    model: nn.Module, parameters: Iterable[nn.Parameter], mode: FakeTensorMode
) -> list[nn.Parameter]:
    """Put tensors without numbers in place of the model's own; return those of `parameters`."""
    made: dict[int, Any] = {}

    def fake(tensor: Tensor) -> Any:
        if id(tensor) not in made:
            twin = mode.from_tensor(tensor.detach())
            if isinstance(tensor, nn.Parameter):
                twin = nn.Parameter(twin, requires_grad=tensor.requires_grad)
            made[id(tensor)] = twin
        return made[id(tensor)]

    wanted = list(parameters)  # kept alive: an id is its tensor's own while that lives
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            held.update({k: fake(x) for k, x in held.items() if x is not None})
    twins = [fake(p) for p in wanted]
    with mode, torch.no_grad():
        for twin in twins:
            twin.add_(0)  # a layer looks whether its atoms were ever written to
    return twins


def fuse_attention(device: torch.device) -> Any:
    """The kernel that works through the scores in tiles, which GPUs take by themselves."""
    return sdpa_kernel(SDPBackend.FLASH_ATTENTION)


def count_step(case: Case, method: str, *, checkpointing: bool = True) -> dict[str, Any]:
    """Bytes of one method's step, of the base in bfloat16, from the second step on.

    Args:
        method: of `sdatoms.bench.training.METHODS`.
        checkpointing: whether activations are computed again in backward instead of kept.
    """
    unet = open_unet(case, torch.bfloat16)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    parameters = put_in(unet, method).parameters
    mode, ledger = FakeTensorMode(allow_non_fake_inputs=True), Ledger()
    twins = fake_tensors(unet, parameters, mode)
    for tensor in (*unet.parameters(), *unet.buffers()):
        ledger.note(tensor)
    weights = ledger.live
    with mode, ledger:
        step = make_step(unet, twins, case, fuse_attention)
        for _ in range(2):  # the optimizer's moments come with the first
            step()
    return {
        "parameters": sum(p.numel() for p in twins),
        "px": case.px,
        "batch": case.batch,
        "weights_bytes": weights,
        "peak_bytes": ledger.peak,
        "card_gb": next((gb for gb in CARDS if ledger.peak + FIXED <= gb * 10**9), None),
    }


def count_steps(
    names: Sequence[str], methods: Sequence[str], rival: str | None = None
) -> Iterator[dict[str, dict[str, dict[str, Any]]]]:
    """UNet → method → its step, as far as they are known; `to_lora` is the peak by that of `rival`,
    or of the LoRA of rank 4 on the same layers."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names:
        rows = found[name] = {}
        others = {method: rival or RIVALS.get(method, method) for method in methods}
        for method in dict.fromkeys((*others.values(), *methods)):
            row = rows[method] = count_step(SIZES[name], method)
            other = rows[others.get(method, method)]
            row["to_lora"] = round(row["peak_bytes"] / other["peak_bytes"], 3)
            yield found
