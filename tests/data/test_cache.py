"""The cache's folder: shards, several processes, a full disk, transforms that cannot be replayed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scalekd.data import CorruptImages, Key, ReplayDataset, TrainingStream, read_split, training_transform
from scalekd.data.augmentation import Transform
from scalekd.data.cache import CacheReader, Identity, Layout, TeacherCache, fill, layout, list_images, open_cache
from scalekd.data.loader import ALL
from scalekd.errors import UserError
from scalekd.methods.outputs import TeacherOutputs

LAYOUT = Layout(positions=4, width=3, classes=2, dtype=torch.float32, cache_format="bf16")
VIEWS = 3


def teach(images: Tensor) -> TeacherOutputs:
    """Outputs that identify the image: tokens `[B, 4, 3]` and logits `[B, 2]`."""
    quarters = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(2).transpose(1, 2)
    return TeacherOutputs(quarters, images.flatten(2).std(-1)[:, :2])


class Filling(NamedTuple):
    """A cache, its images, and the number of them that this process computed."""

    cache: TeacherCache
    dataset: ReplayDataset
    identity: Identity

    def run(self, teacher: Callable[[Tensor], TeacherOutputs] = teach, **settings: Any) -> int:
        made: list[int] = []
        every: dict[str, Any] = {"views": VIEWS, "batch": 4, "workers": 0, "corrupt": CorruptImages(0)}
        self.cache.create(self.identity.ingredients, self.identity.listing)
        fill(self.cache, self.dataset, teacher, progress=lambda n, _: made.append(n), **(every | settings))
        return sum(made)

    def files(self) -> dict[str, bytes]:
        return {str(f.relative_to(self.cache.path)): f.read_bytes() for f in self.cache.path.rglob("*") if f.is_file()}


def filling(data: Path, caches: Path, transform: Transform | None = None) -> Filling:
    split = read_split(data, "train")
    dataset = ReplayDataset(split, transform or training_transform(24, erasing=0.5), seed=3, substitute=True)
    identity = Identity({"seed": 3}, list_images(split))
    return Filling(identity.cache(caches, LAYOUT), dataset, identity)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards of 5, 5 and 2 images."""
    monkeypatch.setattr(layout, "SHARD_BYTES", 5 * LAYOUT.bytes_per_image)


def test_what_is_read_is_what_the_teacher_said(data: Path, tmp_path: Path) -> None:
    filled = filling(data, tmp_path)
    assert filled.run(workers=2) == 36
    cache = open_cache(tmp_path, filled.identity, LAYOUT, VIEWS)
    reader = pickle.loads(pickle.dumps(CacheReader(cache, ALL)))
    for key in (Key(2, 11), Key(0, 0), Key(0, 7), Key(2, 4)):
        image = filled.dataset[key].image
        assert image is not None
        live = teach(image[None])
        kept = reader(key)
        assert kept.tokens is not None
        assert torch.equal(kept.tokens, live.tokens[0].bfloat16().float())
        torch.testing.assert_close(kept.logits, live.logits[0], rtol=1e-6, atol=1e-6)  # type: ignore[index]
        again = pickle.loads(pickle.dumps(reader))(key).tokens  # after it has opened files too
        assert torch.equal(again, kept.tokens)


@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=12, max_size=12),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_int8_is_within_half_a_step_of_each_token(values: list[float], dtype: torch.dtype) -> None:
    kept = Layout(4, 3, 2, dtype, "int8")
    tokens = torch.tensor(values).view(1, 4, 3).to(dtype)
    logits = torch.ones(1, 2, dtype=dtype)
    encoded = kept.encode(TeacherOutputs(tokens, logits), [0])
    assert {name: list(tensor.shape) for name, tensor in encoded.items()} == kept.shapes(0, 0, 1)
    assert sum(tensor.nbytes for tensor in encoded.values()) == kept.bytes_per_image
    decoded = kept.decode(encoded, 0, 0)
    assert decoded.tokens is not None
    assert decoded.tokens.dtype == dtype
    assert decoded.logits is not None
    assert torch.equal(decoded.logits, logits[0])
    rounding = 0.5 if dtype == torch.float32 else 0.5 + 127 / 256
    step = tokens.float().abs().amax(-1, keepdim=True) / 127
    assert ((decoded.tokens.float() - tokens.float()).abs() <= step * rounding * 1.001 + 1e-38).all()


