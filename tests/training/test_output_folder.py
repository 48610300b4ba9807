"""What no training wrote is not written over, and what cannot be written is told at once."""

import pytest

from sdatoms import AtomError, train
from sdatoms.training.estimate import estimate
from sdatoms.training.output_folder import FILES, FOLDERS, KEPT, check_output_folder

OURS = '{"phase": "done"}'


def list_files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", FILES)
def test_a_folder_with_files_of_another_program_is_left_alone(name, train_config, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / name).write_text("mine")
    (run / "picture.png").write_text("mine too")
    config = train_config()
    before = list_files(tmp_path)
    for call in (lambda: next(train(config)), lambda: estimate(config)):
        with pytest.raises(AtomError, match=f"run' holds {name}, which no training wrote"):
            call()
        assert list_files(tmp_path) == before


def test_a_run_is_written_over_and_other_things_in_a_folder_stay(train_config, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("picture.png", "notes.txt"):
        (run / name).write_text("mine")
    for _ in range(2):
        list(train(train_config(max_train_steps=1)))
    assert (run / "picture.png").read_text() == (run / "notes.txt").read_text() == "mine"
    assert (run / "atoms.safetensors").is_file()


@pytest.mark.parametrize("name", ["status.json", "job.json", "checkpoints/step-000002/state"])
def test_the_app_and_earlier_runs_own_their_folders(name, tmp_path):
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(AtomError, match="holds config.toml, which no training wrote"):
        check_output_folder(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(OURS)
    check_output_folder(tmp_path)


@pytest.mark.parametrize("name", [*FILES, *KEPT, *FOLDERS])
def test_files_that_are_folders_and_folders_that_are_files_are_told(name, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "status.json").write_text(OURS)
    (run / name).unlink(missing_ok=True)
    if name in FOLDERS:
        (run / name).write_text("x")
    else:
        (run / name).mkdir()
    with pytest.raises(AtomError, match=f"run' holds '{name}', which is no f"):
        check_output_folder(run)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(AtomError, match="run' is a file; name a folder"):
        check_output_folder(tmp_path / "run")
