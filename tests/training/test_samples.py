"""Laws of the pictures in training: what they show, what they cost, which step they choose."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny.runs import assert_same_atoms, read_metrics

import sdatoms
from sdatoms.diffusion.guidance import GUIDANCE_ENTRY
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.triggers import UNRELATED_PROMPTS
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.samples import measure_samples
from sdatoms.training.loop import Run, train
from sdatoms.training.samples import read_sample_sampler
from sdatoms.training.sampling import name_unrelated

WORD = {"train_text_encoder_ti": True, "instance_prompt": "a <new> cat"}


def measure_brightness(pipe, pictures, prompts, instances, unrelated):
    assert len(pictures) == len(prompts) and len(instances) == 4
    return {"brightness": float(np.mean([np.asarray(p).mean() for p in pictures]))}


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("changes", [{}, {"train_text_encoder": True}, {"use_ema": True, **WORD}])
def test_sample_in_training_equals_the_picture_from_the_saved_file(train_config, kind, changes):
    config = train_config(
        kind,
        learning_rate=5e-2,
        validation_steps=4,
        validation_prompts=("a <new> cat", "a dog"),
        seed=5,
        **changes,
    )
    list(train(config))
    run = Path(config.output_dir)
    steps = config.num_inference_steps
    draw = lambda: paint(pipe, ["a <new> cat", "a dog"], [5, 5], num_inference_steps=steps)
    pipe = load_base(config.pretrained_model_name_or_path)
    base = draw()
    adapters = sdatoms.load_atoms(pipe, run / "atoms.safetensors")
    again = draw()
    adapters.clear()
    for before, after in zip(base, draw(), strict=True):
        assert np.array_equal(before, after)
    for k in range(2):
        picture = np.array(Image.open(run / "samples" / f"step-000004-{k}.png"))
        assert np.array_equal(picture, np.array(again[k]))
        if k == 1 or "train_text_encoder_ti" not in changes:  # the base's <new> is another word
            assert np.array_equal(Image.open(run / "samples" / f"base-{k}.png"), base[k])
        assert not np.array_equal(picture, np.array(base[k]))


def test_sampling_and_measuring_do_not_change_the_training(train_config, tmp_path):
    list(train(train_config()))
    painted = train_config(output_dir=str(tmp_path / "painted"), validation_steps=2)
    list(train(painted, evaluate=measure_brightness))
    assert_same_atoms(tmp_path / "run", tmp_path / "painted")


def test_best_step_is_kept_and_training_stops_when_it_does_not_improve(train_config, tmp_path):
    curve = iter([0.0, 0.3, 0.5, 0.4, 0.45, 0.9])  # the base first

    def evaluate(pipe, pictures, prompts, instances, unrelated):
        return {"fidelity": next(curve)}

    config = train_config(
        max_train_steps=10,
        validation_steps=1,
        checkpointing_steps=1,
        best_metric="fidelity",
        early_stopping_patience=2,
    )
    steps = list(train(config, evaluate=evaluate))
    assert [s.step for s in steps] == [1, 2, 3, 4]  # best at 2, then two that are no better
    file = sdatoms.read_atoms(Path(config.output_dir) / "atoms.safetensors")
    second = Path(config.output_dir) / "checkpoints" / "step-000002" / "atoms.safetensors"
    assert file.metadata["step"] == "2"
    for key, tensor in sdatoms.read_atoms(second).tensors.items():
        assert torch.equal(tensor, file.tensors[key])
    report = json.loads((Path(config.output_dir) / "report.json").read_text())
    assert report["chosen_step"] == 2 and report["metrics"]["base"] == {"fidelity": 0.0}
    assert [row["fidelity"] for row in read_metrics(config.output_dir)] == [0.3, 0.5, 0.4, 0.45]
    # What the patience has counted and which step was best outlive an interruption.
    curve = iter([0.45])
    again = replace(config, resume_from_checkpoint="step-000003")
    assert [s.step for s in train(again, evaluate=evaluate)] == [4]
    again = sdatoms.read_atoms(Path(config.output_dir) / "atoms.safetensors")
    assert again.metadata["step"] == "2"


def test_drift_is_how_far_unrelated_pictures_moved_from_the_base(
    train_config, evaluator_folder, tmp_path
):
    evaluate = measure_samples(load_evaluator(str(evaluator_folder)))
    config = train_config(
        output_dir=str(tmp_path / "whole"),
        learning_rate=5e-2,
        validation_steps=2,
        num_validation_images=2,
        num_drift_images=3,
        best_metric="auto",
    )
    list(train(config, evaluate=evaluate))
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    base, second, last = report["metrics"].values()
    assert base["drift"] == pytest.approx(0, abs=1e-6)
    assert second["drift"] > 1e-4 and last["drift"] > 1e-4
    assert all(found["diversity"] > 0 for found in (base, second, last))
    best = max(("step-000002", "step-000004"), key=lambda name: report["metrics"][name]["fidelity"])
    assert report["chosen_step"] == int(best[-6:])
    adapters = sdatoms.load_atoms(
        pipe := load_base(config.pretrained_model_name_or_path),
        tmp_path / "whole" / "checkpoints" / "step-000002" / "atoms.safetensors",
    )
    again = paint(
        pipe,
        UNRELATED_PROMPTS[:3],
        range(3),
        num_inference_steps=config.num_inference_steps,
        batch_size=config.train_batch_size,
    )
    adapters.clear()
    for k, picture in enumerate(again):
        kept = tmp_path / "whole" / "samples" / "unrelated-4" / f"step-000002-{k}.png"
        assert np.array_equal(Image.open(kept), picture)
    # A resumed run measures against the same pictures of the base.
    parts = replace(config, output_dir=str(tmp_path / "parts"))
    steps = train(parts, evaluate=evaluate)
    next(steps), next(steps), next(steps)
    steps.close()
    list(train(replace(parts, resume_from_checkpoint="step-000002"), evaluate=evaluate))
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")


def test_samples_hold_no_more_pictures_at_once_than_a_training_batch(train_config):
    config = train_config(
        max_train_steps=1,
        validation_steps=1,
        num_validation_images=3,
        num_drift_images=6,
        sample_batch_size=8,
    )
    run = Run(config, lambda *_: {"bright": 1.0})
    run.prepare()
    seen = {"unet": set(), "decoder": set()}
    pipe = run.trainer.pipe
    for name, module in (("unet", pipe.unet), ("decoder", pipe.vae.decoder)):
        module.register_forward_pre_hook(lambda _, args, name=name: seen[name].add(len(args[0])))
    list(run.walk())
    # Guidance doubles a batch of 2, without gradients; the autoencoder decodes one by one.
    assert seen == {"unet": {2, 4}, "decoder": {1}}


def test_samples_are_painted_with_the_sampler_and_steps_asked_for(train_config):
    config = train_config(
        max_train_steps=1,
        validation_steps=1,
        validation_scheduler="DPM++ 2M Karras",
        num_inference_steps=7,
    )
    list(train(config))
    pipe = load_base(config.pretrained_model_name_or_path)
    sdatoms.load_atoms(pipe, Path(config.output_dir) / "atoms.safetensors")
    asked = {"scheduler": "DPM++ 2M", "schedule": "karras", "num_inference_steps": 7}
    draw = lambda **given: paint(pipe, [config.instance_prompt], [config.seed], **given)[0]
    kept = Image.open(Path(config.output_dir) / "samples" / "step-000001-0.png")
    assert np.array_equal(kept, draw(**asked))
    for other in ({"scheduler": None, "schedule": None}, {"num_inference_steps": 6}):
        assert not np.array_equal(kept, draw(**asked | other))


def test_more_steps_than_the_base_knows_are_refused_before_anything_is_written(
    train_config, tiny_pipeline, tmp_path
):
    short = shutil.copytree(tiny_pipeline(), tmp_path / "short")
    path = short / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": 200}))
    given = {"num_inference_steps": 300, "pretrained_model_name_or_path": str(short)}
    config = train_config(validation_steps=1, **given)
    with pytest.raises(sdatoms.AtomError, match="num_inference_steps is 300; this base takes 1 to"):
        next(train(config))
    assert not Path(config.output_dir).exists()


def test_other_samples_than_before_are_measured_anew(train_config, evaluator_folder):
    """Resumed with another number of steps: drift and the best step compare like with like."""
    evaluate = measure_samples(load_evaluator(str(evaluator_folder)))
    given = {"learning_rate": 5e-2, "validation_steps": 2, "best_metric": "drift"}
    given |= {"best_metric_goal": "min", "num_validation_pictures": 1}
    config = train_config(num_drift_images=2, **given)
    steps = train(config, evaluate=evaluate)
    next(steps), next(steps), next(steps)
    steps.close()
    again = replace(config, num_inference_steps=6, resume_from_checkpoint="step-000002")
    list(train(again, evaluate=evaluate))
    run = Path(config.output_dir)
    report = json.loads((run / "report.json").read_text())
    assert report["metrics"].keys() == {"base", "step-000002", "step-000004"}
    assert report["chosen_step"] == 4
    assert report["metrics"]["step-000002"].keys() == {"validation_loss"}  # no samples' measure
    assert "validation_loss" in report["metrics"]["base"]
    assert report["metrics"]["base"]["drift"] == pytest.approx(0, abs=1e-6)
    pipe = load_base(config.pretrained_model_name_or_path)
    base = paint(pipe, [config.instance_prompt], [config.seed], num_inference_steps=6)[0]
    assert np.array_equal(Image.open(run / "samples" / "base-0.png"), base)
    assert "other samples are generated than before" in (run / "log.txt").read_text()


def test_a_base_that_is_guided_otherwise_is_generated_with_anew(train_config, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(train_config().pretrained_model_name_or_path, base)
    config = train_config(pretrained_model_name_or_path=str(base), validation_steps=2)
    steps = train(config)
    next(steps), next(steps), next(steps)
    steps.close()
    first = np.asarray(Image.open(tmp_path / "run" / "samples" / "base-0.png"))
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {GUIDANCE_ENTRY: 1.5}))
    list(train(replace(config, resume_from_checkpoint="step-000002")))
    assert "other samples are generated than before" in (tmp_path / "run/log.txt").read_text()
    assert not np.array_equal(Image.open(tmp_path / "run" / "samples" / "base-0.png"), first)


def test_drift_is_measured_on_pictures_of_one_sampler_and_as_many_steps(train_config):
    name = lambda **given: name_unrelated(read_sample_sampler(train_config(**given)))
    assert name(num_inference_steps=25) == "unrelated" and name() == "unrelated-4"
    karras = {"validation_scheduler": "DPM++ 2M Karras"}
    assert name(num_inference_steps=25, **karras) == "unrelated-dpm-2m-karras"
    assert name(**karras) == "unrelated-4-dpm-2m-karras"


@pytest.mark.parametrize(
    ("prediction", "name", "words"),
    [
        ("epsilon", "Heun", "the sampler 'Heun' is unknown; known are DDIM"),
        ("epsilon", "UniPC beta", "UniPC has no schedule 'beta'; it takes normal"),
        ("sample", "Euler", "Euler does not go with a base that predicts the clean sample"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused_before_anything_is_written(
    train_config, prediction, name, words
):
    config = train_config(prediction_type=prediction, validation_scheduler=name)
    with pytest.raises(sdatoms.AtomError, match=words):
        next(train(config))
    assert not Path(config.output_dir).exists()


def test_without_an_evaluator_auto_keeps_the_last_step(train_config):
    config = train_config(validation_steps=2, best_metric="auto", early_stopping_patience=1)
    assert len(list(train(config))) == 4
    file = sdatoms.read_atoms(Path(config.output_dir) / "atoms.safetensors")
    assert file.metadata["step"] == "4"
    log = (Path(config.output_dir) / "log.txt").read_text()
    assert "nothing measures the samples: --best_metric auto keeps the last step" in log


def test_a_best_metric_that_nothing_measures_is_refused(train_config):
    config = train_config(validation_steps=1, best_metric="fidelity")
    with pytest.raises(sdatoms.AtomError, match="needs something that measures"):
        next(train(config))
    with pytest.raises(sdatoms.AtomError, match="fidelity is not measured; measured are bright"):
        list(train(config, evaluate=measure_brightness))
