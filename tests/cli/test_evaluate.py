"""`sdatoms evaluate`: the rows it names, one JSON object, and one line for wrong input."""

import json

import pytest

from sdatoms.cli.evaluate import name_files
from sdatoms.cli.main import main
from sdatoms.evaluation.evaluator import Evaluator


@pytest.fixture
def pipe(make_pipe):
    return make_pipe(size=16)


def test_rows_are_named_by_stem_unless_two_are_alike():
    assert [n for n, _ in name_files([("a/x.st", 1), ("b/y.st", 2)])] == ["x", "y"]
    assert [n for n, _ in name_files([("a/x.st", 1), ("b/x.st", 2)])] == ["a/x.st", "b/x.st"]


def test_wrong_input_is_one_line(refuse, tmp_path, make_file, evaluator_folder, subject):
    file = str(make_file(variant="atoms"))
    tiny = ["--evaluator", str(evaluator_folder)]
    for argv, word in (
        ([str(tmp_path / "none.safetensors")], "none.safetensors"),
        ([file, "--seeds", "0"], "--seeds is 0"),
        ([file, "--batch_size", "0"], "--batch_size is 0"),
        ([file, file], "twice"),
        ([file, "--width", "63"], "63"),
        ([file, "--subject", str(tmp_path / "nowhere")], "nowhere"),
        ([file, "--evaluator", str(subject)], "style_head.safetensors"),
        ([file, *tiny, "--pretrained_model_name_or_path", str(subject)], "model_index.json"),
        ([], "FILE"),
    ):
        assert not refuse(["evaluate", *argv], word)


def test_the_command_prints_one_json_object(
    capsys, one_thread, pipe, evaluator_folder, make_file, tmp_path
):
    pipe.save_pretrained(tmp_path / "base")
    main(
        [
            "evaluate",
            str(make_file(variant="atoms")),
            "--pretrained_model_name_or_path",
            str(tmp_path / "base"),
            "--evaluator",
            str(evaluator_folder),
            "--seeds",
            "2",
            "--prompt",
            "a cat",
            "--num_inference_steps",
            "2",
            "--json",
        ]
    )
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert facts["prompts"] == ["a cat"] and facts["seeds"] == 2
    names = [row["name"] for row in facts["rows"]]
    assert names[:2] == ["dog", "base without atoms"]
    assert facts["parameters"]["dog"] > 0
    assert not any("truth" in row for row in facts["rows"]) and "true pictures" not in err


def test_pictures_are_painted_in_the_size_that_is_asked_for(
    one_thread, pipe, evaluator_folder, make_file, tmp_path, monkeypatch
):
    pipe.save_pretrained(tmp_path / "base")
    seen, embed = set(), Evaluator.embed_styles

    def look(self, pictures):
        seen.update(picture.size for picture in pictures)
        return embed(self, pictures)

    monkeypatch.setattr(Evaluator, "embed_styles", look)
    given = f"--evaluator {evaluator_folder} --seeds 1 --num_inference_steps 1 --width 32"
    base = ["--pretrained_model_name_or_path", str(tmp_path / "base"), "--prompt", "a cat"]
    main(["evaluate", str(make_file(variant="atoms")), *base, *given.split(), "--height", "48"])
    assert seen == {(32, 48)}


def test_absent_columns_are_said_in_one_line(
    capsys, one_thread, pipe, evaluator_folder, make_file, subject, tmp_path
):
    pipe.save_pretrained(tmp_path / "base")
    words = ["--pretrained_model_name_or_path", tmp_path / "base", "--subject", subject]
    words += ["--evaluator", evaluator_folder, "--seeds", 1, "--num_inference_steps", 1]
    words += ["--prompt", "a cat"]
    main(["evaluate", *map(str, [make_file(variant="atoms"), *words])])
    out, err = capsys.readouterr()
    assert "truth" not in out and err.count("no true pictures are known of") == 1
