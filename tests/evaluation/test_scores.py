"""`sdatoms evaluate`: the table of a tiny pipeline, and one line for wrong input."""

import json

import pytest
from PIL import Image
from tiny.modules import copy_weights, same_weights
from tiny.pictures import draw_noise

import sdatoms
from sdatoms.cli.evaluate import name_files, write_table
from sdatoms.cli.main import main
from sdatoms.diffusion.prompts import clean_prompt, write_prompts
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.scores import evaluate, measure_samples

PAINTING = {"num_inference_steps": 2, "guidance_scale": 1.0}


@pytest.fixture
def pipe(make_pipe):
    return make_pipe(size=16)


@pytest.fixture
def subject(tmp_path):
    path = tmp_path / "subject"
    path.mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (16, 16), colour).save(path / f"{colour}.png")
        (path / f"{colour}.txt").write_text(f"a sks {'abc'[i]} cat")
    return path


@pytest.fixture
def rows(one_thread, pipe, evaluator_folder, subject, make_file):
    files = [("dog", sdatoms.read_atoms(make_file(variant="atoms", size=0.3)))]
    before = copy_weights(pipe.unet)
    found = evaluate(
        pipe,
        files,
        load_evaluator(str(evaluator_folder)),
        prompts=["a cat", "a sks dog"],
        seeds=range(2),
        subject=subject,
        **PAINTING,
    )
    assert same_weights(pipe.unet, before)
    return {row.name: row for row in found}


def test_the_table_holds_every_row_and_figure(rows):
    tuned, base = rows["dog"], rows["base without atoms"]
    for row in (tuned, base):
        assert row.pictures == 4
        assert None not in vars(row).values()
    assert base.drift == pytest.approx(0, abs=1e-6) and tuned.drift > 1e-6
    assert tuned.fidelity != base.fidelity
    given = rows["pictures given, among themselves"]
    assert given.pictures == 3 and given.drift is None and given.alignment is not None
    assert {name.split(":")[0] for name in rows} >= {"wrong vendor", "wrong concept"}
    text = write_table(list(rows.values()))
    assert len({len(line) for line in text.splitlines()}) == 1 and "drift" in text.splitlines()[0]
    json.dumps([vars(row) for row in rows.values()], allow_nan=False)


def test_without_subject_and_with_one_seed_two_figures_are_absent(
    one_thread, pipe, evaluator_folder
):
    base, other = evaluate(
        pipe, [], load_evaluator(str(evaluator_folder)), prompts=["a cat"], seeds=[3], **PAINTING
    )
    assert base.fidelity is base.likeness is base.diversity is None and base.alignment is not None
    assert other.name.startswith("wrong concept") and other.pictures == 10


def test_prompts_come_from_the_trigger_and_are_read_without_it():
    styles = write_prompts("an emoji in sks style")
    assert len(set(styles)) == 5 and all(text.endswith(" in sks style") for text in styles)
    assert all(text.startswith("a sks cat, ") for text in write_prompts("a sks cat"))
    assert clean_prompt("cat face in sks style") == "cat face"
    assert clean_prompt("a cat in the style of sks") == "a cat"
    assert clean_prompt("a sks cat, <my-cat> winking") == "a cat, winking"
    assert clean_prompt("a tasks list") == "a tasks list"


def test_rows_are_named_by_stem_unless_two_are_alike():
    assert [n for n, _ in name_files([("a/x.st", 1), ("b/y.st", 2)])] == ["x", "y"]
    assert [n for n, _ in name_files([("a/x.st", 1), ("b/x.st", 2)])] == ["a/x.st", "b/x.st"]


def test_wrong_input_is_one_line(capsys, tmp_path, make_file, evaluator_folder, subject):
    file = str(make_file(variant="atoms"))
    tiny = ["--evaluator", str(evaluator_folder)]
    for argv, word in (
        ([str(tmp_path / "none.safetensors")], "none.safetensors"),
        ([file, "--seeds", "0"], "--seeds is 0"),
        ([file, "--batch_size", "0"], "--batch_size is 0"),
        ([file, file], "twice"),
        ([file, "--subject", str(tmp_path / "nowhere")], "nowhere"),
        ([file, "--evaluator", str(subject)], "style_head.safetensors"),
        ([file, *tiny, "--pretrained_model_name_or_path", str(subject)], "model_index.json"),
        ([], "FILE"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", *argv])
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == "", argv
        assert len(err.strip().splitlines()) == 1 and word in err, err


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
    facts = json.loads(capsys.readouterr().out)
    assert facts["prompts"] == ["a cat"] and facts["seeds"] == 2
    names = [row["name"] for row in facts["rows"]]
    assert names[:2] == ["dog", "base without atoms"]
    assert facts["parameters"]["dog"] > 0


def test_the_trainer_gets_every_figure_of_its_samples(evaluator_folder):
    """Instance pictures score above noise, and copies neither differ nor drift."""
    measure = measure_samples(load_evaluator(str(evaluator_folder)))
    noise = draw_noise(((16, 16),) * 2)
    same = [Image.new("RGB", (16, 16), "red")] * 2
    copies = measure(None, same, ["a", "a"], same[:1], list(zip(noise, noise, strict=True)))
    other = measure(None, noise, ["a", "a"], same[:1], list(zip(noise, same, strict=True)))
    assert set(copies) == {"fidelity", "alignment", "diversity", "drift", "balance"}
    assert copies["fidelity"] > 0.999 > other["fidelity"]
    assert copies["diversity"] == pytest.approx(0, abs=1e-5) and other["diversity"] > 1e-3
    assert copies["drift"] == pytest.approx(0, abs=1e-5) and other["drift"] > 1e-3
    for found in (copies, other):
        balance = found["fidelity"] + found["alignment"] - found["drift"]
        assert found["balance"] == pytest.approx(balance)
    alone = measure(None, noise, ["a", "b"], same[:1], [])
    assert set(alone) == {"fidelity", "alignment", "balance"}
    assert alone["balance"] == pytest.approx(alone["fidelity"] + alone["alignment"])
