"""Where weights lie: chosen from sizes, and adapters exact to the bit under every mode."""

import numpy as np
import pytest
import torch

from sdatoms import AtomConfig, AtomError, inject, load_atoms, load_base, save_atoms
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.placement import (
    OFFLOADS,
    PipelineSize,
    choose_placement,
    estimate_peak,
    measure_pipeline,
)

GB = 1_000_000_000
SDXL = PipelineSize(
    {"unet": 5_135_000_000, "text_encoder": 246_000_000, "text_encoder_2": 1_389_000_000}
    | {"vae": 167_000_000},
    largest_layer=60_000_000,
    side=1024,
    itemsize=2,
)
SD15 = PipelineSize(
    {"unet": 1_719_000_000, "text_encoder": 246_000_000, "vae": 167_000_000},
    largest_layer=76_000_000,
    side=512,
    itemsize=2,
)


@pytest.mark.parametrize(
    ("size", "free", "offload"),
    [
        (SDXL, 24 * GB, "none"),
        (SDXL, 11.5 * GB, "none"),
        (SDXL, 8 * GB, "model"),
        (SDXL, 4 * GB, "group"),
        (SDXL, 1 * GB, "sequential"),
        (SD15, 8 * GB, "none"),
        (SD15, 4 * GB, "model"),
        (SD15, 2.4 * GB, "group"),
    ],
)
def test_the_fastest_placement_that_fits_is_chosen(size, free, offload):
    found = choose_placement(size, int(free))
    assert found.offload == offload, found.reason
    assert "\n" not in found.reason and "GB" in found.reason
    peak = estimate_peak(size, found.offload, tiling=found.tiling)
    assert (peak <= free) == ("may not be enough" not in found.reason)


def test_more_memory_never_chooses_a_slower_placement():
    order = ["sequential", "group", "model", "none"]
    ranks = [order.index(choose_placement(SDXL, k * GB // 2).offload) for k in range(1, 60)]
    assert ranks == sorted(ranks) and set(ranks) == set(range(4))


@pytest.mark.parametrize("wanted", OFFLOADS[1:])
def test_what_was_asked_for_is_done_and_its_lack_of_room_is_said(wanted):
    assert choose_placement(SDXL, 24 * GB, wanted).offload == wanted
    tight = choose_placement(SDXL, GB // 10, wanted)
    assert tight.offload == wanted and "may not be enough" in tight.reason
    assert choose_placement(SDXL, None, wanted).offload == wanted


def test_without_a_gpu_nothing_is_moved():
    assert choose_placement(SDXL, None).offload == "none"


def test_tiles_are_used_only_where_they_save_something():
    assert not choose_placement(SDXL, 24 * GB).tiling
    assert choose_placement(SDXL, 11 * GB).tiling
    assert estimate_peak(SD15, "none", tiling=True) == estimate_peak(SD15, "none")


def test_sizes_are_those_of_the_weights(tiny_pipeline):
    pipe = load_base(str(tiny_pipeline("sdxl")), device="cpu", dtype="bfloat16")
    size = measure_pipeline(pipe, 16)
    assert size.parts["unet"] == 2 * sum(p.numel() for p in pipe.unet.parameters())
    assert set(size.parts) == {"unet", "vae", "text_encoder", "text_encoder_2"}
    assert 0 < size.largest_layer < max(size.parts.values()) and size.itemsize == 2


@pytest.fixture(scope="module")
def made(tiny_pipeline, tmp_path_factory):
    """Kind → base, atom file, and the pictures at strengths 0, 1 and 0.5, nothing offloaded."""
    found = {}

    def make(kind):
        if kind not in found:
            base = str(tiny_pipeline(kind))
            pipe = load_base(base, device="cpu")
            injection = inject(pipe.unet, AtomConfig())
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in injection.parameters():
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            path = tmp_path_factory.mktemp("atoms") / "dog.safetensors"
            save_atoms(path, {"unet": injection})
            injection.eject()
            pictures = [draw(pipe)]
            adapters = load_atoms(pipe, path)
            pictures.append(draw(pipe))
            adapters.set_strengths({"dog": 0.5})
            found[kind] = base, path, [*pictures, draw(pipe)]
        return found[kind]

    return make


def draw(pipe):
    return np.asarray(paint(pipe, ["cat"], [1], num_inference_steps=2)[0])


@pytest.mark.parametrize("kind", ["sd", "sd2", "sdxl"])
@pytest.mark.parametrize("offload", OFFLOADS[1:])
def test_adapters_load_mix_and_clear_to_the_bit_under_every_mode(made, kind, offload, one_thread):
    base, path, (plain, full, half) = made(kind)
    pipe = load_base(base, device="cpu", offload=offload)
    assert np.array_equal(draw(pipe), plain)
    adapters = load_atoms(pipe, path)
    assert np.array_equal(draw(pipe), full)
    adapters.set_strengths({"dog": 0.5})
    assert np.array_equal(draw(pipe), half) and adapters.verify_base()
    adapters.set_strengths({"dog": 0})
    assert np.array_equal(draw(pipe), plain)
    adapters.set_strengths({"dog": 1})
    adapters.clear()
    assert np.array_equal(draw(pipe), plain)


def test_atoms_are_not_injected_into_weights_that_are_fetched(tiny_pipeline):
    pipe = load_base(str(tiny_pipeline("sd")), device="cpu", offload="sequential")
    with pytest.raises(AtomError, match="offloaded layer by layer; take the offload off"):
        inject(pipe.unet, AtomConfig())
    pipe.remove_all_hooks()
    assert inject(pipe.unet, AtomConfig()).num_parameters
