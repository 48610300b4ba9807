"""Following a training by its checkpoints: what is measured, and which courses are odd."""

import shutil
from pathlib import Path

import pytest
from sdatoms_app.atoms.following import Follower, judge_course
from sdatoms_app.studio.library import Library
from sdatoms_app.studio.studio import Studio

from sdatoms import AtomError, read_atoms
from sdatoms.adapters.changes import measure_changes
from sdatoms.training.loop import train


@pytest.mark.parametrize(
    ("points", "word"),
    [
        ([], ""),
        ([(100, 0.02)], ""),
        ([(100, 0.02), (200, 0.035), (300, 0.047)], ""),  # as it goes
        ([(100, 0.02), (200, 0.04), (300, 0.06)], ""),  # in a straight line
        ([(100, 0.02), (200, 0.1)], "explodes"),
        ([(100, 0.3), (200, 0.6)], "little of the base is left"),
        ([(100, float("nan"))], "no numbers"),
        ([(100, 0.0)], "Nothing has changed"),
        ([(100, 0.05), (200, 0.0501), (300, 0.0502)], "stands still"),
        ([(100, 0.05), (200, 0.0501)], ""),  # one interval is no verdict
    ],
)
def test_a_hint_is_given_where_the_change_explodes_or_stands_still(points, word):
    hint = judge_course(points)
    assert word in hint and bool(hint) == bool(word)


def test_the_course_of_a_run_is_that_of_its_checkpoints(train_config, tmp_path):
    config = train_config(output_dir=str(tmp_path / "atoms" / "my-run"), learning_rate=1e-3)
    list(train(config))
    studio = Studio(
        config.pretrained_model_name_or_path, Library(tmp_path / "atoms"), tmp_path / "pictures"
    )
    follower = Follower(studio)
    assert follower.list_runs() == ["my-run"]
    points = follower.measure("my-run")
    assert [step for step, _ in points] == [2, 4] and 0 < points[0][1] < points[1][1]
    path = Path(config.output_dir) / "checkpoints" / "step-000004" / "atoms.safetensors"
    changes = [row.change for row in measure_changes(read_atoms(path), studio.open())]
    assert points[1][1] == pytest.approx(sum(changes) / len(changes))
    assert "Change of the weights" in follower.show("my-run")
    shutil.rmtree(path.parent)  # the trainer deletes old ones
    assert [step for step, _ in follower.measure("my-run")] == [2]
    for name in ("nothing", "../my-run", "<b>"):
        with pytest.raises(AtomError, match="has no checkpoint"):
            follower.measure(name)
