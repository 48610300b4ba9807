"""What is measured on a GPU runs on a CPU at a tiny size: parts without each other, failures as
rows, within the time."""

import json

import pytest
from tiny.scripts import SCRIPTS, call_script

from sdatoms.bench.gpu import measure_gpu, tabulate
from sdatoms.bench.gpu_rows import Setting
from sdatoms.bench.training import ALL, FULL

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:rounding to the base's 16-bit weights"),
]
LOKR, OFT = "LoKr r4 on the layers of full", "OFT b4 on the layers of full"


def measure(folder, *parts, seconds=600, **settings):
    """Part → row → figures, of tiny networks and one round."""
    setting = Setting("cpu", True, rounds=1, compiler="eager", **settings)
    *_, facts = measure_gpu(parts, folder, seconds, setting, apart=False)
    return {name: found["rows"] for name, found in facts["parts"].items()}, tabulate(facts)


def test_a_step_of_every_method_is_held_against_lora(tmp_path):
    methods = ("product, b = 16", ALL, FULL, "no such method")
    found, table = measure(tmp_path, "training, SDXL", methods=methods)
    rows = found["training, SDXL"]
    for batch in (1, 4):
        own, lora = (rows[f"{name}, batch {batch}"] for name in methods[:2])
        ratio = own["to_lora"]["seconds_per_step"]
        assert ratio == round(own["seconds_per_step"] / lora["seconds_per_step"], 3)
        assert rows[f"{FULL}, batch {batch}"]["parameters"] > lora["parameters"]
        assert lora["peak_bytes"] > 1e8 and lora["px"] == 64 and lora["steps"] == 1
    assert rows == json.loads((tmp_path / "training-sdxl.json").read_text())
    assert table.count("| training, SDXL |") == len(rows) == 7
    assert "no measurement" in table and "of LoRA r = 4's time" in table


def test_peers_train_on_the_layers_of_full(tmp_path):
    found, _ = measure(tmp_path, "training, SD 1.5", methods=(LOKR, OFT), dtype="float32")
    rows = found["training, SD 1.5"]
    for name in (f"{method}, batch {n}" for method in (LOKR, OFT) for n in (1, 4)):
        assert rows[name].get("parameters"), rows[name]


def test_what_fails_is_a_row_and_the_rest_goes_on(tmp_path):
    found, table = measure(tmp_path, "training, SD 1.5", "columns", methods=("no such", ALL))
    rows = found["training, SD 1.5"]
    assert "no such" in rows["no such"]["failed"] and "failed" not in rows[f"{ALL}, batch 1"]
    assert found["columns"]["fit"]["longer"] <= found["columns"]["fit"]["longer_today"]
    assert "| columns | fit | columns up to" in table

    late, _ = measure(tmp_path, "columns", "adapters, SDXL", seconds=0)
    assert all("time" in rows["all of it"]["failed"] for rows in late.values())


def test_files_are_baked_and_pictures_painted_with_and_without_them(tmp_path):
    found, table = measure(tmp_path, "adapters, SD 1.5", "generation, SDXL")
    for row in found["adapters, SD 1.5"].values():
        assert {"read_seconds", "bake_seconds", "clear_seconds", "extra_bytes"} <= set(row)
    row = found["generation, SDXL"]["baked"]
    assert row["ratio"] == pytest.approx(row["baked_seconds"] / row["bare_seconds"], rel=0.01)
    assert table.count("bake ") == 2 and table.count("bare ") == 1


def test_the_command_asks_for_a_gpu_or_for_the_tiny_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        call_script(monkeypatch, SCRIPTS / "bench_gpu.py", "--output_dir", tmp_path / "out")
    assert stop.value.code == 2 and "--tiny --device cpu" in capsys.readouterr().err
    words = ["--tiny", "--device", "cpu", "--together", "--rounds", "1", "--parts", "columns"]
    call_script(monkeypatch, SCRIPTS / "bench_gpu.py", *words, "--output_dir", tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert set(facts["parts"]) == {"columns"}
    assert capsys.readouterr().out == (tmp_path / "out" / "gpu.md").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call")
def test_a_compiled_model_takes_atoms_without_being_compiled_anew(tmp_path):
    found, table = measure(tmp_path, "compiled, SD 1.5")
    assert found["compiled, SD 1.5"]["baked, compiled"]["compiled_anew"] == 0
    assert "anew 0 times" in table


@pytest.mark.slow
def test_parts_run_in_processes_of_their_own(tmp_path):
    setting = Setting("cpu", True, rounds=1)
    *_, facts = measure_gpu(["columns"], tmp_path, 600, setting)
    assert "fit" in facts["parts"]["columns"]["rows"]
    *_, facts = measure_gpu(["columns", "adapters, SDXL"], tmp_path, 1.0, setting)
    for found in facts["parts"].values():
        assert "longer than" in found["rows"]["all of it"]["failed"]
