"""Runs that read the teacher's outputs from a cache, through the command line."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_CNN, TINY_RUN, Cli, Outcome
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scalekd.data.cache import layout
from scalekd.models import Classifier, Teacher
from scalekd.tasks.distill.task import StudentLearner as Learner

BASE = (*TINY_RUN, "--no-check-teacher", "--epochs", "4", "--augmentation-epochs", "2", "--micro-batch", "6")


@pytest.fixture
def common(data: Path, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | Path]:
    """Flags of `cache` and `distill`; shards of 5 images."""
    monkeypatch.setattr(layout, "SHARD_BYTES", 5 * 1030)
    return [*BASE, "--data", data, "--teacher", teacher_file, "--precision", "bf16"]


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    return tmp_path / "caches"


@pytest.fixture
def filled(cli: Cli, common: list[str | Path], caches: Path) -> Path:
    outcome = cli("cache", *common, "--cache", caches)
    assert outcome.code == 0, outcome.err
    (folder,) = caches.iterdir()
    return folder


def losses(run: Path) -> list[dict[str, float]]:
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in logged if "images_per_second" not in line]


def weights(run: Path) -> str:
    return str(json.loads((run / "result.json").read_text())["sha256"])


def passed(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.fixture
def no_teacher_in_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make a training step that runs the teacher fail."""

    def arm() -> None:
        from scalekd.methods.base import Method

        honest = Method.forward

        def strict(
            self: Method, images: object, labels: object = None, teacher_outputs: object = None, scale: float = 1.0
        ) -> object:
            assert teacher_outputs is not None
            return honest(self, images, labels, teacher_outputs, scale)  # type: ignore[arg-type]

        monkeypatch.setattr(Method, "forward", strict)

    return arm


def test_a_cached_run_is_the_live_one_bit_for_bit(
    cli: Cli, common: list[str | Path], caches: Path, tmp_path: Path, no_teacher_in_steps: Callable[[], None]
) -> None:
    more = ("--rand-augment", "rand-m7-mstd0.5-inc1", "--erasing", "0.5", "--micro-batch", "3")
    passed(cli("distill", *common, *more, "--output", tmp_path / "live"))
    passed(cli("cache", *common, *more, "--cache", caches))
    no_teacher_in_steps()
    for workers in ("0", "2"):
        run = tmp_path / f"cached{workers}"
        outcome = passed(cli("distill", *common, *more, "--cache", caches, "--workers", workers, "--output", run))
        assert "bf16, 2 view(s), sample of 8 bit-equal" in outcome.err
        assert losses(run) == losses(tmp_path / "live")
        assert weights(run) == weights(tmp_path / "live")
    assert yaml.safe_load((run / "recipe.yaml").read_text())["cache"] == str(caches)


