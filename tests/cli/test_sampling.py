"""The flags of sampler and size, and what the pictures say of them."""

from PIL import Image

from sdatoms.cli.main import main
from sdatoms.diffusion.picture_file import read_recipe


def test_a_picture_says_how_it_was_sampled(tmp_path, tiny_base, capsys):
    command = ["generate", "cat", "--pretrained_model_name_or_path", str(tiny_base)]
    command += ["--num_inference_steps", "2", "--output_dir", str(tmp_path)]
    main([*command, "--sampler", "DPM++ 2M Karras", "--guidance_rescale", "0.7", "--height", "96"])
    out, err = capsys.readouterr()
    assert "40×96 px: the width is what makes the base's own area" in err
    with Image.open(out.strip()) as opened:
        assert opened.size == (40, 96)
        text = opened.text["parameters"]
    assert "Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5" in text
    assert "CFG Rescale: 0.7" in text
    recipe = read_recipe(tmp_path / "cat-0.png")
    assert (recipe.scheduler, recipe.schedule, recipe.clip_skip) == ("DPM++ 2M", "karras", 1)
    main([*command, "--seed", "1"])
    own = read_recipe(tmp_path / "cat-1.png")
    assert (own.scheduler, own.schedule, own.width, own.height) == ("DDIM", "normal", 64, 64)


def test_wrong_samplers_and_sizes_are_one_line_before_anything_opens(refuse, tmp_path):
    command = ["generate", "cat", "--output_dir", tmp_path / "out"]
    command += ["--pretrained_model_name_or_path", tmp_path / "none"]
    for flags, said in (
        (["--sampler", "Euler x"], "the sampler 'Euler x' is unknown; known are DDIM, Euler,"),
        (["--schedule", "steep"], "the schedule 'steep' is unknown; known are normal, karras,"),
        (["--scheduler", "Euler a", "--schedule", "karras"], "Euler a has no schedule 'karras'"),
        (["--width", "500"], "the width is 500 px; it takes multiples of 8 px from 8 to 2048"),
        (["--height", "2056"], "and the nearest is 2048"),
    ):
        refuse([*command, *flags], said)
    assert not (tmp_path / "out").exists()
