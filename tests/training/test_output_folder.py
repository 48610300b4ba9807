"""What no training wrote is not written over, and what cannot be written is told at once."""

import pytest

from sdatoms import AtomError, train
from sdatoms.training.estimate import estimate
from sdatoms.training.output_folder import FILES, FOLDERS, GIVEN, check_output_folder

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
        with pytest.raises(AtomError, match=f"run' holds {name}, and nothing there says"):
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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("status.json", OURS),
        ("job.json", '{"state": "queued"}'),
        ("report.json", '{"chosen_step": 2}'),
        ("checkpoints/step-000002/state.safetensors", ""),
    ],
)
def test_the_app_and_earlier_runs_own_their_folders_and_copies_of_them(name, said, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "checkpoints" / "step-000002").mkdir(parents=True)
    with pytest.raises(AtomError, match=r"holds metrics.jsonl, checkpoints, and nothing there"):
        check_output_folder(tmp_path)
    (tmp_path / name).write_text(said)
    check_output_folder(tmp_path)


def test_settings_written_for_the_run_are_laid_aside(train_config, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("# mine")
    for _ in range(2):
        list(train(train_config(max_train_steps=1)))
    assert (run / "config.given.toml").read_text() == "# mine"
    assert "max_train_steps = 1" in (run / "config.toml").read_text()


@pytest.mark.parametrize("name", [*FILES, *GIVEN, "log.txt", *FOLDERS])
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


def test_grids_of_an_earlier_run_are_kept(train_config, tmp_path):
    list(train(train_config(max_train_steps=1)))
    (tmp_path / "run" / "before-after.png").write_text("the demo's")
    list(train(train_config(max_train_steps=1)))
    assert (tmp_path / "run" / "earlier" / "1" / "before-after.png").read_text() == "the demo's"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(AtomError, match="run' is a file; name a folder"):
        check_output_folder(tmp_path / "run")
