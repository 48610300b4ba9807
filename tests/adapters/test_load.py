"""Where `load_atoms` finds a file, and what it says of the rounding."""

import logging
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from sdatoms import AtomConfig, AtomError, inject, load_atoms
from sdatoms.files.writer import pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_pipeline_without_the_file_s_module_is_refused(make_convnet, make_atoms):
    pipe = SimpleNamespace(components={"vae": make_convnet()})
    with pytest.raises(AtomError, match="this SimpleNamespace has no module 'model' that the file"):
        load_atoms(pipe, make_atoms())


def test_a_name_is_a_text(make_convnet, make_atoms):
    for name in (5, ["a"]):
        with pytest.raises(AtomError, match=r"an adapter is named .* it takes a text"):
            load_atoms(make_convnet(), make_atoms(), name=name)


def test_hub_ids_fail_in_one_line_offline():
    code = """
import torch, sdatoms
try:
    sdatoms.load_atoms(torch.nn.Linear(2, 2), "someone/dog", weight_name="dog.safetensors")
except sdatoms.AtomError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path), "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = result.stdout.splitlines()
    assert line.startswith("'someone/dog' is no local file and cannot be had from the hub: ")


def test_folders_give_the_named_file(tmp_path, make_convnet, make_atoms):
    file = make_atoms()
    file.save(tmp_path / "inner" / "dog.safetensors")
    file.save(tmp_path / "atoms.safetensors")
    adapters = load_atoms(make_convnet(), tmp_path)
    assert adapters.names == ("atoms",)
    hub = {"weight_name": "dog.safetensors", "subfolder": "inner"}
    assert load_atoms(make_convnet(), tmp_path, **hub).names == ("dog",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_of_half_bases_is_told_and_warned_of_where_it_is_large(
    make_convnet, perturb, dtype, caplog
):
    """A delta below half a unit in the last place vanishes; ten percent of loss is the border."""

    def file_of(size):
        return pack_atoms({"unet": perturb(inject(make_convnet(), AtomConfig("atoms")), size)})

    with pytest.warns(UserWarning, match="loses .* % of the change; load the pipeline with"):
        load_atoms(make_convnet().to(dtype), file_of(1e-4))
    caplog.set_level(logging.INFO, "sdatoms.adapters.load")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_atoms(make_convnet().to(dtype), file_of(0.3))
    (line,) = caplog.messages
    assert re.fullmatch(r"rounding to 16-bit weights loses \d\.\d\d % of the change", line)
