"""The app below its page: what may be asked for, what is painted and kept, what is restored."""

import json
import shutil
import threading
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from sdatoms_app.generate.cards import clean_thumbnail, draw_cards
from sdatoms_app.generate.form import DEFAULTS, clean_settings, make_order, restore_recipe
from sdatoms_app.generate.grids import paint_grid, parse_numbers, plan_grid
from sdatoms_app.studio.bases import Bases
from sdatoms_app.studio.library import Library
from sdatoms_app.studio.painting import Cancelled, Desk, Job
from sdatoms_app.studio.saved_forms import Presets

import sdatoms
from sdatoms import AtomError
from sdatoms.cli.main import main
from sdatoms.diffusion.picture_file import read_embedded_atoms, read_recipe, save_picture
from sdatoms.diffusion.pipeline import load_base
from sdatoms.diffusion.pipeline import paint as paint_plainly


def pixels(kept):
    with Image.open(kept.path) as opened:
        return np.array(opened.convert("RGB"))


def test_library_lists_atom_files_and_checkpoints_by_id(adapters_dir):
    library = Library(adapters_dir)
    assert {entry.id for entry in library.list()} == {"dog", "ink"}
    assert [(e.id, e.step) for e in library.list_checkpoints()] == [("dog@100", 100)]
    dog = library.find("dog")
    assert dog.parameters == sdatoms.read_atoms(dog.path).num_parameters
    assert library.find_hash(dog.sha256) == dog and library.find_hash("0" * 64) is None


@pytest.mark.parametrize("id", ["../dog", "/etc/passwd", "dog/checkpoints/step-000100", "old", ""])
def test_ids_that_are_not_listed_are_refused(adapters_dir, id):
    with pytest.raises(AtomError, match="is listed; refresh"):
        Library(adapters_dir).find(id)


def test_uploads_are_checked_and_get_a_safe_name(adapters_dir, tmp_path):
    library = Library(tmp_path / "library")
    hostile = tmp_path / "..hidden; rm -rf $HOME.SafeTensors.pt"
    shutil.copy(adapters_dir / "ink.safetensors", hostile)
    entry = library.add(hostile)
    assert entry.path.parent == tmp_path / "library" / "uploads"
    assert entry.path.name.startswith("hidden-rm-rf-home-safetensors-")
    assert [e.id for e in library.list()] == [entry.id]
    with pytest.raises(AtomError, match="no safetensors file"):
        library.add(adapters_dir / "old.safetensors")
    assert len(library.list()) == 1


def test_links_out_of_the_folder_are_not_listed(adapters_dir, tmp_path):
    library = Library(tmp_path / "library")
    library.folder.mkdir()
    (library.folder / "link.safetensors").symlink_to(adapters_dir / "ink.safetensors")
    assert library.list() == []


def test_cards_show_hostile_texts_as_text(studio):
    entries = studio.library.list()
    html = draw_cards([(entry, None) for entry in entries], ["dog"])
    assert "<img src=x" not in html and "&lt;b&gt;ink&lt;/b&gt;" in html
    assert html.count("data:image/jpeg;base64,") == 2 and 'class="card picked"' in html
    for uri in ("javascript:alert(1)", "data:text/html;base64,PHA+", "data:image/png;base64,AAAA"):
        assert clean_thumbnail(uri) == ""
    assert "drop one here" in draw_cards([], [])


def test_compatibility_is_told_before_loading(studio, paint, tmp_path, make_file, tiny_base, order):
    paint()
    assert studio.judge(studio.library.find("dog")).verdict == "fits"
    other = studio.library.add(make_file("other"))
    assert studio.judge(other).verdict == "other base"
    convs = load_base(str(tiny_base)).vae
    injection = sdatoms.inject(convs, sdatoms.AtomConfig(variant="atoms"))
    path = sdatoms.save_atoms(tmp_path / "vae.safetensors", {"unet": injection})
    wrong = studio.library.add(path)
    assert studio.judge(wrong).verdict == "does not fit"
    with pytest.raises(AtomError, match="has no layer"):
        paint(replace(order, adapters=((wrong.id, 1.0),)))
    for entry in (other, wrong):
        entry.path.unlink()


