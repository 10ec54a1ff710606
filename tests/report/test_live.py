from __future__ import annotations

import io
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attempts import events as scalars
from attempts import lines, result
from conftest import TINY_KEYS, newest_checkpoint, write_images
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scalekd.errors import Interrupted
from scalekd.methods.base import Method
from scalekd.recipes import load
from scalekd.report.live import LiveFigures, live_figures
from scalekd.report.pictures import SIDE
from scalekd.tasks.distill import distill, distill_students
from scalekd.tasks.distill.live import Live, Watcher
from scalekd.tasks.distill.task import StudentLearner as Learner

VIEWS = ("spatial", "frequency")
ATTENTION = {f"attention/{place}, {view}" for place in ("CAP_prev", "CAP_last") for view in VIEWS}
DISTANCES = {
    f"distances/{place}, {what}"
    for place in ("proxy", "student")
    for what in ("spatial view", "frequency view", "spatial projector, zero frequency removed")
}


def train(data: Path, teacher: Path, output: Path, live: Live | None = live_figures, **keys: Any) -> dict[str, Any]:
    resume = keys.pop("resume", False)
    recipe = load(None, TINY_KEYS | {"data": str(data), "teacher": str(teacher)} | keys)
    return distill(recipe, output, console=Console(quiet=True), live=live, resume=resume)


def read(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "histograms": 0}).Reload()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training and 6 validation images of three classes."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 4, seed=0)
    write_images(folder / "val", 2, seed=1)
    return folder


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory, images: Path, teacher_file: Path) -> Path:
    """A run that writes pictures to TensorBoard, with a moving average of the student."""
    run = tmp_path_factory.mktemp("lively") / "run"
    train(images, teacher_file, run, ema=0.9)
    return run


def test_each_validation_shows_attention_and_distances_and_the_first_the_spectrum(lively: Path) -> None:
    log = read(lively)
    assert set(log.Tags()["images"]) == ATTENTION | {"teacher/spectrum"}
    assert set(log.Tags()["histograms"]) == DISTANCES
    for tag in ATTENTION:
        assert [event.step for event in log.Images(tag)] == [2, 4]
    assert [event.step for event in log.Images("teacher/spectrum")] == [2]
    for tag in log.Tags()["images"]:
        for event in log.Images(tag):
            picture = Image.open(io.BytesIO(event.encoded_image_string))
            picture.load()
            assert picture.size == (event.width, event.height)
            if tag in ATTENTION:  # three images, each above its attention by all queries and by one
                assert picture.size == (3 * SIDE, 3 * SIDE)
            assert np.asarray(picture).std() > 10  # it is not a uniform picture


def test_histograms_count_each_position_of_each_image_once(lively: Path) -> None:
    log = read(lively)
    for tag in DISTANCES:
        assert [event.step for event in log.Histograms(tag)] == [2, 4]
        for event in log.Histograms(tag):
            assert event.histogram_value.num == sum(event.histogram_value.bucket) == 6 * 16  # images, positions
            assert 0 <= event.histogram_value.min <= event.histogram_value.max <= 4


def test_training_is_the_same_with_and_without(images: Path, teacher_file: Path, lively: Path, tmp_path: Path) -> None:
    bare = train(images, teacher_file, tmp_path / "bare", None, ema=0.9)
    assert bare["sha256"] == result(lively)["sha256"]
    assert lines(tmp_path / "bare") == lines(lively)
    one, other = (
        torch.load(newest_checkpoint(run), weights_only=True)["state_dict"] for run in (tmp_path / "bare", lively)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)  # projectors and statistics too


