"""Laws of the reader: nothing that a stranger's file says is believed."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.atoms import read_raw, write_raw
from tiny.modules import copy_weights, same_weights

from sdatoms import AtomError, load_atoms, read_atoms
from sdatoms.errors import clip

pytestmark = pytest.mark.usefixtures("one_thread")


KEY = "unet.conv_in.spatial.inner_atoms"


def spoil_tensors(change):
    def spoil(path):
        tensors, metadata = load_file(path), read_raw(path)[0]["__metadata__"]
        change(tensors, metadata)
        save_file(tensors, path, metadata)

    return spoil


def spoil_entry(entry, change):
    """Change one JSON table of the header."""

    def spoil(tensors, metadata):
        table = json.loads(metadata[entry])
        change(table)
        metadata[entry] = json.dumps(table)

    return spoil_tensors(spoil)


def with_nan(tensors, metadata):
    tensors[KEY][0, 0, 0] = torch.nan


def claim_tensors(count):
    """A header that claims `count` tensors of no bytes."""
    one = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return lambda path: write_raw(path, {f"{i}": one for i in range(count)})


def claim_wide_map(tensors, metadata):
    # Tensors of kilobytes whose map would have 16 · 10^12 numbers.
    tensors.clear()
    tensors["unet.conv_in.block.encoder"] = torch.ones(4_000_000, 1)
    tensors["unet.conv_in.block.atoms"] = torch.ones(1, 4_000_000)
    layout = {"kernel": [], "groups": 1, "view": "channel", "block": [2000, 2000]}
    metadata["layers"] = json.dumps({"unet.conv_in": layout})


BAD = {
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "is no safetensors file"),
    "empty": (lambda p: p.write_bytes(b""), "is no safetensors file"),
    "text": (lambda p: p.write_text("<!DOCTYPE html>" * 99), "is no safetensors file"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:500]), "was cut short"),
    "cut in the tensors": (lambda p: p.write_bytes(p.read_bytes()[:-9]), "is cut short or damaged"),
    "longer": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "is cut short or damaged"),
    "header past the end": (lambda p: write_raw(p, {}, claim=2**40), "was cut short"),
    "header no JSON": (lambda p: p.write_bytes(b"\x02" + b"\0" * 7 + b"{]"), "is not JSON"),
    "header deep": (
        lambda p: p.write_bytes((200_006).to_bytes(8, "little") + b'{"a": ' + b"[" * 200_000),
        "is not JSON",
    ),
    "header of 17 MB": (
        lambda p: p.write_bytes((17 << 20).to_bytes(8, "little") + b"{" * (17 << 20)),
        "has a header of 17825792 bytes; at most",
    ),
    "200,000 tensors": (claim_tensors(200_000), "has a header of 200000 entries; at most 100000"),
    "a million tensors": (claim_tensors(1_000_000), r"has a header of \d+ bytes; at most 16777216"),
    "metadata no text": (
        lambda p: write_raw(p, {"__metadata__": {"format": 1}}),
        "metadata is not plain text",
    ),
    "no metadata": (lambda p: write_raw(p, {}), "its format is 'none' where 'sdatoms/1' fits"),
    "future": (
        spoil_tensors(lambda t, m: m.update(format="sdatoms/2")),
        "of format 'sdatoms/2' where 'sdatoms/1' fits; a newer sdatoms may read it",
    ),
    "lora": (
        lambda p: save_file({"unet.conv_in.lora_A.weight": torch.ones(4, 4)}, p, {"format": "pt"}),
        r"'unet\.conv_in\.lora_A\.weight', which is no half of a pair",
    ),
    "lora in our format": (
        spoil_tensors(lambda t, m: t.update({"unet.conv_in.lora_A.weight": torch.ones(4, 4)})),
        r"'unet\.conv_in\.lora_A\.weight' is not named <component>",
    ),
    "control characters": (
        spoil_tensors(lambda t, m: m.update(format="\x1b[2Jdone\r\n" * 99)),
        "its format is ' .2Jdone",
    ),
    "no config": (spoil_tensors(lambda t, m: m.pop("config")), "lacks the header entry 'config'"),
    "config no table": (
        spoil_tensors(lambda t, m: m.update(config="[1]")),
        "entry 'config' that is no JSON table",
    ),
    "config unknown": (
        spoil_entry("config", lambda c: c.update(power=9)),
        "config of another kind: AtomConfig has no setting 'power'",
    ),
    "fingerprint short": (
        spoil_entry("base_fingerprints", lambda f: f["unet"].update(conv_in=[1.0])),
        "fingerprint of 'conv_in' is not four numbers",
    ),
    "fingerprints no table": (
        spoil_entry("base_fingerprints", lambda f: f.update(unet=[])),
        "fingerprints of 'unet' that are no table",
    ),
    "no layout": (spoil_entry("layers", lambda l: l.pop("unet.conv_in")), "has no layout"),
    "kernel": (
        spoil_entry("layers", lambda l: l["unet.conv_in"].update(kernel=[3, -3])),
        "without a kernel of up to three whole numbers",
    ),
    "groups": (
        spoil_entry("layers", lambda l: l["unet.conv_in"].pop("groups")),
        "without a number of groups",
    ),
    "other kernel": (
        spoil_entry("layers", lambda l: l["unet.conv_in"].update(kernel=[5, 5])),
        r"has an encoder of shape \(9, 9\) where \(25, at most 25\) fits",
    ),
    "nan": (spoil_tensors(with_nan), r"'unet\.conv_in\.spatial\.inner_atoms' holds NaN"),
    "integers": (
        spoil_tensors(lambda t, m: t.update({KEY: t[KEY].int()})),
        r"is torch\.int32 where a floating-point",
    ),
    "shape": (
        spoil_tensors(lambda t, m: t.update({KEY: t[KEY][:, :, :8].contiguous()})),
        r"has inner_atoms of shape \(9, 1, 8\) where \(9, 1, 9\) fits",
    ),
    "scalar": (
        spoil_tensors(lambda t, m: t.update({KEY: torch.ones(())})),
        r"has inner_\w+ of shape",
    ),
    "empty tensor": (
        spoil_tensors(lambda t, m: t.update({KEY: torch.ones(9, 0, 9)})),
        "holds an empty tensor",
    ),
    "tensor missing": (spoil_tensors(lambda t, m: t.pop(KEY)), "not one encoder with one set"),
    "tensor unknown": (
        spoil_tensors(lambda t, m: t.update({"unet.conv_in.spatial.eval": torch.ones(1)})),
        "not one encoder with one set",
    ),
    "no tensors": (spoil_tensors(lambda t, m: t.clear()), "holds no tensors"),
    "wide map": (spoil_tensors(claim_wide_map), "has 4000000 columns where at most 4096 fit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line_and_the_model_stays(make_unet, make_file, case):
    spoil, sentence = BAD[case]
    unet = make_unet()
    before = copy_weights(unet)
    path = make_file()
    spoil(path)

    with pytest.raises(AtomError, match=sentence) as error:
        load_atoms(unet, path)

    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600
    assert "dog.safetensors" in str(error.value)
    assert same_weights(unet, before)
    assert not any(name.startswith("_sdatoms") for name in vars(unet))


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(AtomError, match="there is no file"):
        read_atoms(tmp_path / "none.safetensors")
    with pytest.raises(AtomError, match="there is no file"):
        read_atoms(tmp_path)
    with pytest.raises(AtomError, match="cannot be read"):
        read_atoms(tmp_path / ("long" * 100))


def test_text_with_control_characters_is_kept_and_shown_on_one_line(make_file):
    path = make_file()
    spoil_tensors(lambda t, m: m.update(trigger="\x1b[31mred\n\u202edog"))(path)
    file = read_atoms(path)
    assert file.trigger == "\x1b[31mred\n\u202edog"
    assert clip(file.trigger).isprintable()
    assert len(clip("x" * 10**7)) == 120