def test_painting_equals_the_library_and_leaves_the_base(studio, paint, tiny_base, order):
    first = paint()[0]
    wanted = replace(order, adapters=(("dog", 0.7), ("ink", {"down": -0.5, "mid": 0.0, "up": 1.0})))
    mixed = paint(wanted)[0]
    assert np.array_equal(pixels(paint()[0]), pixels(first))
    pipe = load_base(str(tiny_base))
    adapters = sdatoms.load_atoms(
        pipe, studio.library.find("ink").path, strength=wanted.adapters[1][1]
    )
    adapters.load(studio.library.find("dog").path, strength=0.7)
    again = paint_plainly(pipe, ["cat face"], [3], num_inference_steps=2, scheduler="DDIM")[0]
    assert np.array_equal(again, pixels(mixed))
    assert not np.array_equal(pixels(mixed), pixels(first))
    assert [(u.name, u.strength) for u in mixed.recipe.adapters] == list(wanted.adapters)


def test_strength_zero_paints_the_base(paint, order):
    assert np.array_equal(
        pixels(paint()[0]), pixels(paint(replace(order, adapters=(("dog", 0.0),)))[0])
    )


def test_a_batch_is_its_pictures_one_by_one(paint, order):
    batch = paint(replace(order, batch=3))
    assert [k.recipe.seed for k in batch] == [3, 4, 5]
    assert np.array_equal(pixels(batch[2]), pixels(paint(replace(order, seed=5))[0]))


def test_sizes_and_starting_pictures_count(paint, order):
    tall = paint(replace(order, width=64, height=96))[0]
    assert pixels(tall).shape == (96, 64, 3)
    start = Image.new("RGB", (40, 40), "red")
    over = paint(replace(order, init_picture=start, denoising_strength=0.5))[0]
    assert over.recipe.denoising_strength == 0.5 and over.recipe.init_sha256
    assert not np.array_equal(pixels(over), pixels(paint()[0]))


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": " "},
        {"prompt": "x" * 2001},
        {"negative_prompt": "x" * 2001},
        {"prompt": "(cat:99)"},
        {"num_inference_steps": 0},
        {"num_inference_steps": 101},
        {"guidance_scale": float("nan")},
        {"seed": -1},
        {"batch": 9},
        {"width": 65},
        {"width": 1032},
        {"height": 16},
        {"scheduler": "x"},
        {"denoising_strength": 0.0},
        {"base": "../models"},
        {"base": "stabilityai/sd"},
        {"adapters": (("x", 1.0),)},
        {"adapters": (("dog", 11.0),)},
        {"adapters": (("dog", float("nan")),)},
        {"adapters": (("dog", 1.0), ("dog", 1.0))},
        {"adapters": tuple((str(k), 1.0) for k in range(6))},
    ],
)
def test_orders_out_of_range_are_refused(studio, changes, order):
    with pytest.raises(AtomError):
        studio.check(replace(order, **changes))


def test_a_long_prompt_is_said_to_be_read_in_windows(studio, order):
    job = Job(lambda job: list(studio.paint(replace(order, prompt="abcdefgh ijklmnop qrst"), job)))
    remark = "The prompt's 20 tokens are read in 2 windows of 14."
    assert list(job.start().watch())[-1].remarks == (remark,)


def test_cancelling_stops_within_a_step_and_keeps_what_is_done(studio, order):
    steps, done = [], []

    def work(job):
        tell = job.tell

        def watch(**changes):
            tell(**changes)
            if "done" in changes:
                steps.append(changes["done"])
                if changes["done"] == 25:  # the fifth step of the second picture
                    job.cancel()

        job.tell = watch
        done.extend(studio.paint(replace(order, batch=3, num_inference_steps=20), job))

    job = Job(work).start()
    assert list(job.watch())[-1].done == 25
    assert job.cancelled and steps[-1] == 25 and not studio.lock.locked()
    assert len(studio.history.list("cat", 1)) == 1


