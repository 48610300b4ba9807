"""What a base's pictures are guided by where nobody says, read before it is opened and after."""

import inspect
import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
from tiny.families import Bases, open_narrow
from tiny.pipelines import save_base

from sdatoms import AtomError
from sdatoms.cli.main import main
from sdatoms.diffusion.family import PIPELINES
from sdatoms.diffusion.guidance import (
    GUIDANCE_ENTRY,
    choose_guidance,
    find_guidance,
    read_guidance,
)
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.picture_file import read_recipe
from sdatoms.diffusion.pipeline import paint


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return Bases(tmp_path_factory.mktemp("families"))


@pytest.fixture
def make_base(tmp_path):
    """A base that says what it is guided by; returns its folder."""

    def make(said):
        folder = save_base(tmp_path / "base")
        index = folder / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {GUIDANCE_ENTRY: said}))
        return folder

    return make


@pytest.mark.parametrize(
    ("name", "form", "scale"),
    [
        ("1.x", "directory", 7.5),
        ("2.x v", "directory", 7.5),
        ("XL", "directory", 5.0),
        ("XL", "single file", 5.0),
        ("1.x", "single file", 7.5),
        ("XL inpainting", "directory", 5.0),
    ],
)
def test_a_family_has_its_own(bases, name, form, scale):
    path = bases.find(name, form, "float16")
    assert read_guidance(path) == find_guidance(open_narrow(path, "float16")) == scale


@pytest.mark.parametrize("kind", PIPELINES)
def test_it_is_what_diffusers_pipeline_takes(kind):
    asked = inspect.signature(getattr(diffusers, kind).__call__).parameters["guidance_scale"]
    assert choose_guidance({}, kind) == asked.default


def test_the_bundled_base_says_so_itself_and_keeps_it_where_it_is_saved(tmp_path):
    pipe = load_base(None)
    assert read_guidance(None) == find_guidance(pipe) == 3.5
    pipe.save_pretrained(tmp_path / "copy")
    assert read_guidance(str(tmp_path / "copy")) == 3.5
    assert find_guidance(load_base(str(tmp_path / "copy"))) == 3.5


@pytest.mark.parametrize("said", ["4", None, float("nan"), -1, 31, [3.5], {}])
def test_what_is_no_scale_is_passed_over(make_base, said):
    folder = str(make_base(said))
    assert read_guidance(folder) == find_guidance(load_base(folder)) == 7.5


def test_no_base_has_the_default(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    for where in (tmp_path, tmp_path / "none", tmp_path / "a.safetensors"):
        assert read_guidance(str(where)) == 7.5


def test_pictures_are_guided_by_it_and_say_so(make_base, tmp_path, capsys):
    folder = str(make_base(2.5))
    words = ["generate", "cat", "--pretrained_model_name_or_path", folder]
    words += ["--num_inference_steps", "2", "--output_dir", str(tmp_path / "out")]
    main(words)
    own = Path(capsys.readouterr().out.strip())
    assert read_recipe(own).guidance_scale == 2.5
    main([*words, "--guidance_scale", "6"])
    assert read_recipe(Path(capsys.readouterr().out.strip())).guidance_scale == 6
    pipe = load_base(folder)
    drawn = {
        scale: np.asarray(paint(pipe, ["cat"], [0], num_inference_steps=2, guidance_scale=scale)[0])
        for scale in (None, 2.5, 7.5)
    }
    assert np.array_equal(drawn[None], drawn[2.5])
    assert not np.array_equal(drawn[None], drawn[7.5])


@pytest.mark.parametrize("scale", [1e308, float("inf"), 10**400])
def test_guidance_that_leaves_no_finite_numbers_paints_nothing(make_base, scale):
    with pytest.raises(AtomError, match=r"no finite numbers came out at|takes a finite number"):
        paint(
            load_base(str(make_base(2.5))),
            ["cat"],
            [0],
            num_inference_steps=2,
            guidance_scale=scale,
        )
