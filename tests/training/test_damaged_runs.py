"""A run's files, damaged in any way, are named in one line when the run is to go on or to be evaluated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import TINY_RUN, Cli

NO_JSON = [b"", b"\0", b"\xff\xfe", b"{", b"[]", b"5", b"null", b'"x"', b"[" * 100_000, b"NaN"]
NO_RECIPE = [b"\0", b"\xff", b"[", b"- 1", b"x", b"[" * 600, b"lr: !!python/object/apply:os._exit [1]", b"#" * 70_000]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def run(cli: Cli, data: Path, trained: Path, tmp_path: Path) -> Path:
    """A run that stopped before it wrote its result; trained once, on images that stay."""
    if not (trained / "run").exists():
        shutil.copytree(data, trained / "data")
        outcome = cli("distill", "--method", "none", "--data", trained / "data", "--output", trained / "run", *TINY_RUN)
        assert outcome.code == 0, outcome.err
        (trained / "run" / "result.json").unlink()
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def test_the_run_would_go_on(cli: Cli, run: Path) -> None:
    assert cli("distill", "--resume", "--output", run).code == 0
    assert cli("evaluate", run).code == 0


@pytest.mark.parametrize("content", NO_JSON, ids=range(len(NO_JSON)))
def test_damaged_inputs_are_named(cli: Cli, run: Path, content: bytes) -> None:
    (run / "inputs.json").write_bytes(content)
    cli("distill", "--resume", "--output", run).refused("inputs.json", "is damaged", "--overwrite")
    (run / "inputs.json").unlink()
    cli("distill", "--resume", "--output", run).refused("inputs.json", "No such file", "--overwrite")


@pytest.mark.parametrize("content", NO_JSON, ids=range(len(NO_JSON)))
def test_a_damaged_group_is_named(cli: Cli, run: Path, content: bytes) -> None:
    for damaged in (content, json.dumps({"students": 5}).encode()):
        (run / "group.json").write_bytes(damaged)
        cli("distill", "--resume", "--output", run).refused("group.json", "is damaged")


@pytest.mark.parametrize("content", [*NO_JSON, b"{}", b'{"top1": "x", "student": "y"}', b'{"top1": 1.0}'])
def test_a_damaged_result_is_named(cli: Cli, run: Path, content: bytes) -> None:
    (run / "result.json").write_bytes(content)
    cli("distill", "--auto-resume", "--output", run).refused("result.json", "is damaged", "--overwrite")


def test_a_finished_run_of_another_recipe_is_refused(cli: Cli, run: Path) -> None:
    assert cli("distill", "--resume", "--output", run).code == 0
    assert cli("distill", "--auto-resume", "--output", run).code == 0
    assert cli("distill", "--auto-resume", "--output", run, "--recipe", run / "recipe.yaml").code == 0
    cli("distill", "--auto-resume", "--output", run, "--lr", "0.5").refused("lr is 0.5", "--overwrite")


@pytest.mark.parametrize("mixup", ["0", "0.2"])
def test_a_run_may_be_cut_otherwise_where_nothing_looks_at_images_at_once(
    cli: Cli, data: Path, tmp_path: Path, mixup: str
) -> None:
    flags = (
        "--method",
        "none",
        *TINY_RUN,
        "--batch",
        "4",
        "--micro-batch",
        "4",
        "--batchnorm-over",
        "2",
        "--mixup",
        mixup,
    )
    assert cli("distill", "--data", data, "--output", tmp_path / "cut", *flags, "--micro-batch", "2").code == 0
    (tmp_path / "cut" / "result.json").unlink()
    outcome = cli("distill", "--resume", "--output", tmp_path / "cut", "--micro-batch", "4")
    if mixup == "0":
        assert outcome.code == 0, outcome.err
    else:
        outcome.refused("micro_batch is 4")


def test_a_run_without_a_checkpoint_begins_anew_and_says_so(cli: Cli, run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    (run / "checkpoints" / "last.ckpt").touch()
    cli("distill", "--resume", "--output", run).refused("last.ckpt", "--overwrite")
    (run / "checkpoints" / "last.ckpt").unlink()
    outcome = cli("distill", "--resume", "--output", run)
    assert outcome.code == 0
    assert "no checkpoint" in outcome.err


@pytest.mark.parametrize("content", NO_RECIPE, ids=range(len(NO_RECIPE)))
def test_a_damaged_recipe_is_named(cli: Cli, run: Path, content: bytes) -> None:
    (run / "recipe.yaml").write_bytes(content)
    cli("distill", "--resume", "--output", run).refused("recipe.yaml")
    cli("evaluate", run).refused("recipe.yaml")


@pytest.mark.parametrize(
    "key", ["data", "batch", "micro_batch", "student", "method", "val_split", "precision", "epochs"]
)
def test_a_recipe_with_wrong_or_missing_values_is_refused(cli: Cli, run: Path, key: str) -> None:
    stored = yaml.safe_load((run / "recipe.yaml").read_text())
    for value in ({"a": [1]}, "\0", -1):
        (run / "recipe.yaml").write_text(yaml.safe_dump(stored | {key: value}))
        cli("distill", "--resume", "--output", run).refused()
        assert cli("evaluate", run).code in (0, 2), "it reads some keys only"
    again = ("distill", "--resume", "--output", run, "--method", "none", "--data", stored["data"], *TINY_RUN)
    (run / "recipe.yaml").write_text(yaml.safe_dump(stored | {key: [1]}))
    if key != "data":  # which may be elsewhere
        cli(*again, "--recipe", "quickstart").refused()
    del stored[key]
    (run / "recipe.yaml").write_text(yaml.safe_dump(stored))
    assert cli("evaluate", run).code in (0, 2)


def test_damaged_log_lines_are_dropped(cli: Cli, run: Path) -> None:
    lines = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(lines + b'\xff\n{"step": "x"}\n[]\n{}\n{"step": 1\n' + b"[" * 100_000 + b"\n")
    assert cli("distill", "--resume", "--output", run).code == 0
    assert (run / "metrics.jsonl").read_bytes().startswith(lines)


@pytest.mark.parametrize("content", NO_JSON, ids=range(len(NO_JSON)))
def test_a_damaged_result_of_a_fine_tuning_is_named(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "result.json").write_bytes(content)
    command = ("adapt", teacher_file, "--data", data, "--mode", "finetune", "--output", tmp_path / "tuned", "--resume")
    cli(*command).refused("result.json", "is damaged", "--overwrite")


def test_a_checkpoint_elsewhere_is_no_run(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "last.ckpt").touch()
    monkeypatch.chdir(tmp_path)
    cli("evaluate", "last.ckpt").refused("holds no run")
