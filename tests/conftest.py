"""What `tests/tiny` builds, as fixtures: no network, no downloads, seconds on a CPU.

Atom files that many tests ask for alike are built once a session and handed out as copies. Files
of long tests come first, so that of two processes none is left to work alone at the end.
"""

import copy
import gc
import os
import re
import socket
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from tiny import atoms, pictures, pipelines, runs
from tiny.consoles import Forge
from tiny.evaluator import save_tiny_evaluator
from tiny.modules import ConvNet, build

from sdatoms import AtomConfig, inject, save_atoms
from sdatoms.files.writer import FileFacts, pack_atoms

LONGEST = (
    "laws/test_site.py",
    "laws/test_consoles.py",
    "app/queue/test_worker.py",
    "app/test_access.py",
    "training/test_failures.py",
    "laws/test_other_libraries.py",
    "app/test_surroundings.py",
    "app/test_security.py",
    "app/generate/test_tab.py",
    "app/generate/test_canvas.py",
    "app/train/test_tab.py",
    "app/train/test_page.py",
    "bench/test_transfer.py",
    "cli/test_train.py",
)
"""Files whose tests are few and long: they start processes and browsers."""


ROOT = Path(__file__).parent.parent
PRODUCT = re.compile(re.escape(str(ROOT)) + "/(sdatoms|app)/")


def pytest_configure(config):
    """Hand files out in the order below, not in xdist's own, which puts few long tests last."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """The longest files first, then those of most tests; the order within a file stays."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    counts = Counter(item.path for item in items)
    last = len(LONGEST)
    items.sort(key=lambda i: (places.get(i.path, last), -counts[i.path], str(i.path)))


def pytest_collection_finish():
    """Objects of the libraries that test files import live to the end: every later collection of
    garbage passes them by, which else takes a third of a second, thousands of times."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """Say which files took longest, setting up included, so that `LONGEST` stays true."""
    seconds = Counter()
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        if hasattr(report, "duration") and hasattr(report, "nodeid"):
            seconds[report.nodeid.partition("::")[0]] += report.duration
    lines = [f"{took:6.1f}  {name}" for name, took in seconds.most_common(40) if took >= 5]
    if lines:
        terminalreporter.section(f"{sum(seconds.values()):.0f} seconds, by file")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def no_code_cache(monkeypatch):
    """Sparse codes of tests do not belong in the user's cache directory."""
    monkeypatch.setenv("SDATOMS_CODE_CACHE", "0")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Threads only wait for each other on tensors this small, the more so on a busy machine; the
    same holds in processes that a test starts."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def whole_pictures(monkeypatch):
    """The library and the app write no picture straight to its place, where it can be read half
    written: they go through `save_image`."""
    save = Image.Image.save

    def save_elsewhere(picture, fp, *args, **options):
        caller = sys._getframe(1).f_code.co_filename
        if isinstance(fp, (str, os.PathLike)) and PRODUCT.match(caller):
            raise AssertionError(f"{caller} writes {fp} in place")
        save(picture, fp, *args, **options)

    monkeypatch.setattr(Image.Image, "save", save_elsewhere)


@pytest.fixture
def offline(monkeypatch):
    """A machine on which no name has an address, without a proxy, whose user asked for nothing."""

    def find_nothing(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", find_nothing)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return find_nothing


@pytest.fixture
def tolerance():
    """dtype → what `torch.testing.assert_close` may overlook after a few layers."""
    return {
        torch.float64: {"rtol": 1e-9, "atol": 1e-9},
        torch.float32: {"rtol": 1e-4, "atol": 1e-5},
        torch.float16: {"rtol": 1e-2, "atol": 1e-2},
        torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2},
    }


@pytest.fixture
def make_unet():
    """The tiny UNet by seed."""
    return lambda seed=0: pipelines.build_unet(seed=seed)


@pytest.fixture
def make_convnet():
    """The tiny convolutional net by seed, in evaluation mode."""
    return lambda seed=0: build(ConvNet, seed=seed).eval()


@pytest.fixture
def make_pipe():
    """A tiny pipeline in memory, with `make_unet()` in it; its pictures are 8 px or as asked."""

    def make(size=8):
        return pipelines.build_pipeline(size=size, width=12, tokens=8)

    return make


@pytest.fixture
def unet_inputs(rng):
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=rng),
        "timestep": torch.tensor([3, 500]),
        "encoder_hidden_states": torch.randn(2, 5, 12, generator=rng),
    }


