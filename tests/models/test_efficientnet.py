"""Real ImageNet weights: EfficientNet-Lite0 reads photographs rightly, and atoms fit its layers.

Weights and photographs lie outside the repository, in `data` of a folder `shared` beside it or of
the one that SDATOMS_SHARED names.
"""

import os
from pathlib import Path

import pytest
import torch
from tiny.atoms import VARIANTS
from torch import nn

from sdatoms import AtomConfig, AtomError, inject
from sdatoms.bench.eye import open_eye
from sdatoms.classifiers.model import open_classifier
from sdatoms.models.efficientnet import EfficientNetLite, SamePadding
from sdatoms.models.open import open_model
from sdatoms.pictures import find_pictures, read_picture

PLACES = [Path(os.environ.get("SDATOMS_SHARED", "")), *Path(__file__).resolve().parents]
DATA = next(
    (
        found
        for place in PLACES
        for found in (place / "data", place / "shared" / "data")
        if (found / "imagenet" / "efficientnet_lite0.safetensors").is_file()
    ),
    Path(),
)
WEIGHTS = DATA / "imagenet" / "efficientnet_lite0.safetensors"
pytestmark = pytest.mark.usefixtures("one_thread")
with_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason="no shared/data/imagenet")

DOGS, CATS = range(151, 269), range(281, 286)


def read_subject(name, most=3):
    return [read_picture(path) for path in find_pictures(DATA / "dreambooth" / name)[0][:most]]


@pytest.fixture(scope="module")
def eye():
    return open_eye(WEIGHTS)


@with_weights
def test_photographs_of_dogs_and_cats_are_named_so(eye):
    for names, kind in ((("dog", "dog2"), DOGS), (("cat",), CATS)):
        pictures = [picture for name in names for picture in read_subject(name)]
        with torch.no_grad():
            nearest = eye.model(eye.load(pictures)).topk(2).indices
        # Of a cat by night the lynx comes first.
        assert all(set(row) & set(kind) for row in nearest.tolist())


@with_weights
def test_a_subject_is_most_alike_to_its_own_photographs(eye):
    names = ("dog", "teapot", "rc_car", "can")
    rows = torch.stack([eye.embed(read_subject(name, 4)) for name in names])
    given, asked = rows[:, :2], rows[:, 2:]
    likeness = torch.einsum("ake,bne->abkn", asked, given).mean((2, 3))
    assert likeness.argmax(1).tolist() == [0, 1, 2, 3]


@with_weights
def test_the_file_opens_as_a_classifier_with_a_head_of_its_own():
    classifier = open_classifier(str(WEIGHTS), 4)
    assert classifier.size == 224 and classifier.mean == EfficientNetLite.mean
    assert classifier.head_path == "_fc" and classifier.head.out_features == 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_atoms_change_nothing_at_the_start_and_leave_without_a_trace(variant):
    torch.manual_seed(0)
    model, x = EfficientNetLite(5).eval(), torch.randn(2, 3, 32, 32)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = model(x)
        injection = inject(model, AtomConfig(variant=variant))
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        layers = set(injection.layers)
        assert "_fc" not in layers and "_blocks.3._depthwise_conv" in layers
        injection.eject()
    assert all(torch.equal(before[k], tensor) for k, tensor in model.state_dict().items())


def test_another_library_puts_its_layers_in_place_of_the_convolutions():
    """PEFT's stand where a convolution stood, and do not say its stride and its side."""
    import peft

    torch.manual_seed(0)
    model, x = EfficientNetLite(5).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        kinds = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
        taken = [name for name, m in kinds.items() if m.groups == 1]
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=1, target_modules=taken))
        assert torch.equal(adapted(x), expected)


@pytest.mark.parametrize("side", (3, 5))
@pytest.mark.parametrize("length", (7, 8))
def test_stride_two_pads_less_on_the_left(side, length):
    """TensorFlow's "same": `ceil(n / 2)` outputs, the odd pixel of padding on the right."""
    conv = nn.Conv2d(1, 1, side, stride=2, bias=False)
    x = torch.randn(1, 1, length, length)
    out = -(-length // 2)
    total = (out - 1) * 2 + side - length
    padded = torch.zeros(1, 1, length + total, length + total)
    padded[..., total // 2 : total // 2 + length, total // 2 : total // 2 + length] = x
    assert torch.equal(conv(SamePadding(side, 2)(x)), conv(padded))


def test_another_model_is_no_eye(tmp_path):
    from tiny.classifiers import save_resnet

    with pytest.raises(AtomError, match="holds a CifarResNet; --eye takes EfficientNet-Lite0"):
        open_eye(Path(save_resnet(tmp_path / "resnet.safetensors")))
    assert isinstance(open_model(tmp_path / "resnet.safetensors").model, nn.Module)
