"""Laws of looking inside a file: sums that fit the file, tiles that fit the layer."""

import pytest
import torch
from tiny.atoms import VARIANTS, measure_deltas

import sdatoms
from sdatoms.adapters.changes import measure_changes
from sdatoms.files.anatomy import count_atoms, list_views, mute_atom, respond, show_atoms
from sdatoms.files.contents import report_file


def test_tiles_are_the_dictionary_that_rebuilds_the_filters(make_unet, make_file):
    """With A = X E, A D is X before, and A (D + ΔD) is X + ΔX after."""
    file, unet = sdatoms.read_atoms(make_file(variant="atoms")), make_unet()
    change = measure_deltas(file, unet)
    for component, path, view in list_views(file)[:4]:
        tiles = show_atoms(file, component, path, view)
        weight = unet.get_submodule(path).weight.detach()
        filters = weight.reshape(-1, 9)
        coefficients = filters @ file.tensors[f"{component}.{path}.{view}.encoder"]
        assert tiles.before.shape[1:] == (3, 3)
        torch.testing.assert_close(
            coefficients @ tiles.before.flatten(1), filters, atol=1e-4, rtol=1e-3
        )
        after = (filters + change[path].reshape(-1, 9)).detach()
        torch.testing.assert_close(
            coefficients @ tiles.after.flatten(1), after, atol=1e-4, rtol=1e-3
        )


def test_channel_tiles_average_to_the_mean_tile(make_file):
    file = sdatoms.read_atoms(make_file(variant="overcomplete"))
    component, path, view = list_views(file)[0]
    mean = show_atoms(file, component, path, view)
    each = [show_atoms(file, component, path, view, c).difference for c in range(mean.channels)]
    torch.testing.assert_close(torch.stack(each).mean(0), mean.difference)
    with pytest.raises(sdatoms.AtomError, match=f"channel is {mean.channels}"):
        show_atoms(file, component, path, view, mean.channels)
    with pytest.raises(sdatoms.AtomError, match="no 'block' view"):
        show_atoms(file, component, path, "block")


@pytest.mark.parametrize(("view", "side"), [("channel", 4), ("joint", 12)])
def test_block_tiles_have_the_blocks_shape(make_file, view, side):
    file = sdatoms.read_atoms(make_file(variant="coefficients", block_view=view, block_size=4))
    conv = next(p for c, p, _ in list_views(file) if p.endswith("resnets.0.conv1"))
    tiles = show_atoms(file, "unet", conv, "block")
    assert tiles.before.shape[1:] == tiles.difference.shape[1:] == (side, side)


def test_response_at_zero_frequency_is_the_sum_of_the_kernel(rng):
    tiles = torch.randn(5, 3, 3, generator=rng)
    torch.testing.assert_close(respond(tiles, 16)[:, 8, 8], tiles.sum((1, 2)).abs())


@pytest.mark.parametrize("variant", VARIANTS)
def test_muting_every_atom_leaves_the_base(make_unet, make_file, run_unet, variant):
    file, unet = sdatoms.read_atoms(make_file(variant=variant)), make_unet()
    expected = run_unet(unet)
    muted = file
    for atom in range(count_atoms(file)):
        muted = mute_atom(muted, atom)
    adapters = sdatoms.load_atoms(unet, muted)
    assert torch.equal(run_unet(unet), expected)
    adapters.clear()
    assert sdatoms.load_atoms(unet, file).names and not torch.equal(run_unet(unet), expected)


def test_muting_one_atom_in_one_layer_changes_that_layer_alone(make_unet, make_file):
    file, unet = sdatoms.read_atoms(make_file(variant="overcomplete")), make_unet()
    path = list(file.maps("unet"))[2]
    muted = mute_atom(file, 0, component="unet", path=path)
    before, after = measure_deltas(file, unet), measure_deltas(muted, unet)
    differing = [p for p in before if not torch.equal(before[p], after[p])]
    assert differing == [path] and muted.sha256 != file.sha256
    with pytest.raises(sdatoms.AtomError, match="no atom 99"):
        mute_atom(file, 99)


def test_shared_atoms_show_once_and_can_be_muted(make_unet, make_file, run_unet):
    shared = {"variant": "coefficients", "block_form": "shared", "block_atoms": 2}
    file, unet = sdatoms.read_atoms(make_file(**shared)), make_unet()
    views = list_views(file)
    rows = report_file(file)
    assert [".".join(v[:2]) for v in views] == [row.layer for row in rows]
    assert sum(row.parameters for row in rows) == file.num_parameters
    changes = measure_changes(file, unet)
    assert sum(change.parameters for change in changes) == file.num_parameters
    for component, path, view in views:
        tiles = show_atoms(file, component, path, view)
        width = file.layers[f"{component}.{path}"]["block"][1]
        assert tiles.kind == "shared" and tiles.before[0].numel() == width
        assert not tiles.before.any() and tiles.difference.abs().max() > 0
    assert count_atoms(file) == 2
    expected = run_unet(unet)
    one = mute_atom(file, 0)
    assert max(row.change for row in measure_changes(one, unet)) > 0
    adapters = sdatoms.load_atoms(unet, mute_atom(one, 1))
    assert torch.equal(run_unet(unet), expected)
    adapters.clear()


@pytest.mark.parametrize("which", [0, 1, -1], ids=["owner", "another", "last"])
def test_shared_atoms_muted_in_one_layer_stay_in_the_others(make_unet, make_file, which, tmp_path):
    shared = {"variant": "coefficients", "block_form": "shared", "block_atoms": 2}
    file, unet = sdatoms.read_atoms(make_file(**shared)), make_unet()
    groups = {}
    for key, layout in file.layers.items():
        groups.setdefault(layout["block"][1], []).append(key.partition(".")[2])
    path = max(groups.values(), key=len)[which]
    muted = file
    for atom in (0, 1):
        muted = mute_atom(muted, atom, path=path)
    muted = sdatoms.read_atoms(muted.save(tmp_path / "muted.safetensors"))
    before, after = ({r.path: r.change for r in measure_changes(f, unet)} for f in (file, muted))
    assert before[path] > 0 and after[path] == 0
    del before[path], after[path]
    assert after == before
    assert muted.sha256 != file.sha256


@pytest.mark.parametrize("factors", ["shared", "each"])
def test_products_show_two_factors_that_can_be_muted(make_unet, make_file, run_unet, factors):
    product = {"variant": "coefficients", "block_form": "product", "block_factors": factors}
    file, unet = sdatoms.read_atoms(make_file(block_size=4, **product)), make_unet()
    component, path, view = list_views(file)[1]
    tiles = show_atoms(file, component, path, view)
    assert tiles.kind == "product" and tiles.before.shape == (2, 4, 4)
    assert torch.equal(tiles.before[0], torch.eye(4)) and tiles.difference.abs().max() > 0
    assert count_atoms(file) == 2 and report_file(file)[1].view == "product 4x4"
    expected = run_unet(unet)
    for atom in (0, 1):
        one = mute_atom(file, atom)
        assert one.sha256 != file.sha256 and measure_changes(one, unet)[1].change > 0
    adapters = sdatoms.load_atoms(unet, mute_atom(one, 0))
    assert torch.equal(run_unet(unet), expected)
    adapters.clear()
