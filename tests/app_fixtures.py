"""Fixtures of the app's tests: a tiny base on disk, a folder of atom files, a studio, a server."""

import gc
import shutil
import warnings

import pytest
import torch
from PIL import Image
from sdatoms_app.app import build_app, find_port, launch_settings
from sdatoms_app.library import Library
from sdatoms_app.studio import Order, Studio
from tiny_base import save_tiny_base

import sdatoms
from sdatoms.pictures import make_thumbnail
from sdatoms.pipeline import load_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """The directory of a tiny pipeline."""
    return save_tiny_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def adapters_dir(tiny_base, tmp_path_factory):
    """A run's atoms and checkpoint, a loose file with hostile texts, a pickle and a text file."""
    root = tmp_path_factory.mktemp("adapters")
    pipe = load_base(str(tiny_base))
    thumbnail = make_thumbnail(Image.new("RGB", (32, 32), "teal"))
    for seed, path in enumerate(
        (
            "dog/atoms.safetensors",
            "dog/checkpoints/step-000100/atoms.safetensors",
            "ink.safetensors",
        )
    ):
        injection = sdatoms.inject(pipe.unet, sdatoms.AtomConfig(variant="atoms"))
        with torch.no_grad():
            for parameter in injection.parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                parameter.add_(noise * 0.2)
        trigger = "sks dog" if seed < 2 else "<b>ink</b><img src=x onerror=alert(1)>"
        sdatoms.save_atoms(
            root / path,
            {"unet": injection},
            trigger=trigger,
            base_model=str(tiny_base),
            thumbnail=thumbnail,
        )
        injection.eject()
    (root / "old.safetensors").write_bytes(b"\x80\x04K\x01.")
    (root / "notes.txt").write_text("nothing")
    return root


@pytest.fixture(scope="module")
def studio(tiny_base, adapters_dir, tmp_path_factory):
    """A studio with a library of its own; its lists and outputs last for one test module."""
    copy = tmp_path_factory.mktemp("library") / "adapters"
    shutil.copytree(adapters_dir, copy)
    return Studio(str(tiny_base), Library(copy), tmp_path_factory.mktemp("outputs"))


@pytest.fixture
def order():
    """A small order: two steps of the base alone."""
    return Order("cat face", seed=3, num_inference_steps=2)


@pytest.fixture
def paint(studio, order):
    """Paint an order and return what was kept."""
    return lambda wanted=order: list(studio.paint(wanted))


@pytest.fixture(scope="module")
def serve():
    """Serve a studio from a thread; returns its address without the last slash."""
    apps = []

    def start(studio, **settings):
        with warnings.catch_warnings():  # gradio's and uvicorn's own
            warnings.simplefilter("ignore")
            apps.append(build_app(studio))
            _, url, _ = apps[-1].launch(
                server_name="127.0.0.1",
                server_port=find_port(),
                prevent_thread_lock=True,
                quiet=True,
                **launch_settings(studio),
                **settings,
            )
        return url.rstrip("/")

    yield start
    while apps:
        apps.pop().close()
    gc.collect()  # gradio leaves loops and sockets to the collector: here, not in another test


@pytest.fixture(scope="module")
def address(serve, studio):
    return serve(studio)
