"""Laws of the atom file: what is saved comes back, and nothing else is believed."""

import hashlib
import json
import pickle
import resource

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny.atoms import VARIANTS

import sdatoms
from sdatoms import AtomConfig, AtomError, inject, load_atoms, read_atoms, save_atoms
from sdatoms.errors import clip
from sdatoms.files.writer import pack_atoms
from sdatoms.fingerprint import checksum, fingerprint, matches
from sdatoms.pictures import make_thumbnail
from sdatoms.storage import write_whole

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = "unet.conv_in.spatial.inner_atoms"


def read_parts(path):
    """Tensors, metadata and the offset of the first tensor byte, read without our code."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return load_file(path), json.loads(data[8 : 8 + size])["__metadata__"], 8 + size


def write_header(path, header, claim=None):
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if claim is None else claim).to_bytes(8, "little") + text)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_base_with_the_file_is_the_injected_model(
    tmp_path, make_unet, run_unet, perturb, tolerance, variant
):
    unet, fresh = make_unet(), make_unet()
    injection = perturb(inject(unet, AtomConfig(variant)))
    path = save_atoms(tmp_path / "new" / "dog.bin", {"unet": injection}, trigger="sks dog")
    file = read_atoms(path)
    load_atoms(fresh, path)

    assert not torch.equal(run_unet(fresh), run_unet(make_unet()))
    torch.testing.assert_close(run_unet(fresh), run_unet(unet), **tolerance[torch.float32])
    assert file.components == ("unet",)
    assert file.num_parameters == injection.num_parameters
    assert file.trigger == "sks dog"
    assert file.config == injection.config
    for name, tensor in injection.state_dict().items():
        assert torch.equal(file.tensors[f"unet.{name}"], tensor), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_are_module_paths_with_the_agreed_tensors(make_unet, make_file, variant):
    tensors, metadata, _ = read_parts(make_file(variant=variant))
    modules = dict(make_unet().named_modules())
    layouts = json.loads(metadata["layers"])
    ends = set()
    for key, tensor in tensors.items():
        path, view, name = key.removeprefix("unet.").rsplit(".", 2)
        ends.add(f"{view}.{name}")
        layout = layouts[f"unet.{path}"]
        assert layout["kernel"] == list(modules[path].weight.shape[2:])
        assert layout["groups"] == 1
        if view == "block":
            assert layout["view"] in ("channel", "joint")
            assert len(layout["block"]) == 2
        assert tensor.dtype == torch.float32
    spatial = {"spatial.encoder", "spatial.inner_coefficients", "spatial.inner_atoms"}
    block = {"block.encoder", "block.atoms"}
    assert (
        ends
        == {
            "atoms": {"spatial.encoder", "spatial.atoms"},
            "overcomplete": spatial,
            "coefficients": block,
            "full": spatial | block,
        }[variant]
    )


def test_the_header_holds_what_readers_and_browsers_look_for(tmp_path, make_unet):
    unet = make_unet()
    injection = inject(unet, AtomConfig(seed=4))
    path = save_atoms(
        tmp_path / "dog.safetensors",
        {"unet": injection},
        trigger="sks dog",
        base_model="runwayml/sd",
        base_revision="abc",
        step=20,
        seed=3,
        title="A dog",
        description="Of mine",
        resolution=64,
        prediction_type="v_prediction",
        thumbnail="data:image/png;base64,AA==",
        metadata={"modelspec.author": "me"},
    )
    tensors, metadata, start = read_parts(path)

    assert metadata.pop("modelspec.date")
    assert json.loads(metadata.pop("config")) == injection.config.to_dict()
    prints = json.loads(metadata.pop("base_fingerprints"))["unet"]
    assert (
        set(prints)
        == set(injection.layers)
        == {k.removeprefix("unet.") for k in json.loads(metadata.pop("layers"))}
    )
    assert prints["conv_in"][0] == pytest.approx(float(unet.conv_in.weight.detach().norm()), 1e-4)
    assert metadata == {
        "format": "sdatoms/1",
        "base_model": "runwayml/sd",
        "base_revision": "abc",
        "trigger": "sks dog",
        "step": "20",
        "seed": "3",
        "sdatoms_version": sdatoms.__version__,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/filter-atoms",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": "A dog",
        "modelspec.description": "Of mine",
        "modelspec.trigger_phrase": "sks dog",
        "modelspec.thumbnail": "data:image/png;base64,AA==",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "v",
        "modelspec.hash_sha256": "0x" + hashlib.sha256(path.read_bytes()[start:]).hexdigest(),
        "modelspec.author": "me",
    }
    assert path.stat().st_size - start == sum(t.numel() for t in tensors.values()) * 4


def test_thumbnails_are_pictures_inside_a_uri(tmp_path, make_unet):
    injection = inject(make_unet())
    picture = make_thumbnail(Image.new("RGB", (300, 200), "red"))
    path = save_atoms(tmp_path / "dog.safetensors", {"unet": injection}, thumbnail=picture)
    assert read_atoms(path).metadata["modelspec.thumbnail"] == picture
    for bad in (
        "https://somewhere/else.png",
        "data:text/html;base64,AA==",
        'data:image/png;base64,AA=="><script>',
        "data:image/png;base64," + "A" * (1 << 20),
    ):
        with pytest.raises(AtomError, match=r"the thumbnail '.*is no 'data:image/jpeg;base64"):
            save_atoms(path, {"unet": injection}, thumbnail=bad)
    assert read_atoms(path).metadata["modelspec.thumbnail"] == picture


@pytest.mark.parametrize(
    ("width", "prediction", "name", "kind"),
    [
        (768, "epsilon", "stable-diffusion-v1", "epsilon"),
        (1024, "epsilon", "stable-diffusion-v2-512", "epsilon"),
        (1024, "v_prediction", "stable-diffusion-v2-768-v", "v"),
        (2048, "epsilon", "stable-diffusion-xl-v1-base", "epsilon"),
    ],
)
def test_model_browsers_are_told_the_family(make_unet, width, prediction, name, kind):
    unet = make_unet()
    unet.register_to_config(cross_attention_dim=width)
    injection = inject(unet, AtomConfig("atoms"))
    meta = pack_atoms({"unet": injection}, base_model="b", prediction_type=prediction).metadata
    assert meta["modelspec.architecture"] == f"{name}/filter-atoms"
    assert meta["modelspec.prediction_type"] == kind
    assert (
        f"variant atoms, {injection.num_parameters:,} parameters on b"
        in (meta["modelspec.description"])
    )


def test_a_plain_reader_gets_the_same_delta(make_unet, make_file):
    """The page's formula in numpy, for one layer, from nothing but the file and the weight."""
    path = make_file()
    tensors, _, _ = read_parts(path)
    unet = make_unet()
    t = {k.rsplit(".", 1)[1]: v.numpy() for k, v in tensors.items() if ".conv_in." in k}
    weight = unet.conv_in.weight.detach().numpy()
    atoms = np.einsum("caj,ajp->cap", t["inner_coefficients"], t["inner_atoms"])
    flat = weight.reshape(*weight.shape[:2], -1)
    delta = np.einsum("oip,pa,iaq->oiq", flat, t["encoder"], atoms).reshape(weight.shape)

    ours = load_atoms(unet, path, name="dog").delta("dog", "conv_in")

    torch.testing.assert_close(ours, torch.from_numpy(delta), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_of_half_the_size_are_read_too(tmp_path, make_unet, run_unet, perturb, dtype):
    injection = perturb(inject(make_unet()))
    path = save_atoms(tmp_path / "half", {"unet": injection}, dtype=dtype)
    full, half = make_unet(), make_unet()
    load_atoms(full, pack_atoms({"unet": injection}))
    load_atoms(half, path)

    assert {t.dtype for t in read_atoms(path).tensors.values()} == {dtype}
    torch.testing.assert_close(run_unet(half), run_unet(full), rtol=0.05, atol=0.02)


def test_what_cannot_be_saved_is_refused(tmp_path, make_unet, perturb):
    unet = make_unet()
    injection = inject(unet)
    target = tmp_path / "dog.safetensors"

    def refuse(sentence, injections, **details):
        with pytest.raises(AtomError, match=sentence):
            save_atoms(target, injections, **details)
        assert not target.exists()

    refuse("nothing to save", {})
    refuse(r"'unet\.x' is not a plain name", {"unet.x": injection})
    refuse("cannot replace the header entry 'format'", {"unet": injection}, metadata={"format": ""})
    stray = {"unet.x.spatial.atoms": torch.zeros(1)}
    refuse("fits no tensor of these", {"unet": injection}, tensors=stray)
    broken = {KEY: torch.full_like(injection.state_dict()[KEY.removeprefix("unet.")], torch.inf)}
    refuse("NaN or infinite", {"unet": injection}, tensors=broken)
    sparse = inject(make_unet(), AtomConfig("atoms", "sparse"))
    refuse("atoms are linear and sparse; a file holds one", {"unet": injection, "model": sparse})
    injection.eject()
    refuse("were ejected", {"unet": injection})


def test_replacement_tensors_take_the_place_of_live_ones(make_unet, perturb):
    injection = inject(make_unet())
    state = {f"unet.{k}": v for k, v in injection.state_dict().items()}
    perturb(injection)
    file = pack_atoms({"unet": injection}, tensors=state)
    assert all(torch.equal(file.tensors[k], v) for k, v in state.items())


def test_a_failing_write_leaves_the_old_file_whole(tmp_path, make_file):
    path = make_file()
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            read_atoms(path).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def spoil_tensors(change):
    def spoil(path):
        tensors, metadata, _ = read_parts(path)
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
    return lambda path: write_header(path, {f"{i}": one for i in range(count)})


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
    "header past the end": (lambda p: write_header(p, {}, claim=2**40), "was cut short"),
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
        lambda p: write_header(p, {"__metadata__": {"format": 1}}),
        "metadata is not plain text",
    ),
    "no metadata": (lambda p: write_header(p, {}), "its format is 'none' where 'sdatoms/1' fits"),
    "future": (
        spoil_tensors(lambda t, m: m.update(format="sdatoms/2")),
        "of format 'sdatoms/2' where 'sdatoms/1' fits; a newer sdatoms may read it",
    ),
    "lora": (
        lambda p: save_file({"unet.conv_in.lora_A.weight": torch.ones(4, 4)}, p, {"format": "pt"}),
        "its format is 'pt' where 'sdatoms/1' fits",
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
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    path = make_file()
    spoil(path)

    with pytest.raises(AtomError, match=sentence) as error:
        load_atoms(unet, path)

    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600
    assert "dog.safetensors" in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_fingerprints_survive_casts_and_tell_weights_apart(rng, dtype):
    weight = torch.randn(96, 40, 7, 7, generator=rng)
    print_ = fingerprint(weight)
    assert matches(print_, fingerprint(weight.to(dtype)))
    assert not matches(print_, fingerprint(weight * 1.05))
    assert not matches(print_, fingerprint(-weight))
    assert not matches(print_, fingerprint(torch.randn(weight.shape, generator=rng)))
    assert fingerprint(torch.zeros(3, 3)) == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_checksums_notice_any_bit_and_any_order(rng, dtype):
    weight = torch.randn(301, 1001, generator=rng).to(dtype)
    found = checksum(weight)
    assert checksum(weight.clone()) == found
    changed = weight.clone()
    changed[300, 1000] = torch.nextafter(changed[300, 1000].float() * 1.01, torch.tensor(9.0))
    assert checksum(changed) != found
    assert checksum(-weight) != found
    assert checksum(weight.flip(0)) != found
    assert checksum(weight.roll(1)) != found
    assert checksum(torch.zeros(8)) != checksum(-torch.zeros(8))
    strided = weight.T.contiguous().T
    assert checksum(strided) == found