def test_a_cache_is_the_same_whoever_fills_it(data: Path, tmp_path: Path) -> None:
    first, second = filling(data, tmp_path / "a"), filling(data, tmp_path / "b")
    first.run()
    second.run(views=1)
    assert second.run(workers=1) == 24
    assert first.files() == second.files()
    assert sorted(first.files())[:2] == ["cache.json", "images.txt.gz"]


def slow(images: Tensor) -> TeacherOutputs:
    time.sleep(0.05)
    return teach(images)


def fill_elsewhere(data: Path, caches: Path, index: int) -> None:
    torch.set_num_threads(1)  # as in a loader's worker: a fork lacks its parent's threads and would wait for them
    filled = filling(data, caches)
    (caches / f"made-{index}").write_text(str(filled.run(slow)))


def start(*args: Any) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=fill_elsewhere, args=args)
    process.start()
    return process  # type: ignore[return-value]


def test_two_processes_share_the_work(data: Path, tmp_path: Path) -> None:
    alone = filling(data, tmp_path / "alone")
    alone.run()
    together = filling(data, tmp_path / "together")
    processes = [start(data, tmp_path / "together", index) for index in (0, 1)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    made = [int((tmp_path / "together" / f"made-{index}").read_text()) for index in (0, 1)]
    assert sum(made) == 36, "no shard was made twice"
    assert min(made) > 0
    assert together.files() == alone.files()


def test_what_a_killed_process_was_making_is_made_by_the_next(data: Path, tmp_path: Path) -> None:
    alone, killed = filling(data, tmp_path / "alone"), filling(data, tmp_path / "killed")
    alone.run()
    process = start(data, tmp_path / "killed", 0)
    while not killed.cache.path.is_dir() or len(killed.cache.missing(VIEWS)) > 7:
        assert process.is_alive()
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    left = sum(shard.images for shard in killed.cache.missing(VIEWS))
    assert list(killed.cache.path.rglob("*.lock")), "it held a claim"
    first = killed.cache.missing(VIEWS)[0]
    killed.cache.file(first).with_name(f"{killed.cache.file(first).name}.partial").write_bytes(b"half")
    assert killed.run() == left
    assert killed.files() == alone.files()


def test_a_full_disk_keeps_what_is_valid_and_says_how_much_is_lacking(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = filling(data, tmp_path)
    honest, calls = os.fsync, 0

    def full(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 2 * 4:  # the description, the listing and two shards, and the folder's names after each
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 600))
        with pytest.raises(UserError, match=r"is full; 232 bytes more are needed.*to continue"):
            filled.run()  # 26 images of 32 bytes were missing
    assert len(filled.files()) == 4, "no half file, no lock"
    assert not filled.cache.faulty(VIEWS)
    assert filled.run() == 26


def test_too_little_space_is_said_before(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = filling(data, tmp_path)
    filled.cache.check_space(VIEWS)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"lacks 152 bytes for 3 view\(s\).*augmentation_epochs.*int8"):
        filled.cache.check_space(VIEWS)


def test_a_transform_with_a_generator_of_its_own_is_refused(data: Path, tmp_path: Path) -> None:
    generator, seeded = torch.Generator(), training_transform(24)

    def own(image: Any) -> Tensor:
        return seeded(image) + torch.rand(1, generator=generator)

    filled = filling(data, tmp_path, own)
    with pytest.raises(UserError, match=r"two different images for the same seed.*generator"):
        filled.run()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_augmentations_repeat_but_the_order_does_not() -> None:
    batches = list(TrainingStream(size=8, batch=4, epochs=5, seed=0, views=2))
    assert [batch[0].epoch for batch in batches] == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0]
    assert batches[0] != batches[4]
    once = list(TrainingStream(size=8, batch=4, epochs=5, seed=0))
    assert [[key.image for key in batch] for batch in batches] == [[key.image for key in batch] for batch in once]
