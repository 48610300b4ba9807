"""Files nobody should make: refused, cheaply, with nothing changed.

What is wrong inside one file is in `files/test_reader.py`, what does not fit a model in
`adapters/test_plan.py`; second injections and patterns that match nothing are in `layers/`.
"""

import json
import random

import pytest
import torch
from tiny.atoms import read_raw, refuse_file, write_raw
from tiny.limits import little_memory
from tiny.modules import copy_weights, same_weights
from torch import nn

from sdatoms import AtomConfig, AtomError, compose, inject, load_atoms, read_atoms
from sdatoms.files.atom_file import FORMAT, AtomFile
from sdatoms.files.writer import FileFacts, pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")


def shift(key, change):
    def spoil(header, data):
        header[key]["data_offsets"] = change(*header[key]["data_offsets"])
        return header, data

    return spoil


ENCODER = "unet.conv_in.spatial.encoder"


OFFSETS = {
    "overlap": shift(ENCODER, lambda a, b: [a - 4, b - 4]),
    "gap": shift(ENCODER, lambda a, b: [a + 4, b + 4]),
    "past the end": shift(ENCODER, lambda a, b: [10**9, 10**9 + b - a]),
    "negative": shift(ENCODER, lambda a, b: [-8, b - a - 8]),
    "backwards": shift(ENCODER, lambda a, b: [b, a]),
    "too few bytes": shift(ENCODER, lambda a, b: [a, b - 4]),
    "beyond 64 bits": shift(ENCODER, lambda a, b: [2**70, 2**70 + 4]),
    "shape too large": lambda header, data: (
        header | {ENCODER: header[ENCODER] | {"shape": [2**40, 2**40]}},
        data,
    ),
    "unknown dtype": lambda header, data: (
        header | {ENCODER: header[ENCODER] | {"dtype": "PICKLE"}},
        data,
    ),
}


@pytest.mark.parametrize("case", OFFSETS)
def test_offsets_that_lie_are_refused(make_unet, make_file, case):
    path = make_file()
    write_raw(path, *OFFSETS[case](*read_raw(path)))
    refuse_file(make_unet(), path, "cut short or damaged")


def test_thousands_of_tiny_tensors_are_refused_without_a_layout(tmp_path, make_file, make_unet):
    """Fewer than a header may hold, every one in its place."""
    header, _ = read_raw(make_file())
    kept = {"__metadata__": header["__metadata__"]}
    for k in range(20_000):
        kept[f"unet.layer{k}.spatial.atoms"] = {
            "dtype": "F16",
            "shape": [1],
            "data_offsets": [2 * k, 2 * k + 2],
        }
    path = tmp_path / "many.safetensors"
    write_raw(path, kept, bytes(40_000))
    with little_memory(1 << 30):
        refuse_file(make_unet(), path, "has no layout in the header")


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_infinite_numbers_are_refused(make_unet, make_file, value):
    path = make_file()
    file = read_atoms(path)
    file.tensors[ENCODER][0, 0] = value
    file.save(path)
    refuse_file(make_unet(), path, f"'{ENCODER}' holds NaN or infinite")


def spoil(key, change):
    def spoil(file):
        file.tensors[key] = change(file.tensors[key])

    return spoil


def with_nan(tensor):
    return tensor.index_put((torch.tensor([0]),), torch.tensor(torch.nan))


IN_MEMORY = {
    "nan in the atoms": (
        spoil("unet.conv_in.spatial.inner_atoms", with_nan),
        r"'unet\.conv_in\.spatial\.inner_atoms' holds NaN",
    ),
    "nan in the encoder": (spoil(ENCODER, with_nan), f"'{ENCODER}' holds NaN"),
    "another shape": (spoil(ENCODER, lambda t: t[:4]), r"has an encoder of shape \(4, 9\)"),
    "integers": (spoil(ENCODER, lambda t: t.int()), r"is torch\.int32 where a floating-point"),
    "no layout": (lambda f: f.metadata.update(layers="{}"), "has no layout in the header"),
    "no tensors": (lambda f: f.tensors.clear(), "holds no tensors"),
}


@pytest.mark.parametrize("case", IN_MEMORY)
def test_a_file_changed_in_memory_is_not_believed_either(make_unet, make_file, case):
    """A NaN is refused before anything is baked, wherever the file comes from."""
    change, sentence = IN_MEMORY[case]
    file = read_atoms(make_file())
    change(file)
    refuse_file(make_unet(), file, f"the atom file.* {sentence}|the atom file {sentence}")
    with pytest.raises(AtomError, match=f"file 2.*{sentence}"):
        compose([read_atoms(make_file("other")), file])


@pytest.mark.parametrize(
    ("dtype", "strength", "sentence"),
    [
        (torch.float32, 1e300, "leave the sum of the atoms no finite float32 numbers"),
        (torch.float16, 1e8, r"leaves 'conv_in' no finite weights in torch\.float16; lower the"),
    ],
)
def test_changes_without_finite_weights_are_taken_back(
    make_unet, make_file, dtype, strength, sentence
):
    path = make_file()
    refuse_file(make_unet().to(dtype), path, sentence, strength=strength)
    unet = make_unet().to(dtype)
    before = copy_weights(unet)
    adapters = load_atoms(unet, path, name="dog", strength=0.5)
    baked = copy_weights(unet)
    with pytest.raises(AtomError, match=sentence):
        adapters.set_strengths({"dog": strength})
    assert adapters.strengths == {"dog": 0.5}
    assert same_weights(unet, baked)
    adapters.clear()
    assert same_weights(unet, before)


