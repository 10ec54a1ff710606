from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scalekd.data import (
    CachedOutputs,
    CorruptImages,
    Key,
    ReplayDataset,
    TrainingStream,
    evaluation_loader,
    evaluation_transform,
    read_split,
    seeded,
    training_loader,
    training_transform,
)
from scalekd.data.augmentation import Transform
from scalekd.errors import UserError
from scalekd.methods.share import FeatureShare


def everything_random() -> Transform:
    return training_transform(24, rand_augment="rand-m7-mstd0.5-inc1", erasing=0.5)


def dataset(data: Path, seed: int = 0) -> ReplayDataset:
    return ReplayDataset(read_split(data, "train"), everything_random(), seed=seed, substitute=True)


def image(data: Path, key: Key, seed: int = 0) -> torch.Tensor:
    sample = dataset(data, seed)[key]
    assert sample.image is not None
    return sample.image


def test_a_sample_is_a_function_of_seed_epoch_and_index(data: Path) -> None:
    first = image(data, Key(3, 5))
    torch.rand(10), np.random.rand(10)
    assert torch.equal(first, image(data, Key(3, 5)))
    for other in (image(data, Key(4, 5)), image(data, Key(3, 6)), image(data, Key(3, 5), seed=1)):
        assert not torch.equal(first, other)


def test_the_number_of_workers_changes_nothing(data: Path) -> None:
    stream = TrainingStream(size=12, batch=4, epochs=2, seed=7)
    alone, helped = (list(training_loader(dataset(data), stream, workers)) for workers in (0, 2))
    assert len(alone) == 6
    for one, two in zip(alone, helped, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)


