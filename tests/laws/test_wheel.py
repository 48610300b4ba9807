"""The wheel alone: installed beside its dependencies, away from the sources, it does all of it."""

import os
import socket
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """What `pip wheel .` makes; its build system is the one of the extra `dev`."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--wheel-dir", str(folder)]
    command += ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def place(wheel, tmp_path_factory):
    """A folder with an empty environment `env`, in which the wheel is all there is of sdatoms."""
    folder = tmp_path_factory.mktemp("place")
    venv.create(folder / "env")
    python = str(folder / "env" / "bin" / "python")
    command = [sys.executable, "-m", "pip", "--python", python, "install", str(wheel)]
    subprocess.run([*command, "--no-deps", "--no-index", "--quiet"], check=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    # A folder in a .pth file is searched; its own .pth files, of editable installs, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.fixture
def run(place):
    """A program of the environment, with nothing of the sources in reach."""

    def run_program(name, *words):
        done = subprocess.run(
            [place / "env" / "bin" / name, *words],
            cwd=place,
            env=make_environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_program


def make_environment():
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_it_holds_the_packages_and_the_assets_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sdatoms", "sdatoms_app"}
    for folder in (
        *("emoji-sd", "emoji-clip", "emoji-probe", "subjects/octopus", "truth", "examples"),
    ):
        assert any(name.startswith(f"sdatoms/assets/{folder}/") for name in names), folder
    assert not [name for name in names if name.endswith((".pyc", ".pt"))]


def test_it_is_imported_from_where_it_was_installed(run, place):
    code = "import sdatoms; print(sdatoms.__file__, sdatoms.AtomConfig().variant, sdatoms.train)"
    file, variant, *_ = run("python", "-c", code).split()
    assert Path(file).is_relative_to(place / "env") and variant == "overcomplete"


def test_the_demo_runs(run, place):
    run("sdatoms", "demo", "--max_train_steps", "2", "--output_dir", "demo")
    assert list((place / "demo").rglob("*.safetensors")) and list((place / "demo").rglob("*.png"))


def test_the_trainer_trains(run, place):
    (assets,) = (place / "env").glob("lib/python*/site-packages/sdatoms/assets")
    words = ["--instance_data_dir", str(assets / "subjects" / "octopus"), "--output_dir", "run"]
    words += ["--instance_prompt", "a sks octopus", "--max_train_steps", "2"]
    run("sdatoms", "train", *words, "--validation_steps", "0")
    assert (place / "run" / "atoms.safetensors").is_file()
    assert run("sdatoms", "inspect", "run/atoms.safetensors", "--json").startswith("{")


def test_the_app_answers(place):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [place / "env" / "bin" / "sdatoms", "ui", "--offline", "--port", str(port)],
        cwd=place,
        env=make_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("Running on" in line for line in server.stdout)  # ends when the server does
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert answer.status == 200 and b"gradio" in answer.read()
    finally:
        server.terminate()
        server.communicate()