def test_a_waiting_job_can_be_cancelled_and_an_error_is_raised_to_the_watcher(studio, order):
    desk = Desk()
    with studio.lock:
        job = desk.start("me", lambda job: list(studio.paint(order, job)))
        assert next(iter(job.watch())).message in ("waiting", "waiting for the pictures before")
        assert desk.cancel("you") is False
        assert desk.cancel("me") is True
        assert list(job.watch())[-1].done == 0 and job.cancelled
    failing = desk.start("me", lambda job: list(studio.paint(replace(order, prompt=""), job)))
    with pytest.raises(AtomError, match="the prompt is empty"):
        list(failing.watch())


def test_cancel_reaches_every_job_under_its_key_and_no_other():
    desk = Desk()

    def wait(job):
        while True:
            job.check()

    jobs = [desk.start(key, wait) for key in ("me", "me", "you")]
    assert desk.cancel("me") and not desk.cancel("me")
    for job in jobs[:2]:
        list(job.watch())
    assert [job.cancelled for job in jobs] == [True, True, False]
    assert desk.cancel("you")
    list(jobs[2].watch())
    with pytest.raises(Cancelled):
        jobs[2].check()


def test_the_newest_preview_wins_and_whoever_leaves_cancels():
    told, seen = threading.Event(), threading.Event()

    def work(job):
        for number in range(1000):
            job.tell(done=number, message="a")
        told.set()
        seen.wait(10)
        while True:
            job.check()

    job = Job(work).start()
    told.wait(10)
    watcher = job.watch()
    assert next(watcher).done == 999
    seen.set()
    watcher.close()
    assert job.cancelled


def test_history_is_found_by_atom_file_words_and_seed(studio, paint, order):
    kept = paint(replace(order, prompt="a zebra", seed=77, adapters=(("dog", 0.5),)))[0]
    for search in ("zebra", "ZEBRA dog", "77", kept.recipe.adapters[0].sha256[:10]):
        assert studio.history.list(search)[0].id == kept.id
    assert studio.history.list("zebra ink") == []
    assert studio.history.find(kept.id) == kept
    for id in ("../../etc/passwd", "2026-01-01/1", "", kept.id + "0"):
        with pytest.raises(AtomError, match="in the history"):
            studio.history.find(id)


def test_a_picture_restores_the_form_to_the_same_pixels(studio, paint, order):
    blocks = {"down": 0.3, "mid": -0.7, "up": 1.9}
    wanted = replace(
        order,
        negative_prompt="no",
        scheduler="Euler",
        width=72,
        height=64,
        adapters=(("dog", 0.35), ("ink", blocks)),
    )
    kept = paint(wanted)[0]
    settings, remarks = restore_recipe(read_recipe(kept.path), studio)
    assert remarks == []
    again = paint(make_order(settings))[0]
    assert np.array_equal(pixels(again), pixels(kept)) and again.recipe == kept.recipe


def test_an_embedded_atom_file_comes_back_with_its_picture(
    studio, paint, tiny_base, tmp_path, order
):
    from sdatoms_app.studio.studio import Studio

    kept = paint(replace(order, adapters=(("dog", 0.5),), embed=True))[0]
    fresh = Studio(str(tiny_base), Library(tmp_path / "library"), tmp_path / "outputs")
    recipe = read_recipe(kept.path)
    _, remarks = restore_recipe(recipe, fresh)
    assert len(remarks) == 1 and "dog" in remarks[0]
    for file in read_embedded_atoms(kept.path):
        fresh.library.add_file(file, "dog")
    settings, remarks = restore_recipe(recipe, fresh)
    again = next(iter(fresh.paint(make_order(settings))))
    assert remarks == [] and np.array_equal(pixels(again), pixels(kept))