def test_a_look_leaves_no_trace(
    images: Path, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    watch = Watcher.watch

    def state(method: Method) -> list[Any]:
        return [
            random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(),
            [part.training for part in method.modules()], torch.is_grad_enabled(),
            {name: value.tolist() for name, value in method.state_dict().items()},
            [parameter.grad is None for parameter in method.parameters()],
        ]  # fmt: skip

    def watched(self: Watcher, *args: Any) -> None:
        before = state(self._method)
        watch(self, *args)
        looks.append(before == state(self._method))

    def careless(self: LiveFigures) -> Any:  # an injected function that leaves traces must not change the run
        assert not torch.is_grad_enabled()
        assert not any(part.training for part in self._method.modules())
        random.random(), np.random.rand(), torch.rand(1)
        return figures(self)

    figures = LiveFigures.__call__
    monkeypatch.setattr(LiveFigures, "__call__", careless)
    monkeypatch.setattr(Watcher, "watch", watched)
    train(images, teacher_file, tmp_path / "run")
    assert looks == [True, True]
    assert set(read(tmp_path / "run").Tags()["images"]) >= ATTENTION


def test_a_resumed_run_shows_each_step_once(images: Path, teacher_file: Path, lively: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(lively, run)
    newest_checkpoint(run).unlink()  # the steps after the previous checkpoint are repeated
    (run / "result.json").unlink()
    train(images, teacher_file, run, ema=0.9, resume=True)
    assert result(run)["sha256"] == result(lively)["sha256"]
    assert scalars(run) == scalars(lively)
    for tag in ATTENTION:
        again, once = read(run).Images(tag), read(lively).Images(tag)
        assert [(e.step, e.encoded_image_string) for e in again] == [(e.step, e.encoded_image_string) for e in once]
    assert [event.step for event in read(run).Images("teacher/spectrum")] == [2, 4]  # once per start


def test_a_validation_that_a_resumed_run_makes_up_for_is_shown_too(
    images: Path, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate, batches = Learner.validate, iter(range(100))

    def stopped(self: Learner, *args: Any) -> None:
        if next(batches) == 4:  # the second of three in the last validation
            signal.raise_signal(signal.SIGTERM)
        validate(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "validate", stopped)
        with pytest.raises(Interrupted):
            train(images, teacher_file, tmp_path / "run", micro_batch=2)
    assert [event.step for event in read(tmp_path / "run").Images("attention/CAP_last, spatial")] == [2]
    train(images, teacher_file, tmp_path / "run", micro_batch=2, resume=True)
    assert [event.step for event in read(tmp_path / "run").Images("attention/CAP_last, spatial")] == [2, 4]


def test_each_of_several_students_has_its_own(images: Path, teacher_file: Path, tmp_path: Path) -> None:
    keys = {key: value for key, value in TINY_KEYS.items() if key not in ("student", "student_args")}
    recipe = load(None, keys | {"data": str(images), "teacher": str(teacher_file), "epochs": 1})
    students = ("test_vit", "test_resnet")
    distill_students(recipe, students, tmp_path / "group", console=Console(quiet=True), live=live_figures)
    for name in students:
        assert set(read(tmp_path / "group" / name).Tags()["images"]) == ATTENTION | {"teacher/spectrum"}


@pytest.mark.parametrize("keys", [{"method": "none"}, {"method": "kd"}, {"labels": "none"}])
def test_runs_without_projectors_or_validation_have_figures_only(
    keys: dict[str, Any], images: Path, teacher_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(images / "train", tmp_path / "data" / "train")
    if "labels" not in keys:
        shutil.copytree(images / "val", tmp_path / "data" / "val")
    train(tmp_path / "data", teacher_file, tmp_path / "run", **keys)
    tags = read(tmp_path / "run").Tags()
    assert "train/loss" in tags["scalars"]
    assert tags["images"] == tags["histograms"] == []


def test_what_fails_is_left_out_and_told_once(
    images: Path, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory left\nsecond line")

    monkeypatch.setattr("scalekd.report.live.attended", fails)
    recipe = load(None, TINY_KEYS | {"data": str(images), "teacher": str(teacher_file)})
    out = io.StringIO()
    ended = distill(recipe, tmp_path / "run", console=Console(file=out), live=live_figures)
    assert out.getvalue().count("pictures for TensorBoard are left out from now on: no memory left\n") == 1
    assert ended["steps"] == 4
    assert read(tmp_path / "run").Tags()["images"] == []
