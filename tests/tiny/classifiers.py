"""The classifier scripts as modules, and a classifier small enough for a test."""

import importlib
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from safetensors.torch import save_file

from sdatoms.models.cifar_resnet import CifarResNet

SCRIPTS = Path(__file__).parents[2] / "scripts"


@contextmanager
def open_scripts(**modules):
    """Name → module of `scripts/`, importable while the context lasts."""
    sys.path.append(str(SCRIPTS))
    yield SimpleNamespace(**{k: importlib.import_module(name) for k, name in modules.items()})
    sys.path.remove(str(SCRIPTS))


def save_resnet(path, model=None):
    """Write a CIFAR ResNet of eight layers as the public checkpoints are; returns the path."""
    state = (model or CifarResNet(1)).state_dict()
    save_file({k: v for k, v in state.items() if "tracked" not in k}, path)
    return str(path)
