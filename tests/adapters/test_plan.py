"""Models that a file does not fit: refused by name, or warned of, with nothing changed."""

import pytest
import torch
from tiny.atoms import refuse_file
from tiny.modules import copy_weights, same_weights
from torch import nn

from sdatoms import AtomConfig, inject, load_atoms, read_atoms
from sdatoms.files.writer import pack_atoms

pytestmark = pytest.mark.usefixtures("one_thread")


def test_keys_that_fit_no_module_or_only_some_are_refused(make_unet, make_convnet, make_file):
    path = make_file()
    refuse_file(
        make_convnet(), path, "this ConvNet has no layer '.*' that the file's atoms could fit"
    )
    unet = make_unet()
    del unet.mid_block.resnets[1]
    refuse_file(unet, path, r"has no layer 'mid_block\.resnets\.1\.conv1'")
    unet = make_unet()
    unet.mid_block.resnets[1].conv2 = nn.BatchNorm2d(32)
    refuse_file(unet, path, r"has no layer 'mid_block\.resnets\.1\.conv2'")
    refuse_file(make_unet(), path, "holds no component 'vae'; it holds unet", component="vae")


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (nn.Conv2d(4, 16, 5, padding=2), r"'conv_in' has kernel \(5, 5\) in 1 groups where"),
        (nn.Conv2d(4, 16, 3, groups=2), r"'conv_in' has kernel \(3, 3\) in 2 groups where"),
        (nn.Conv2d(5, 16, 3), "'conv_in' has 5 input channels where the file's atoms have 4"),
        (nn.Linear(4, 16), r"'conv_in' has kernel \(\) in 1 groups where"),
    ],
)
def test_a_base_of_other_shapes_is_refused(make_unet, make_file, layer, sentence):
    unet = make_unet()
    unet.conv_in = layer
    refuse_file(unet, make_file(), sentence)


def test_blocks_that_do_not_divide_a_weight_are_refused(perturb):
    make = lambda o, i: nn.Sequential(nn.Linear(i, o))
    file = pack_atoms(
        {"unet": perturb(inject(make(8, 8), AtomConfig("coefficients", block_size=4)))}
    )
    refuse_file(make(8, 6), file, "has 8×6 channels, which 4×4 blocks do not divide")


def test_a_base_of_other_weights_is_loaded_with_one_warning(make_unet, make_file):
    path = make_file()
    file = read_atoms(path)
    file.metadata["base_model"] = "<b>\x1b[31mme\nyou</b>" * 999
    unet = make_unet(seed=1)
    before = copy_weights(unet)
    with pytest.warns(UserWarning) as caught:
        adapters = load_atoms(unet, file)
    (warning,) = caught
    text, count = str(warning.message), len(file.layers)
    assert f"the weights of {count} of {count} layers differ from the base" in text
    assert text.isprintable()
    assert len(text) < 400
    adapters.clear()
    assert same_weights(unet, before)


def test_one_layer_of_another_base_is_counted_as_one(make_unet, make_file):
    unet = make_unet()
    with torch.no_grad():
        unet.conv_out.weight *= -1
    with pytest.warns(UserWarning, match=r"the weights of 1 of \d+ layers differ"):
        load_atoms(unet, make_file())


def test_weights_on_the_meta_device_are_refused(make_unet, make_file):
    refuse_file(make_unet().to("meta"), make_file(), "'conv_in' lies on the meta device; load the")


def test_integer_weights_are_refused(make_unet, make_file):
    unet = make_unet()
    weight = unet.conv_in.weight.detach().to(torch.int8)
    unet.conv_in.weight = nn.Parameter(weight, requires_grad=False)
    refuse_file(unet, make_file(), r"'conv_in' is stored as torch\.int8; atoms fit floating-point")


def test_shared_weights_are_refused(make_unet, perturb):
    def make(tied):
        model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
        if tied:
            model[1].weight = model[0].weight
        return model

    file = pack_atoms({"unet": perturb(inject(make(False)))})
    refuse_file(make(True), file, "the layers '0' and '1' share one weight")


def test_a_model_that_carries_atoms_is_refused(make_unet, make_file):
    unet = make_unet()
    path = make_file()
    injection = inject(unet)
    refuse_file(unet, path, "carries injected atoms; eject them before loading a file")
    injection.eject()
    load_atoms(unet, path)
