"""Class pictures are painted once, for their class."""

from pathlib import Path

import pytest

from sdatoms import AtomError
from sdatoms.training.loop import train


def test_class_pictures_are_painted_once(train_config):
    config = train_config(
        with_prior_preservation=True, class_prompt="cat", num_class_images=3, max_train_steps=1
    )
    steps = list(train(config))
    folder = Path(config.output_dir) / "class_images"
    painted = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert len(painted) == 3 and steps[0].prior_loss is not None
    list(train(config))
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == painted


def test_class_pictures_of_another_class_are_refused(train_config):
    settings = {"with_prior_preservation": True, "num_class_images": 2, "max_train_steps": 1}
    list(train(train_config(class_prompt="cat", **settings)))
    folder = Path(train_config().output_dir) / "class_images"
    first, second = sorted(folder.iterdir())
    with pytest.raises(AtomError, match="were generated for 'cat', not 'dog'"):
        next(train(train_config(class_prompt="dog", **settings)))
    kept = second.read_bytes()
    first.unlink()
    list(train(train_config(class_prompt="cat", **settings)))
    assert first.exists() and second.read_bytes() == kept  # the hole is filled, nothing else
    for path in (first, second):
        path.unlink()
    (folder / ".class-000000000.tmp").write_bytes(b"half a picture of a killed run")
    list(train(train_config(class_prompt="dog", **settings)))
    assert len(list(folder.glob("*.png"))) == 2
