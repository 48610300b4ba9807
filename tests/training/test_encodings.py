"""Encoded pictures: masked, cut to every size, and kept."""

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from sdatoms.training.batches import draw_batches
from sdatoms.training.trainer import Trainer


def test_masked_pixels_do_not_teach(train_config, make_pictures):
    folder = make_pictures("masked", ((16, 16),))
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    mask.save(folder / "0.mask.png")
    trainer = Trainer(train_config(instance_data_dir=str(folder)))
    (row,) = trainer.data.instances
    assert row.mask is not None
    expected = torch.zeros(1, *row.mean.shape[-2:])
    expected[..., : row.mean.shape[-1] // 2] = 1
    assert torch.equal(row.mask, expected)
    (batch,) = draw_batches(trainer.data.instances, None, 0, trainer.draw)
    changed = batch.latents.clone()
    with torch.no_grad():
        before = trainer.measure(batch)
        target = replace(batch, noise=batch.noise + 100 * (1 - expected))
        assert torch.equal(trainer.measure(target), before)
        target = replace(batch, noise=batch.noise + 100 * expected)
        assert not torch.equal(trainer.measure(target), before)
    assert torch.equal(changed, batch.latents)


def test_buckets_keep_proportions_and_train_on_every_size(train_config, make_pictures):
    folder = make_pictures("sizes", ((20, 20), (40, 24), (24, 40), (20, 20)))
    classes = make_pictures("class", ((40, 24), (20, 20)), seed=1)
    config = train_config(
        instance_data_dir=str(folder),
        aspect_ratio_buckets="auto",
        with_prior_preservation=True,
        class_prompt="cat",
        class_data_dir=str(classes),
        num_class_images=2,
        max_train_steps=6,
    )
    trainer = Trainer(config)
    shapes = {row.name: tuple(row.mean.shape[-2:]) for row in trainer.data.instances}
    assert shapes == {"0.png": (8, 8), "1.png": (6, 10), "2.png": (10, 6), "3.png": (8, 8)}
    assert trainer.data.classes is not None
    assert {tuple(row.mean.shape[-2:]) for row in trainer.data.classes} == {(6, 10), (8, 8)}
    for _ in range(6):
        assert trainer.take_step().prior_loss is not None


def test_cached_encodings_train_the_same_and_heal(train_config, tmp_path):
    plain = Trainer(train_config(random_flip=True))
    cache = tmp_path / "cache"
    config = train_config(random_flip=True, encoding_cache_dir=str(cache))
    for _ in range(2):
        trainer = Trainer(config)
        for a, b in zip(plain.data.instances, trainer.data.instances, strict=True):
            assert torch.equal(a.mean, b.mean) and torch.equal(a.deviation, b.deviation)
        assert torch.equal(
            plain.data.prompts.encode(["sks cat"]).context,
            trainer.data.prompts.encode(["sks cat"]).context,
        )
    files = sorted(cache.rglob("*.safetensors"))
    assert len(files) == 8 + 1  # four pictures and their mirror images, one prompt
    files[0].write_bytes(b"damaged")
    written = {path: path.stat().st_mtime_ns for path in files}
    trainer = Trainer(config)
    pairs = zip(plain.data.instances, trainer.data.instances, strict=True)
    assert all(torch.equal(a.mean, b.mean) for a, b in pairs)
    changed = [path for path in files if path.stat().st_mtime_ns != written[path]]
    assert changed == files[:1]
    picture = Path(config.instance_data_dir) / "0.png"
    Image.new("RGB", (20, 20), "red").save(picture)  # another picture under the old name
    assert not torch.equal(Trainer(config).data.instances[0].mean, plain.data.instances[0].mean)
