"""The demo: what its grid shows, and what it says to a newcomer."""

from pathlib import Path

from PIL import Image

from sdatoms.cli.demo import SUBJECT
from sdatoms.cli.personalize import SEEDS, DemoResult, describe_result, draw_truth
from sdatoms.evaluation.rows import Row
from sdatoms.evaluation.truth import FIVE_KINDS, choose_prompts, find_truth
from sdatoms.storage import read_subject

FOLDER, ABOUT = read_subject(SUBJECT)
TRUTH = find_truth(FOLDER)
PROMPTS = choose_prompts(TRUTH, ABOUT["instance_prompt"], FIVE_KINDS)


def test_five_prompts_differ_in_kind():
    groups = {wish.prompt: wish.group for wish in TRUTH.wishes}
    assert [groups[prompt] for prompt in PROMPTS] == list(FIVE_KINDS) and len(set(PROMPTS)) == 5


def test_the_grid_shows_truth_before_after_and_what_was_given():
    count = len(PROMPTS) * len(SEEDS)
    before, after = ([Image.new("RGB", (64, 64), c)] * count for c in ("red", "blue"))
    grid = draw_truth(FOLDER, TRUTH, PROMPTS, before, after)
    x, head = grid.width - 20, grid.height - 6 * 164  # in the last column, below the titles
    rows = [grid.getpixel((x, head + 164 * k + 80)) for k in range(6)]
    assert rows[1:5] == [(255, 0, 0)] * 2 + [(0, 0, 255)] * 2
    assert rows[0] not in rows[1:5] and head > 0


def test_it_says_what_was_learnt_where_it_is_and_what_to_try():
    run = Path("outputs/demo")
    row = Row("adapter", 20, fidelity=0.5, truth=0.75)
    result = DemoResult(
        1234,
        5678,
        60.0,
        [row],
        run / "before-after.png",
        run / "atoms.safetensors",
        PROMPTS,
        FOLDER,
    )
    text = describe_result(result, 300)
    for said in (
        "300 steps",
        "1,234 trained numbers",
        str(Path("subjects") / SUBJECT),
        "outputs/demo/before-after.png",
        "0.750",
        f'sdatoms generate "{PROMPTS[-1]}" --atoms outputs/demo/atoms.safetensors',
    ):
        assert said in text, said
