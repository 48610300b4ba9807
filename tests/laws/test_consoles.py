"""Consoles of every kind: encodings, closed pipes, full disks, Ctrl-C while a command imports."""

import os
import signal
import subprocess
import sys
from itertools import product

import pytest
from tiny.pictures import save_pictures

ENCODINGS = ["ascii", "latin-1", "cp1252", "utf-16", "utf-8"]
NAME = b"caf\xe9 \xe8\xb5\xa4"
"""Of a folder: Latin-1's é, which is no UTF-8, and a character that Latin-1 lacks."""


@pytest.fixture
def commands(tmp_path, make_file, tiny_base, tiny_pipeline, evaluator_folder):
    """Command → its words, in a folder whose name is no text."""
    folder = os.fsdecode(os.path.join(os.fsencode(tmp_path), NAME))
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("the file system takes no such name")
    pictures = save_pictures(tmp_path / "pictures", ((16, 16),) * 2)
    file = make_file("赤い", block_size=2)
    base = ["--pretrained_model_name_or_path", str(tiny_pipeline())]
    few = ["--num_inference_steps", "1"]
    train = ["--instance_data_dir", str(pictures), "--instance_prompt", "赤い é", *base]
    train += ["--resolution", "16", "--max_train_steps", "1", "--validation_steps", "0"]
    made = {
        "inspect": [str(file)],
        "inject": [str(tiny_base / "unet")],
        "compose": [str(file), f"{file}=0.5", "--output", f"{folder}/sum.safetensors"],
        "train": [*train, "--output_dir", str(tmp_path / "run")],
        "dry run": [*train, "--dry_run"],
        "generate": ["赤い é", *few, "--num_images", "2", "--output_dir", folder, *base],
        "export": [str(file), "--for", "kohya", "--output", f"{folder}/lora.safetensors", *base],
        "evaluate": [
            str(file),
            *("--prompt", "é", "--seeds", "1", *few, "--evaluator", str(evaluator_folder), *base),
        ],
        "wrong": ["赤い é", "--atoms", f"{folder}/赤い"],
    }
    return {
        name: [{"dry run": "train", "wrong": "generate"}.get(name, name), *words]
        for name, words in made.items()
    }


NAMES = ["inspect", "inject", "compose", "train", "dry run", "generate", "export", "evaluate"]
CONSOLES = [
    *(("out", "err", encoding) for encoding in ENCODINGS),
    ("out", "/dev/full", "utf-8"),
    *product(("gone", "closed"), ("err", "gone", "closed"), ["ascii"]),
]


@pytest.mark.parametrize("name", [*NAMES, "wrong"])
def test_commands_do_their_work_on_every_console(forge, tmp_path, commands, name):
    consoles = CONSOLES if name in ("compose", "wrong") else [("gone", "gone", "ascii")]
    for out, err, encoding in [*consoles, ("out", "err", "ascii")]:
        code, said, errors = forge.run(tmp_path, commands[name], out, err, encoding)
        shown = (name, out, err, encoding, code, said[-500:], errors[-1000:])
        assert code == (2 if name == "wrong" else 0), shown
        assert b"Traceback" not in errors and b"ignored" not in errors, shown
    # A reader that left takes nothing away: every picture is painted.
    assert name != "generate" or len(list(tmp_path.glob("caf*/*.png"))) == 4


def test_names_come_out_as_the_bytes_they_are(forge, tmp_path, commands):
    code, said, _ = forge.run(tmp_path, commands["generate"], encoding="utf-8")
    paths = said.splitlines()
    assert code == 0 and len(paths) == 2 and all(map(os.path.isfile, paths))


def test_a_full_disk_under_standard_output_is_one_line(forge, tmp_path, commands):
    code, _, errors = forge.run(tmp_path, commands["inspect"], "/dev/full")
    assert code == 2
    assert errors == b"sdatoms: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    "words", [["--help"], ["inspect", "--help"], ["train", "--help"], ["--version"]]
)
def test_help_into_a_closed_pipe_says_nothing_more(words):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sdatoms", *words]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


SIGNALLED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
_, module, number, *words = sys.argv
class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(number))
sys.meta_path.insert(0, Interrupter())
from sdatoms.__main__ import main
sys.argv[1:] = words
main()
"""
"""A signal comes in the moment a module is imported."""


@pytest.mark.parametrize(
    ("command", "module", "number"),
    [
        *(("train", name, signal.SIGINT) for name in ("sdatoms.cli.main", "sdatoms.cli.train")),
        *(("train", "torch", n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
        *(("train", name, signal.SIGINT) for name in ("numpy", "torch._C", "torch.nn")),
        *((name, "diffusers", signal.SIGINT) for name in ("generate", "ui", "evaluate")),
    ],
)
def test_a_stop_while_a_command_imports_is_said_in_a_line(command, module, number):
    words = [sys.executable, "-c", SIGNALLED, module, str(int(number)), command]
    words += {"generate": ["x"], "evaluate": ["x"]}.get(command, [])
    done = subprocess.run(words, capture_output=True, text=True)
    assert "Traceback" not in done.stderr  # libraries may have warned of something
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "sdatoms: stopped")


SWALLOWED = """
import os, signal, sys
class Swallower:
    def find_spec(self, name, path=None, target=None):
        if name == "sdatoms.cli.files":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt as error:
                {0}
sys.meta_path.insert(0, Swallower())
"""


@pytest.mark.parametrize("then", ["pass", "raise ImportError('initialization failed') from None"])
def test_a_library_that_swallows_the_interrupt_changes_nothing(forge, tmp_path, make_file, then):
    words = ["inspect", make_file()]
    code, _, errors = forge.run(tmp_path, words, code=SWALLOWED.format(then))
    assert (code, errors) == (130, b"sdatoms: stopped\n")
