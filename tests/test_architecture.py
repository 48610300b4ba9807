"""The repository keeps the rule of the house, and each part of the rule is seen when it is broken:
in a small house, sound but for what a case changes."""

from pathlib import Path

import pytest
from architecture import RULE

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("part", RULE)
def test_the_house_keeps(part):
    found = list(RULE[part](ROOT))
    assert not found, "\n".join(found)


SOUND = {
    "sdatoms/__init__.py": '"""Atoms."""\n__all__ = ["inject"]\n',
    "sdatoms/errors.py": '"""Errors."""\n__all__ = ["AtomError"]\nAtomError = ValueError\n',
    "sdatoms/atoms/__init__.py": '"""The maths; imports models and below."""\n',
    "sdatoms/atoms/config.py": (
        '"""Settings."""\nfrom sdatoms.errors import AtomError\n'
        '__all__ = ["Config"]\nclass Config: ...\n'
    ),
    "sdatoms/atoms/sparse.py": '"""Codes."""\nfrom sdatoms.atoms.config import Config\n',
    "sdatoms/layers/__init__.py": '"""Layers; imports atoms and below."""\n',
    "sdatoms/layers/inject.py": (
        '"""In."""\nfrom sdatoms.atoms import config\n__all__ = ["inject"]\n'
    ),
    "sdatoms/training/__init__.py": '"""Training; imports diffusion and below."""\n',
    "sdatoms/training/loop.py": '"""Steps."""\n__all__ = ["train"]\n',
    "sdatoms/evaluation/__init__.py": '"""Measures; imports diffusion and below."""\n',
    "sdatoms/evaluation/scores.py": '"""Scores."""\n',
    "app/sdatoms_app/__init__.py": '"""The app."""\n',
    "app/sdatoms_app/queue/__init__.py": '"""Trainings; imports studio and below."""\n',
    "app/sdatoms_app/queue/worker.py": '"""One."""\nfrom sdatoms.training.loop import train\n',
    "scripts/train.py": "from sdatoms.training.loop import train\n",
    "scripts/bench.py": "import json\n",
    "tests/atoms/test_config.py": "",
    "tests/app/queue/test_worker.py": "",
}
"""A house that keeps the rule: path → text."""

BROKEN = {
    "up": (
        {"sdatoms/atoms/sparse.py": '"""Codes."""\nfrom sdatoms.layers import inject\n'},
        "sdatoms.atoms.sparse:2 imports sdatoms.layers.inject, which is not below it",
    ),
    "up, in a function": (
        {
            "sdatoms/atoms/sparse.py": '"""Codes."""\ndef f():\n'
            "    from sdatoms.training.loop import train\n"
        },
        "sdatoms.atoms.sparse:3 imports sdatoms.training.loop, which is not below it",
    ),
    "sideways": (
        {"sdatoms/evaluation/scores.py": '"""Scores."""\nimport sdatoms.training.loop\n'},
        "sdatoms.evaluation.scores:2 imports sdatoms.training.loop, which is not below it",
    ),
    "into the app": (
        {
            "sdatoms/training/loop.py": '"""Steps."""\nimport sdatoms_app.queue\n'
            '__all__ = ["train"]\n'
        },
        "sdatoms.training.loop:2 imports the app",
    ),
    "the whole package": (
        {"sdatoms/layers/inject.py": '"""In."""\nimport sdatoms\n'},
        "sdatoms.layers.inject:2 imports the whole package",
    ),
    "on no floor": ({"sdatoms/utils.py": '"""All."""\n'}, "sdatoms.utils stands on no floor"),
    "a circle": (
        {
            "sdatoms/atoms/config.py": '"""Settings."""\nfrom sdatoms.atoms import keys\n'
            '__all__ = ["Config"]\n',
            "sdatoms/atoms/keys.py": '"""Names."""\nfrom sdatoms.atoms import sparse\n',
        },
        "sdatoms.atoms.config → sdatoms.atoms.keys → sdatoms.atoms.sparse → sdatoms.atoms.config",
    ),
    "a private name": (
        {"sdatoms/layers/inject.py": '"""In."""\nfrom sdatoms.atoms.config import Other\n'},
        "sdatoms.layers.inject:2 imports Other, which sdatoms.atoms.config.__all__ does not name",
    ),
    "a private name in a script": (
        {"scripts/train.py": "from sdatoms.training.loop import step\n"},
        "scripts.train:1 imports step, which sdatoms.training.loop.__all__ does not name",
    ),
    "a false front": (
        {
            "sdatoms/layers/inject.py": '"""In."""\nfrom sdatoms.errors import AtomError\n'
            '__all__ = ["AtomError", "inject"]\n'
        },
        "sdatoms.layers.inject.__all__ names AtomError, which it did not define",
    ),
    "a hidden module": (
        {"sdatoms/__init__.py": '"""Atoms."""\n__all__ = ["errors"]\n'},
        "sdatoms.errors is hidden by sdatoms.errors",
    ),
    "no docstring": (
        {"sdatoms/training/loop.py": '__all__ = ["train"]\n'},
        "sdatoms.training.loop does not say what it is for",
    ),
    "half a sentence": (
        {"sdatoms/training/loop.py": '"""Steps of\n\na run."""\n__all__ = ["train"]\n'},
        "sdatoms.training.loop does not say what it is for",
    ),
    "another floor": (
        {"sdatoms/layers/__init__.py": '"""Layers; imports files and below."""\n'},
        "sdatoms.layers does not say that it imports atoms and below",
    ),
    "a long script": (
        {"scripts/bench.py": "import json\n" * 81},
        "scripts/bench.py has 81 lines",
    ),
    "a script from a script": (
        {"scripts/bench.py": "from train import main\n"},
        "scripts/bench.py imports scripts/train.py",
    ),
    "a script from the library": (
        {"sdatoms/evaluation/scores.py": '"""Scores."""\nimport scripts.bench\n'},
        "sdatoms.evaluation.scores imports scripts/bench.py",
    ),
    "heavy": (
        {
            "sdatoms/__init__.py": '"""Atoms."""\nimport gradio\n__all__ = ["inject"]\n',
            "gradio.py": "",
        },
        "import sdatoms brings gradio",
    ),
    "gradio in the library": (
        {"sdatoms/evaluation/scores.py": '"""Scores."""\ndef draw():\n    import gradio.themes\n'},
        "sdatoms.evaluation.scores imports gradio",
    ),
    "a test of nothing": (
        {"tests/atoms/test_other.py": ""},
        "tests/atoms/test_other.py tests no module: there is no sdatoms.atoms.other",
    ),
    "a tab's test of nothing": (
        {"tests/app/queue/test_page.py": ""},
        "tests/app/queue/test_page.py tests no module: there is no sdatoms_app.queue.page",
    ),
}
"""What is broken → the files that break it, and all that is then said."""


def build_house(root, files):
    for name, text in (SOUND | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def inspect_house(root):
    return [line for find in RULE.values() for line in find(root)]


def test_a_sound_house_is_found_sound(tmp_path):
    assert inspect_house(build_house(tmp_path, {})) == []


@pytest.mark.parametrize("case", BROKEN)
def test_every_break_is_named_and_nothing_else(tmp_path, case):
    files, line = BROKEN[case]
    assert inspect_house(build_house(tmp_path, files)) == [line]


def test_relative_imports_are_refused(tmp_path):
    build_house(tmp_path, {"sdatoms/atoms/sparse.py": '"""Codes."""\nfrom . import config\n'})
    with pytest.raises(AssertionError, match=r"sdatoms\.atoms\.sparse:2 is a relative import"):
        inspect_house(tmp_path)