def test_sampling_leaves_the_global_generators_alone(data: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    image(data, Key(0, 0))
    assert torch.equal(torch.rand(3), expected)


def test_seeded_blocks_repeat() -> None:
    with seeded(1, 2):
        first = (torch.rand(1).item(), np.random.rand())
    with seeded(1, 2):
        assert (torch.rand(1).item(), np.random.rand()) == first
    with seeded(2, 1):
        assert (torch.rand(1).item(), np.random.rand()) != first


STREAMS = st.builds(
    lambda micro, accumulate, extra, epochs, seed: {
        "size": micro * accumulate * 2 + extra,
        "batch": micro * accumulate,
        "accumulate": accumulate,
        "epochs": epochs,
        "seed": seed,
    },
    *(st.integers(1, 4) for _ in range(2)),
    st.integers(0, 1),
    st.integers(1, 3),
    st.integers(0, 99),
)


@given(settings=STREAMS)
def test_accumulation_does_not_change_what_a_batch_holds(settings: dict[str, Any]) -> None:
    cut, pieces = list(TrainingStream(**settings)), settings["accumulate"]
    for step, batch in enumerate(TrainingStream(**(settings | {"accumulate": 1}))):
        assert [key for part in cut[step * pieces : (step + 1) * pieces] for key in part] == batch


@given(settings=STREAMS)
def test_an_epoch_shows_each_image_at_most_once(settings: dict[str, Any]) -> None:
    stream = TrainingStream(**(settings | {"accumulate": 1}))
    for epoch in range(settings["epochs"]):
        seen = [key.image for batch in stream for key in batch if key.epoch == epoch]
        assert len(seen) == len(set(seen)) == settings["size"] // settings["batch"] * settings["batch"]


@given(settings=STREAMS, start=st.integers(0, 20))
def test_a_stream_can_be_taken_up_anywhere(settings: dict[str, Any], start: int) -> None:
    whole = list(TrainingStream(**settings))
    assert list(TrainingStream(**settings, start=start)) == whole[start:]


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1", "I;16"])
def test_images_of_any_mode_become_rgb(data: Path, mode: str) -> None:
    name = "0.jpg" if mode == "CMYK" else "0.png"
    source = Image.open(data / "train" / "blue" / "0.png")
    (data / "train" / "blue" / "0.png").unlink()
    target = Image.new("I;16", (20, 20)) if mode == "I;16" else source.convert(mode)
    target.save(data / "train" / "blue" / name)
    sample = ReplayDataset(read_split(data, "train"), evaluation_transform(24))[Key(0, 0)]
    assert sample.image is not None
    assert sample.image.shape == (3, 24, 24)
    assert not sample.corrupt


def test_16_bit_greys_keep_their_range(data: Path) -> None:
    ramp = np.linspace(0, 65535, 24 * 24).reshape(24, 24).astype(np.uint16)
    Image.fromarray(ramp).save(data / "train" / "blue" / "0.png")
    sample = ReplayDataset(read_split(data, "train"), evaluation_transform(24, 1.0))[Key(0, 0)]
    assert sample.image is not None
    expected = torch.from_numpy((ramp / 65535).astype(np.float32)).expand(3, -1, -1)
    torch.testing.assert_close(sample.image, expected, rtol=0, atol=1 / 255)


def test_a_file_that_is_gone_counts_as_unreadable(data: Path) -> None:
    listed = ReplayDataset(read_split(data, "train"), evaluation_transform(24))
    (data / "train" / "blue" / "0.png").unlink()
    assert listed[Key(0, 0)].corrupt == {str(data / "train" / "blue" / "0.png"): "no such file"}


def test_an_image_smaller_than_the_crop_is_enlarged(data: Path) -> None:
    Image.new("RGB", (3, 2)).save(data / "train" / "blue" / "0.png")
    assert image(data, Key(0, 0)).shape == (3, 24, 24)
    assert ReplayDataset(read_split(data, "train"), evaluation_transform(24))[Key(0, 0)].image is not None


def spoil(data: Path) -> str:
    """Truncate one image and empty another; returns the first."""
    path = data / "train" / "blue" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    (data / "train" / "red" / "0.png").write_bytes(b"")
    return str(path)


def test_unreadable_images_are_replaced_in_training_and_left_out_in_evaluation(data: Path) -> None:
    path = spoil(data)
    stream = TrainingStream(size=12, batch=12, epochs=1, seed=0)
    (training,) = training_loader(dataset(data), stream, 0)
    assert len(training.images) == 12
    assert path in training.corrupt
    evaluation = ReplayDataset(read_split(data, "train"), evaluation_transform(24))
    (batch,) = evaluation_loader(evaluation, 12, 0)
    assert len(batch.images) == len(batch.labels) == 10
    assert len(batch.corrupt) == 2


def test_too_many_unreadable_images_stop_the_run(data: Path) -> None:
    corrupt = CorruptImages(limit=1)
    corrupt.add({"a.png": ""})
    corrupt.add({"a.png": ""})
    with pytest.raises(UserError, match=r"2 unreadable image\(s\), the last b.png.*max_corrupt \(now 1\)"):
        corrupt.add({"b.png": ""})
    corrupt.paths |= {"b.png", "c.png"}  # as in a resumed run of several processes
    corrupt.add({})
    corrupt.add({"b.png": ""})


def test_an_unknown_augmentation_is_named() -> None:
    with pytest.raises(UserError, match="rand_augment: 'autumn'"):
        training_transform(24, rand_augment="autumn")


def test_kept_teacher_outputs_are_those_of_the_image_that_is_seen(data: Path) -> None:
    spoil(data)  # images 1 (blue/1.png) and 8 (red/0.png)
    kept = ReplayDataset(
        read_split(data, "train"),
        everything_random(),
        substitute=True,
        cached_outputs=lambda key: CachedOutputs(torch.tensor([key.epoch, key.image]), None),
    )
    seen = [kept[Key(5, index)].teacher_outputs for index in (0, 1, 8)]
    tokens = [outputs.tokens for outputs in seen if outputs is not None]
    assert [each.tolist() for each in tokens if each is not None] == [[5, 0], [5, 2], [5, 9]]


SHARES = st.sampled_from([FeatureShare(share) for share in (1.0, 0.5, 0.25, 0.3, 1 / 3, 0.9)])


@given(settings=STREAMS, share=SHARES, views=st.none() | st.integers(1, 3), count=st.integers(1, 2))
def test_micro_batches_begin_with_their_share_of_the_chosen_images(
    settings: dict[str, Any], share: FeatureShare, views: int | None, count: int
) -> None:
    settings |= {"batch": settings["batch"] * count, "size": settings["size"] * count}
    streams = [TrainingStream(**settings, share=share, views=views, rank=rank, count=count) for rank in range(count)]
    for epoch in range(settings["epochs"]):
        seen = []
        for stream in streams:
            every = stream.batches_per_epoch
            for batch in list(stream)[epoch * every : (epoch + 1) * every]:
                assert len(batch) == stream.micro_batch
                first = batch[: share.count(stream.micro_batch)]
                assert all(share.chosen(key.image, key.epoch) for key in first)
                seen += [key.image for key in batch]
        assert len(seen) == len(set(seen)) == settings["size"] // settings["batch"] * settings["batch"]


@given(share=SHARES, images=st.integers(1, 40), view=st.integers(0, 9))
def test_the_share_of_any_run_of_images_is_chosen(share: FeatureShare, images: int, view: int) -> None:
    chosen = [bool(share.chosen(image, view)) for image in range(images)]
    assert share.count(images) <= sum(chosen) <= share.count(images) + 1
    assert [share.chosen_before(image, view) for image in range(images)] == [sum(chosen[:n]) for n in range(images)]
    assert share.chosen(torch.arange(images), view).tolist() == chosen
    assert chosen[1:] == [bool(share.chosen(image, view + 1)) for image in range(images - 1)], "each view moves on by 1"


def test_a_chosen_image_that_cannot_be_read_is_replaced_by_a_chosen_one(data: Path) -> None:
    spoil(data)  # images 1 (blue/1.png) and 8 (red/0.png)
    half = FeatureShare(0.5)
    dataset = ReplayDataset(
        read_split(data, "train"),
        everything_random(),
        substitute=True,
        cached_outputs=lambda key: CachedOutputs(torch.tensor([key.image]), None),
        share=half,
    )
    for key in (Key(0, 1), Key(1, 8)):
        assert half.chosen(key.image, key.epoch)
        outputs = dataset[key].teacher_outputs
        assert outputs is not None
        assert outputs.tokens is not None
        assert outputs.tokens.tolist() == [key.image + 2]