def test_only_a_cached_run_frees_the_teachers_body(
    cli: Cli, common: list[str | Path], filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, freed = Teacher.keep_tail_only, []

    def free(self: Teacher) -> None:
        before = sum(p.nbytes for p in self.parameters())
        keep(self)
        freed.append(1 - sum(p.nbytes for p in self.parameters()) / before)

    monkeypatch.setattr(Teacher, "keep_tail_only", free)
    passed(cli("distill", *common, "--output", tmp_path / "live"))
    assert freed == []
    outcome = passed(cli("distill", *common, "--cache", filled.parent, "--output", tmp_path / "cached"))
    assert len(freed) == 1
    assert freed[0] > 0.3
    assert "pictures" not in outcome.err
    events = EventAccumulator(str(tmp_path / "cached" / "tensorboard"))
    events.Reload()
    assert "teacher/spectrum" in events.Tags()["images"]


def test_a_run_goes_on_from_the_cache_where_it_was_live(
    cli: Cli, common: list[str | Path], filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed(cli("distill", *common, "--output", tmp_path / "whole"))
    learn, calls = Learner.compute_loss, iter(range(100))

    def stops(self: Learner, *args: Any, **kwargs: Any) -> torch.Tensor:
        if next(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return learn(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "compute_loss", stops)
        assert cli("distill", *common, "--output", tmp_path / "run").code == 130
    passed(cli("distill", "--resume", "--output", tmp_path / "run", "--cache", filled.parent))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [(("--cache-format", "int8"), 0.01), (("--precision", "float32"), 0.005)],
    ids=["int8", "float32 kept as bf16"],
)
def test_rounded_tokens_change_the_losses_little(
    cli: Cli, common: list[str | Path], caches: Path, tmp_path: Path, flags: tuple[str, ...], tolerance: float
) -> None:
    flags += ("--lr", "1e-4")
    passed(cli("distill", *common, *flags, "--output", tmp_path / "live"))
    passed(cli("cache", *common, *flags, "--cache", caches))
    outcome = passed(cli("distill", *common, *flags, "--cache", caches, "--output", tmp_path / "cached"))
    assert "sample of 8 " in outcome.err, "in float32 products of few images round otherwise on some processors"
    live, cached = (
        [line["train/loss"] for line in losses(tmp_path / run) if "train/loss" in line] for run in ("live", "cached")
    )
    assert cached != live
    assert cached[0] == pytest.approx(live[0], rel=1e-3), "equal weights"
    assert cached == pytest.approx(live, rel=tolerance)
    (tmp_path / "cached" / "result.json").unlink()
    without = tmp_path / "cached" / "recipe.yaml"
    without.write_text("".join(line for line in without.open() if not line.startswith("cache:")))
    cli("distill", "--resume", "--output", tmp_path / "cached").refused("was started with teacher outputs")


@pytest.mark.parametrize("method", ["none", "kd", "fd"])
def test_other_methods_read_it_too_or_need_none(
    cli: Cli, common: list[str | Path], filled: Path, tmp_path: Path, method: str
) -> None:
    for run, more in (("live", []), ("cached", ["--cache", str(filled.parent)])):
        passed(cli("distill", *common, *more, "--method", method, "--output", tmp_path / run))
    assert weights(tmp_path / "live") == weights(tmp_path / "cached")


def test_a_student_without_labels_and_a_corrupt_image_are_served(
    cli: Cli, common: list[str | Path], data: Path, caches: Path, tmp_path: Path
) -> None:
    (data / "train" / "red" / "1.png").write_bytes(b"")
    flags = ("--labels", "none", "--logit-weight", "0")
    passed(cli("distill", *common, *flags, "--output", tmp_path / "live"))
    assert "red/1.png" in passed(cli("cache", *common, *flags, "--cache", caches)).err
    passed(cli("distill", *common, *flags, "--cache", caches, "--output", tmp_path / "cached"))
    assert losses(tmp_path / "live") == losses(tmp_path / "cached")
    cli("cache", *common, *flags, "--cache", tmp_path / "other", "--max-corrupt", "0").refused("1.png", "max_corrupt")


def test_the_size_is_said_before_and_is_that_on_the_disk(cli: Cli, common: list[str | Path], caches: Path) -> None:
    planned = json.loads(passed(cli("cache", *common, "--cache", caches, "--plan", "--json")).out)
    assert not caches.exists()
    assert planned["bytes"] == planned["bytes_missing"] == 2 * 12 * planned["bytes_per_image"]
    done = json.loads(passed(cli("cache", *common, "--cache", caches, "--json")).out)
    assert (done["made"], done["bytes_missing"]) == (24, 0)
    assert not list(caches.rglob("*.lock"))
    assert not list(caches.rglob("*.partial"))
    assert "complete" in passed(cli("cache", *common, "--cache", caches)).out


def test_the_planner_knows_the_size(cli: Cli, data: Path, teacher_file: Path, caches: Path) -> None:
    for file in list((data / "train").rglob("*.png")):
        for copy in range(5):
            shutil.copy(file, file.with_stem(f"{file.stem}-{copy}"))
    flags = ("--resolution", "32", "--precision", "bf16", "--student-args", str(TINY_CNN).replace("'", ""))
    inspect = ("inspect", teacher_file, "resnet18", *flags, "--images", "72", "--num-classes", "3")
    planned = json.loads(passed(cli(*inspect, "--json")).out)["costs"]
    assert planned["cache_total"] == 72 * planned["cache"]["bf16"]
    said = passed(cli(*inspect)).out.splitlines()
    assert [line for line in said if line.startswith("cache     ") and "view of 72 images (int8" in line]
    fill = ("--data", data, "--teacher", teacher_file, "--epochs", "1", "--workers", "0")
    for cache_format in ("bf16", "int8"):
        folder = caches / cache_format
        passed(cli("cache", *fill, *flags, "--cache-format", cache_format, "--cache", folder))
        on_disk = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        assert on_disk == pytest.approx(72 * planned["cache"][cache_format], rel=0.05)


def test_a_cache_grows_by_views(cli: Cli, common: list[str | Path], filled: Path, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in filled.rglob("*.safetensors")}
    more = ("--augmentation-epochs", "3", "--cache", filled.parent)
    cli("distill", *common, *more, "--output", tmp_path / "run").refused("6 of 9 shards", "augmentation_epochs to 2")
    assert json.loads(passed(cli("cache", *common, *more, "--json")).out)["made"] == 12
    assert {file: file.stat().st_mtime_ns for file in before} == before
    passed(cli("distill", *common, *more, "--output", tmp_path / "run"))


def refused(cli: Cli, common: list[str | Path], filled: Path, *more: str | Path) -> Callable[..., None]:
    run = filled.parent.parent / "refused"
    outcome = cli("distill", *common, "--cache", filled.parent, "--output", run, *more)
    assert not (run / "recipe.yaml").exists()
    return outcome.refused


def test_what_differs_is_named(
    cli: Cli, common: list[str | Path], filled: Path, teacher_file: Path, tmp_path: Path
) -> None:
    refuse = refused(cli, common, filled, "--seed", "1", "--flip", "0")
    refuse(filled.name, "flip 0.5 (run: 0.0)", "seed 0 (run: 1)", "scalekd cache")
    refused(cli, common, filled, "--cache-format", "int8")("cache_format 'bf16' (run: 'int8')")
    refused(cli, common, filled, "--precision", "float32")("precision 'bfloat16' (run: 'float32')")
    refused(cli, common, filled, "--teacher-resolution", "40")("teacher_resolution 32 (run: 40)")
    other = Classifier(teacher_file)
    other.model.norm.bias.data += 1
    other.save(tmp_path / "other.safetensors")
    refused(cli, common, filled, "--teacher", tmp_path / "other.safetensors")("teacher weights ")
    refused(cli, common, filled, "--mixup", "0.2")("cache: mixup")
    cli("distill", *common, "--cache", tmp_path, "--output", tmp_path / "run").refused(
        "holds no cache;", "scalekd cache"
    )


def test_a_changed_data_folder_is_told(cli: Cli, common: list[str | Path], filled: Path, data: Path) -> None:
    train = data / "train"
    shutil.copy(train / "red" / "0.png", train / "red" / "a.png")
    (train / "blue" / "3.png").unlink()
    Image.new("RGB", (9, 9)).save(train / "green" / "1.png")
    refused(cli, common, filled)(
        "1 added (first: red/a.png)", "1 removed (first: blue/3.png)", "1 with another size (first: green/1.png)"
    )


def test_pictures_that_changed_behind_their_names_are_noticed(
    cli: Cli, common: list[str | Path], filled: Path, data: Path
) -> None:
    for file in (data / "train").rglob("*.png"):
        held = file.stat().st_size
        Image.fromarray(np.tile(np.arange(40, dtype=np.uint8)[None, :, None] * 6, (36, 1, 3))).save(file)
        file.write_bytes(file.read_bytes().ljust(held, b"\0"))
    refused(cli, common, filled)("differs from the teacher's outputs for", ".png", "changed")


def test_damaged_and_foreign_shards_are_named_and_rebuilt_on_request(
    cli: Cli, common: list[str | Path], filled: Path, tmp_path: Path
) -> None:
    first, second, third = sorted((filled / "view-000").glob("*.safetensors"))
    whole = {file: file.read_bytes() for file in (first, second, third)}
    first.write_bytes(whole[first][:-1])
    refused(cli, common, filled)(str(first), "truncated", "--rebuild")
    cli("cache", *common, "--cache", filled.parent).refused(str(first), "truncated", "--rebuild")
    first.write_bytes(whole[first])
    second.write_bytes(whole[third])
    refused(cli, common, filled)(str(second), "another", "--rebuild")
    passed(cli("cache", *common, "--cache", filled.parent, "--rebuild"))
    assert {file: file.read_bytes() for file in whole} == whole
    second.unlink()
    refused(cli, common, filled)("5 of 6 shards", "scalekd cache")


def test_what_else_lies_in_the_folder_does_no_harm(cli: Cli, common: list[str | Path], filled: Path) -> None:
    (filled / "cache.json").rename(filled / "cache.txt")
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"ingredients": 3}')):
        (filled.parent / name).mkdir()
        (filled.parent / name / "cache.json").write_text(text)
    refused(cli, common, filled)("holds no cache;", "scalekd cache")
    assert "complete" in passed(cli("cache", *common, "--cache", filled.parent)).out
    passed(cli("distill", *common, "--cache", filled.parent, "--output", filled.parent / "run"))


def test_nothing_to_fill_is_named(cli: Cli, common: list[str | Path], caches: Path) -> None:
    cli("cache", *common).refused("cache", "--cache")
    cli("cache", *common, "--cache", caches, "--method", "none").refused("none reads no teacher")


LEAN = ("--feature-share", "0.5")


def bytes_in(cache: Path) -> int:
    return sum(len(np.fromfile(file, np.uint8)) for file in cache.rglob("*.safetensors"))


@pytest.mark.parametrize("more", [(), ("--logit-weight", "0"), ("--cache-format", "int8")])
def test_a_cache_of_a_share_gives_the_run_that_the_whole_cache_gives(
    cli: Cli, common: list[str | Path], caches: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    passed(cli("cache", *common, *more, "--cache", caches / "whole"))
    passed(cli("cache", *common, *more, *LEAN, "--cache", caches / "share"))
    for kind in ("whole", "share"):
        passed(cli("distill", *common, *more, *LEAN, "--cache", caches / kind, "--output", tmp_path / kind))
    assert losses(tmp_path / "share") == losses(tmp_path / "whole")
    assert weights(tmp_path / "share") == weights(tmp_path / "whole")
    assert 0.4 < bytes_in(caches / "share") / bytes_in(caches / "whole") < 0.8


def test_a_lean_run_is_the_same_live_and_from_its_cache(
    cli: Cli, common: list[str | Path], caches: Path, tmp_path: Path, no_teacher_in_steps: Callable[[], None]
) -> None:
    passed(cli("distill", *common, *LEAN, "--output", tmp_path / "live"))
    passed(cli("cache", *common, *LEAN, "--cache", caches))
    no_teacher_in_steps()
    passed(cli("distill", *common, *LEAN, "--cache", caches, "--workers", "2", "--output", tmp_path / "cached"))
    assert losses(tmp_path / "cached") == losses(tmp_path / "live")
    assert weights(tmp_path / "cached") == weights(tmp_path / "live")


def test_a_run_that_needs_more_tokens_than_the_cache_holds_is_refused(
    cli: Cli, common: list[str | Path], caches: Path, tmp_path: Path
) -> None:
    passed(cli("cache", *common, *LEAN, "--cache", caches))
    for share in ("1", "0.75"):
        refused = cli("distill", *common, "--feature-share", share, "--cache", caches, "--output", tmp_path / "run")
        assert refused.code == 2
        assert f"has feature_share 0.5 (run: {float(share)})" in refused.err
    assert not (tmp_path / "run").exists()


def test_a_cache_for_logits_holds_no_tokens(cli: Cli, common: list[str | Path], caches: Path, tmp_path: Path) -> None:
    passed(cli("distill", *common, "--method", "kd", "--output", tmp_path / "live"))
    passed(cli("cache", *common, "--method", "kd", "--cache", caches))
    passed(cli("distill", *common, "--method", "kd", "--cache", caches, "--output", tmp_path / "cached"))
    assert weights(tmp_path / "cached") == weights(tmp_path / "live")
    assert bytes_in(caches) < 24 * 2 * 3 * 4 + 6 * 1000, "logits of 24 images and headers only"


def test_the_whole_cache_serves_where_that_of_the_share_lacks_views(
    cli: Cli, common: list[str | Path], filled: Path, tmp_path: Path
) -> None:
    passed(cli("cache", *common, *LEAN, "--augmentation-epochs", "1", "--cache", tmp_path / "other"))
    (begun,) = (tmp_path / "other").iterdir()
    begun.rename(filled.parent / begun.name)
    outcome = passed(cli("distill", *common, *LEAN, "--cache", filled.parent, "--output", tmp_path / "run"))
    assert str(filled) in outcome.err