@pytest.fixture
def run_unet(unet_inputs):
    """The UNet's output on fixed inputs, in the UNet's dtype."""

    @torch.no_grad()
    def run(unet):
        inputs = {
            k: v.to(unet.dtype) if v.is_floating_point() else v for k, v in unet_inputs.items()
        }
        return unet(**inputs).sample

    return run


@pytest.fixture
def perturb():
    """Move every atom away from where it starts; returns the injection."""
    return atoms.perturb


@pytest.fixture(scope="session")
def built():
    """Atom files of this session, by all that they depend on."""
    return {}


@pytest.fixture
def make_file(tmp_path, make_unet, built):
    """Save atoms that were tuned on `make_unet()`; returns the path."""

    def make(name="dog", seed=1, size=0.05, **config):
        key = ("unet", name, seed, size, repr(sorted(config.items())))
        path = tmp_path / f"{name}.safetensors"
        if key in built:
            path.write_bytes(built[key])
            return path
        injection = atoms.perturb(inject(make_unet(), AtomConfig(**config)), size, seed)
        save_atoms(path, {"unet": injection}, trigger=f"sks {name}")
        built[key] = path.read_bytes()
        return path

    return make


@pytest.fixture
def make_atoms(make_convnet, built):
    """An atom file in memory, tuned on `make_convnet(base)`, or on that base as another dtype
    stores it; its component is `model`."""

    def make(trigger="sks dog", seed=1, size=0.05, base=0, dtype=torch.float32, **config):
        key = ("model", trigger, seed, size, base, dtype, repr(sorted(config.items())))
        if key not in built:
            model = make_convnet(base).to(dtype).float()
            injection = atoms.perturb(inject(model, AtomConfig(**config)), size, seed)
            built[key] = pack_atoms({"model": injection}, FileFacts(trigger, f"base {base}"))
        return copy.deepcopy(built[key])

    return make


@pytest.fixture
def sparse_file(tmp_path, make_atoms):
    """Save sparse atoms tuned on `make_convnet()`; returns the path."""

    def make(name="dog", seed=1, variant="full", **settings):
        file = make_atoms(f"sks {name}", seed, decomposition="sparse", variant=variant, **settings)
        return file.save(tmp_path / f"{name}.safetensors")

    return make


@pytest.fixture
def sample_files(tmp_path, make_convnet, built):
    """Every form an atom file of `make_convnet()` can take, by name; its component is `model`."""
    if "samples" not in built:
        built["samples"] = atoms.build_samples(make_convnet)
    files = built["samples"]
    return {name: file.save(tmp_path / f"{name}.safetensors") for name, file in files.items()}


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory):
    """Directory of a tiny pipeline of 16 px pictures, by kind (sd, sd2, sdxl) and prediction."""
    made = {}

    def make(kind="sd", prediction_type="epsilon"):
        key = (kind, prediction_type)
        if key not in made:
            made[key] = pipelines.save_pipeline(tmp_path_factory.mktemp(kind) / "pipe", *key)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Directory of a tiny base of 64 px pictures."""
    return pipelines.save_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def forge():
    """Commands as processes of their own that have imported everything already."""
    made = Forge()
    yield made
    made.close()


@pytest.fixture(scope="session")
def evaluator_folder(tmp_path_factory):
    """Directory of a tiny evaluator."""
    return save_tiny_evaluator(tmp_path_factory.mktemp("evaluator") / "tiny")


@pytest.fixture
def make_pictures(tmp_path):
    """A folder of noisy pictures; returns its path."""
    return lambda name="pictures", *args, **kwargs: pictures.save_pictures(
        tmp_path / name, *args, **kwargs
    )


@pytest.fixture
def subject(tmp_path):
    """A folder of three plain pictures with captions; returns its path."""
    path = tmp_path / "subject"
    path.mkdir()
    for letter, colour in zip("abc", ("red", "green", "blue"), strict=True):
        Image.new("RGB", (16, 16), colour).save(path / f"{colour}.png")
        (path / f"{colour}.txt").write_text(f"a sks {letter} cat")
    return path


@pytest.fixture
def train_config(tmp_path, tiny_pipeline, make_pictures, one_thread):
    """A run of four steps on four pictures and a tiny base; keyword arguments change it."""

    def make(kind="sd", prediction_type="epsilon", **changes):
        folder = tmp_path / "pictures"
        given = {
            "instance_data_dir": str(folder if folder.exists() else make_pictures()),
            "output_dir": str(tmp_path / "run"),
            "pretrained_model_name_or_path": str(tiny_pipeline(kind, prediction_type)),
        }
        return runs.make_config(**given | changes)

    return make
