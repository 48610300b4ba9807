"""I. Commands do their work whatever surrounds them, or say in one sentence what is in the way."""

import pytest
from tiny.pictures import save_pictures

NOWHERE = "/dev/null/nowhere"
PROXY, SOCKS = "http://127.0.0.1:9", "socks5://127.0.0.1:9"
AROUND = {
    "no home": {"HOME": None, "HF_HOME": NOWHERE, "XDG_CACHE_HOME": NOWHERE},
    "a home that cannot be made": {"HOME": NOWHERE, "MPLCONFIGDIR": NOWHERE},
    "no place for codes": {"SDATOMS_CODE_CACHE": NOWHERE, "XDG_CACHE_HOME": NOWHERE},
    "no temporary folder": {"TMPDIR": NOWHERE, "GRADIO_TEMP_DIR": NOWHERE},
    "a proxy": {"http_proxy": PROXY, "https_proxy": PROXY, "NO_PROXY": None},
    "a SOCKS proxy": {"ALL_PROXY": SOCKS, "all_proxy": SOCKS},
    "a proxy that is none": {"http_proxy": "nonsense", "HTTPS_PROXY": "://"},
    "a language that is none": {"LC_ALL": "xx_YY.none", "LANG": ""},
}
"""What is set, or taken away, in the environment."""
SET = """
import os, tempfile
tempfile.tempdir = None
for name, value in {0}.items():
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
"""
WAYS = {
    "a file": "open(PLACE, 'w').close()",
    "below a file": "open(PLACE.rpartition('/')[0], 'w').close()",
    "a loop": "import os; os.symlink(PLACE, PLACE)",
    "below /dev/null": "",
    "below /proc": "",
}
"""What is in the way of a folder → Python that puts it there."""


@pytest.fixture
def commands(tmp_path, tiny_pipeline):
    """Command → its words; `PLACE` is where it writes."""
    pictures = save_pictures(tmp_path / "pictures", ((16, 16),) * 2)
    base = ["--pretrained_model_name_or_path", str(tiny_pipeline())]
    few = ["--resolution", "16", "--max_train_steps", "1", "--validation_steps", "0"]
    train = ["train", "--instance_data_dir", str(pictures), "--instance_prompt", "sks", *few, *base]
    return {
        "generate": ["generate", "x", "--num_inference_steps", "1", "--output_dir", "PLACE", *base],
        "train": [*train, "--output_dir", "PLACE"],
    }


@pytest.mark.parametrize("name", AROUND)
def test_commands_do_their_work_in_every_environment(forge, tmp_path, commands, name):
    for command, words in commands.items():
        given = [word.replace("PLACE", command) for word in words]
        if command == "train" and "codes" in name:
            given += ["--atom_decomposition", "sparse", "--atom_variant", "atoms"]
        code, _, said = forge.run(tmp_path, given, code=SET.format(AROUND[name]))
        assert code == 0 and b"Traceback" not in said, (command, said[-2000:])
        assert any((tmp_path / command).iterdir())


@pytest.mark.parametrize("way", WAYS)
def test_folders_that_cannot_be_made_are_named(forge, tmp_path, commands, way):
    for command, words in commands.items():
        inside = {"below a file": f"{command}-file/x", "below /dev/null": "/dev/null/x"}
        place = {"below /proc": "/proc/x", **inside}.get(way, command)
        given = [word.replace("PLACE", place) for word in words]
        code, _, said = forge.run(tmp_path, given, code=WAYS[way].replace("PLACE", repr(place)))
        last = said.decode().strip().splitlines()[-1]
        assert code == 2 and b"Traceback" not in said, (command, said[-2000:])
        assert last.startswith("sdatoms: ") and place.split("/")[-1] in last


def test_the_folder_one_stands_in_may_be_gone(forge, tmp_path, commands):
    leave = "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"
    for words in commands.values():
        code, _, said = forge.run(tmp_path, words, code=leave)
        assert code == 2 and b"the current folder is gone" in said