def test_the_commands_pictures_paint_themselves_again_in_the_app(studio, tiny_base, tmp_path):
    atoms = studio.library.find("dog").path
    command = ["generate", "a (cat:1.2)", "--pretrained_model_name_or_path", str(tiny_base)]
    command += ["--num_inference_steps", "2", "--seed", "4", "--atoms", f"{atoms}=0.5"]
    main([*command, "--embed_atoms", "--output_dir", str(tmp_path)])
    path = next(tmp_path.glob("*.png"))
    settings, remarks = restore_recipe(read_recipe(path), studio)
    again = next(iter(studio.paint(make_order(settings))))
    assert remarks == [] and settings["adapters"][0]["id"] == "dog"
    with Image.open(path) as opened:
        assert np.array_equal(pixels(again), opened.convert("RGB"))
    assert [file.sha256 for file in read_embedded_atoms(path)] == [
        studio.library.find("dog").sha256
    ]


def test_a_picture_of_another_base_is_restored_with_a_warning(studio, paint, tmp_path):
    kept = paint()[0]
    prints = {path: [v[0] * 2, *v[1:]] for path, v in kept.recipe.base_fingerprint.items()}
    recipe = replace(kept.recipe, base_model="another", base_fingerprint=prints, scheduler="LMS")
    path = save_picture(Image.new("RGB", (8, 8)), tmp_path / "p.png", recipe)
    settings, remarks = restore_recipe(read_recipe(path), studio)
    assert any("The base differs from the picture's (another)" in r for r in remarks)
    assert any("scheduler 'LMS' is not possible here" in r for r in remarks)
    assert settings["scheduler"] == "DDIM" and settings["seed"] == 3


def test_settings_from_anywhere_become_settings_the_form_takes(studio):
    wild = {
        "prompt": 3,
        "num_inference_steps": 1e9,
        "guidance_scale": float("inf"),
        "seed": True,
        "base": "../x",
        "unknown": 1,
        "adapters": [{"id": "nope"}, {"id": "dog", "strength": 99, "down": "x"}, 5],
    }
    clean, remarks = clean_settings(wild, studio)
    assert set(clean) == {*DEFAULTS, "adapters"} and len(remarks) >= 7
    assert clean["prompt"] == DEFAULTS["prompt"] and clean["base"] == studio.bases.list()[0].id
    row = {"id": "dog", "enabled": True, "strength": 2.0, "down": 1.0, "mid": 1.0, "up": 1.0}
    assert clean["adapters"] == [row]
    clean["adapters"] = [row]
    assert make_order(clean).adapters == (("dog", 2.0),)
    row["enabled"] = False
    assert make_order(clean).adapters == ()
    row.update(enabled=True, strength=0.5, up=0.0)
    blocks = {"down": 0.5, "mid": 0.5, "up": 0.0}
    assert make_order(clean | {"adapters": [row]}).adapters == (("dog", blocks),)
    with pytest.raises(AtomError, match="the seed is empty"):
        make_order(clean | {"seed": None})


def test_presets_are_saved_under_plain_names_only(tmp_path):
    presets = Presets(tmp_path / "presets")
    settings = DEFAULTS | {"adapters": []}
    presets.save("My preset_1", settings)
    assert presets.list() == ["My preset_1"] and presets.load("My preset_1") == settings
    for name in ("../x", "/etc/x", "a\0b", "CON", "x" * 41, "-rf", "", "ｘ", "a/b", "a.b"):
        with pytest.raises(AtomError, match="cannot be called"):
            presets.save(name, settings)
    (presets.folder / "bad.json").write_text("[1]")
    with pytest.raises(AtomError, match="damaged"):
        presets.load("bad")
    with pytest.raises(AtomError, match="there is no preset"):
        presets.load("other")
    presets.delete("My preset_1")
    assert presets.list() == ["bad"]