@pytest.mark.parametrize("number", ["1e999", "NaN", "1" + "0" * 400, "true", '"1"'])
def test_fingerprints_that_are_no_numbers_are_refused(make_unet, make_file, number):
    path = make_file()
    file = read_atoms(path)
    table = file.fingerprints
    table["unet"]["conv_in"] = []
    text = json.dumps(table)
    file.metadata["base_fingerprints"] = text.replace("[]", f"[{number}, 0, 0, {number}]")
    file.save(path)
    refuse_file(make_unet(), path, "fingerprint of 'conv_in' is not four numbers")


@pytest.mark.parametrize("kernel", [[2**80, 1], [10**4000, 10**4000], [True, 1]])
def test_layouts_of_absurd_size_are_refused(make_unet, make_file, kernel):
    path = make_file()
    file = read_atoms(path)
    layers = file.layers
    layers["unet.conv_in"]["kernel"] = kernel
    file.metadata["layers"] = json.dumps(layers)
    file.save(path)
    refuse_file(make_unet(), path, "without a kernel of up to three whole numbers")


def test_megabytes_of_text_are_kept_out_of_every_message(make_unet, make_file, make_convnet):
    path = make_file()
    file = read_atoms(path)
    page = "<script>alert(1)</script>\r\n\x00\x1b]0;" * 100_000
    metadata = file.metadata
    metadata |= {"trigger": page, "modelspec.title": page, "modelspec.description": page}
    file.save(path)
    again = read_atoms(path)
    assert again.trigger == page
    adapters = load_atoms(make_unet(), again)
    assert max(map(len, adapters.names)) <= 120
    other = pack_atoms({"unet": inject(make_unet(seed=1))}, FileFacts(trigger=page))
    with pytest.raises(AtomError, match="were trained on different bases") as error:
        compose([again, other])
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


def make_hostile(layers, tensors, layout):
    """An atom file of many layers that share tensors."""
    return AtomFile(
        AtomConfig(),
        {
            "format": FORMAT,
            "config": json.dumps(AtomConfig().to_dict()),
            "layers": json.dumps({f"unet.{k}": layout for k in range(layers)}),
            "base_fingerprints": "{}",
        },
        {f"unet.{k}.{name}": t.clone() for k in range(layers) for name, t in tensors.items()},
    )


def test_small_files_do_not_ask_for_gigabytes_of_channels(tmp_path):
    tensors = {
        "spatial.encoder": torch.ones(9, 1),
        "spatial.inner_coefficients": torch.ones(2_000_000, 1, 1),
        "spatial.inner_atoms": torch.ones(1, 1, 9),
    }
    path = make_hostile(1, tensors, {"kernel": [3, 3], "groups": 1}).save(tmp_path / "x")
    with (
        little_memory(600 << 20),
        pytest.raises(AtomError, match="asks for 2000000 maps of 9×9 numbers where 67108864"),
    ):
        read_atoms(path)


@pytest.fixture
def wide():
    """Two files of 36 kB a layer whose maps have 16 million numbers each."""
    layout = {"kernel": [], "groups": 1, "view": "channel", "block": [64, 64]}
    return [
        make_hostile(
            8,
            {"block.encoder": torch.randn(4096, 1), "block.atoms": torch.full((1, 4096), 1e-3)},
            layout,
        )
        for _ in range(2)
    ]


def test_maps_of_small_files_are_not_kept(wide):
    """Eight maps of 128 MiB, one after the other."""
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(8)])
    before = copy_weights(model)
    with little_memory(800 << 20):
        adapters = load_atoms(model, wide[0], name="x")
        assert not torch.equal(model[7].weight, before["7.weight"])
        adapters.clear()
    assert same_weights(model, before)


def test_sums_of_small_files_are_small(wide):
    with little_memory(600 << 20):
        summed = compose(wide, [1, -1])
    assert summed.num_parameters == sum(file.num_parameters for file in wide)


def test_no_change_of_bytes_gets_past_the_reader(tmp_path, perturb):
    """Any damage is refused as damage, or leaves a file that is one."""
    injection = perturb(inject(nn.Sequential(nn.Conv2d(2, 2, 3)), AtomConfig("atoms")))
    path = pack_atoms({"unet": injection}, FileFacts(trigger="sks")).save(
        tmp_path / "x.safetensors"
    )
    data = path.read_bytes()
    draw, refused = random.Random(0), 0
    start = 8 + int.from_bytes(data[:8], "little")
    for turn in range(600):
        spoiled = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 8))):
            spoiled[draw.randrange(len(data) if turn % 3 else start)] = draw.randrange(256)
        if turn % 5 == 0:
            spoiled = spoiled[: draw.randrange(len(data))]
        path.write_bytes(spoiled)
        try:
            file = read_atoms(path)
        except AtomError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
        else:
            assert file.num_parameters == injection.num_parameters
    assert refused > 300
