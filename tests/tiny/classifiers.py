"""A classifier small enough for a test, and the command that fine-tunes it."""

from functools import partial

from safetensors.torch import save_file

from sdatoms.classifiers.finetune import add_finetune, run_finetune
from sdatoms.cli.main import run_guarded
from sdatoms.cli.parser import LineParser
from sdatoms.models.cifar_resnet import CifarResNet


def save_resnet(path, model=None):
    """Write a CIFAR ResNet of eight layers as the public checkpoints are; returns the path."""
    state = (model or CifarResNet(1)).state_dict()
    save_file({k: v for k, v in state.items() if "tracked" not in k}, path)
    return str(path)


def finetune(words):
    """What `scripts/finetune_classifier.py` does with these words, without its emoji."""
    parser = LineParser(prog="finetune_classifier.py")
    add_finetune(parser)
    run_guarded(partial(run_finetune, readers={}), parser.parse_args(words))
