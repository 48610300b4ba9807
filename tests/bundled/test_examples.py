"""The example atom files: small, named, licensed, and of the base that is bundled beside them."""

import pytest
from safetensors import safe_open

from sdatoms.files.reader import read_atoms
from sdatoms.fingerprint import fingerprint, matches
from sdatoms.pictures import read_picture
from sdatoms.storage import find_assets

EXAMPLES = sorted((find_assets() / "examples").glob("*.safetensors"))
(UNET,) = (find_assets() / "emoji-sd" / "unet").glob("*.safetensors")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_what_it_is_and_is_of_the_bundled_base(path):
    file = read_atoms(path)
    assert path.stat().st_size <= 700_000
    for key in ("title", "usage_hint", "license", "thumbnail", "trigger_phrase"):
        assert file.metadata.get(f"modelspec.{key}"), key
    width, height = read_picture(path.with_suffix(".webp")).size
    assert width == 2 * height
    name, known = next(iter(file.fingerprints["unet"].items()))
    with safe_open(UNET, "pt") as base:
        found = fingerprint(base.get_tensor(f"{name}.weight").float())
    assert matches(known, found), "python scripts/make_examples.py remakes them"