def test_bases_are_the_operators_choice(tiny_base, adapters_dir, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    shutil.copy(adapters_dir / "ink.safetensors", tmp_path / "ink.safetensors")
    (tmp_path / "single.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    shutil.copytree(tiny_base, tmp_path / "second")
    bases = Bases(str(tiny_base), tmp_path)
    ids = [choice.id for choice in bases.list()]
    assert ids[0] == "tiny" and "models/second" in ids and "models/single.safetensors" in ids
    assert not any("ink" in id or "notes" in id for id in ids)
    assert bases.find_side("models/second") == 64 and bases.find_side("nothing") == 512
    for id in ("second", "models/../second", "runwayml/sd", str(tmp_path / "second")):
        with pytest.raises(AtomError, match="hub ids are not taken here"):
            bases.find(id)
    assert Bases(None, None, hub=True).find("owner/name").where == "owner/name"
    with pytest.raises(AtomError, match="no base"):
        Bases(None, None, hub=True).find("owner/../name")


def test_another_base_is_opened_when_asked_for(studio, paint, tiny_base, order):
    studio.bases.folder = tiny_base.parent
    torch.manual_seed(0)
    kept = paint(replace(order, base="models/tiny"))[0]
    assert kept.recipe.base_model == "models/tiny"
    assert np.array_equal(pixels(kept), pixels(paint()[0]))
    studio.bases.folder = None


def test_numbers_of_a_grid():
    assert parse_numbers("0, 0.5 ; -1", float, "strengths") == [0, 0.5, -1]
    assert parse_numbers("1, 3-5", int, "seeds") == [1, 3, 4, 5]
    for text, kind in (("a", float), ("1-999", int), ("1.5", int)):
        with pytest.raises(AtomError):
            parse_numbers(text, kind, "seeds")


def test_a_grid_is_planned_with_the_dearest_change_outermost(order):
    grid = plan_grid(order, [0, 1], [5, 6], ["dog", "dog@100"])
    assert grid.rows == ("dog, seed 5", "dog, seed 6", "dog@100, seed 5", "dog@100, seed 6")
    assert grid.columns == ("strength 0", "strength 1")
    changes = [cell.order.adapters for cell in grid.cells]
    assert sum(a != b for a, b in pairwise(changes)) == 3
    with pytest.raises(AtomError, match="at most 64"):
        plan_grid(order, [0, 1], list(range(40)), ["dog"])
    with pytest.raises(AtomError, match="choose atom files"):
        plan_grid(order, [0, 1], [1], [])


def test_a_grid_is_painted_kept_and_cancelled(studio, paint, order):
    wanted = replace(order, adapters=(("dog", 1.0), ("ink", {"down": 1.0, "mid": 0.0, "up": 0.5})))
    grid = plan_grid(wanted, [0, 0.5], [3], [])
    path, kept = list(paint_grid(studio, grid, Job(lambda _: None)))[-1]
    with Image.open(path) as drawn:
        assert path.parent == studio.outputs / "grids" and drawn.width > 2 * 64
    assert np.array_equal(pixels(kept[0]), pixels(paint()[0]))
    half = paint(
        replace(wanted, adapters=(("dog", 0.5), ("ink", {"down": 0.5, "mid": 0, "up": 0.25})))
    )
    assert np.array_equal(pixels(kept[1]), pixels(half[0]))
    job = Job(lambda _: None)
    cells = paint_grid(studio, plan_grid(wanted, [0, 1, 2], [1], []), job)
    next(cells)
    job.cancel()
    with pytest.raises(Cancelled):
        next(cells)
    assert not studio.lock.locked()


def test_the_base_is_bit_for_bit_itself_after_everything(studio):
    adapters = sdatoms.AdapterSet(studio.open())
    adapters.clear()
    assert adapters.verify_base() and json.dumps(adapters.strengths) == "{}"
