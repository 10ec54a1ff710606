"""Unknown flags and keys: what is near is suggested; other tools' names lead to ours or to a reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Cli
from typer.main import get_command

from scalekd.cli.main import app
from scalekd.errors import UserError, nearest
from scalekd.recipes import Recipe, load
from scalekd.recipes.other_names import FLAGS_ONLY, TABLE, suggest
from scalekd.tasks import detection, segmentation

KEYS = set(Recipe.model_fields)


def _flags(command: Any) -> set[str]:
    options = [p for p in command.params if p.param_type_name == "option"]
    return {flag for option in options for flag in (*option.opts, *option.secondary_opts)}


def commands(group: Any, name: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every command and its flags."""
    for part, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name}{part} ")
        else:
            yield f"{name}{part}", _flags(command)


FLAGS = dict(commands(get_command(app)))


def test_every_target_exists() -> None:
    keys = KEYS | set(segmentation.Segmentation.model_fields) | set(detection.Detection.model_fields)
    every = {flag for flags in FLAGS.values() for flag in flags}
    for meaning in TABLE:
        assert meaning.targets or meaning.instead, meaning.names
        for target in meaning.targets:
            assert f"--{target.replace('_', '-')}" in every, target
        for key in re.findall(r"`(\w+)`", meaning.instead):
            assert key in keys, key
    assert {f"--{flag}" for flag in FLAGS_ONLY} <= FLAGS["distill"]


def test_no_name_is_in_the_table_twice() -> None:
    names = [name for meaning in TABLE for name in meaning.names.split()]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("command", FLAGS)
def test_a_command_is_told_of_no_flag_that_it_lacks(command: str) -> None:
    for name in (name for meaning in TABLE for name in meaning.names.split()):
        hint = suggest(f"--{name.replace('_', '-')}", FLAGS[command])
        assert set(re.findall(r"--[\w-]+", hint)) <= FLAGS[command], (name, hint)


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--img-size", "; did you mean '--resolution'? (the side in pixels)"),
        ("--imgsz", "; did you mean '--resolution'? (the side in pixels)"),
        ("--amp", "; did you mean '--precision'? (auto, bf16 or float32)"),
        ("--pretrained", "; did you mean '--student-pretrained'?"),
        ("--weights", "; did you mean '--student-weights' or '--teacher-weights'?"),
        ("--learning-rate", "; did you mean '--lr'?"),
        ("--leraning-rate", "; did you mean '--lr'?"),
        ("--batch-size", "; did you mean '--batch'?"),
        ("--epochs-num", "; did you mean '--epochs'?"),
        ("--num-workers", "; did you mean '--workers'?"),
        ("--wd", "; did you mean '--weight-decay'?"),
        ("--model", "; did you mean '--student'?"),
        ("--dropout", "; did you mean '--student-args'? (as '{drop_rate: 0.1, drop_path_rate: 0.1}')"),
        ("--opt", "; did you mean '--optimizer'?"),
        ("--sched", "; did you mean '--schedule'?"),
        ("--aa", "; did you mean '--rand-augment'? (as rand-m7-mstd0.5)"),
        ("--mixup-alpha", "; did you mean '--mixup'?"),
        ("--gpus", "; did you mean '--devices'?"),
        ("--device", "; did you mean '--accelerator' or '--devices'?"),
        ("--fp16", "; did you mean '--precision'? (auto, bf16 or float32)"),
        ("--project", "; did you mean '--output'?"),
        ("--name", "; did you mean '--output'?"),
        ("--val-ratio", "; did you mean '--val-share'? (such as 0.1)"),
        ("--class-weight", "; did you mean '--class-weights'?"),
        ("--wandb", "; did you mean '--logger'? (wandb or mlflow)"),
        ("--save-best", "; did you mean '--keep-best'?"),
        ("--early-stopping", "; did you mean '--patience'?"),
        ("--epoch", "; did you mean '--epochs'?"),
        ("--no-chek-teacher", "; did you mean '--no-check-teacher'?"),
    ],
)
def test_flags_of_other_tools(flag: str, told: str) -> None:
    assert suggest(flag, FLAGS["distill"]) == told


@pytest.mark.parametrize("flag", ["--color-jitter", "--tensorboard", "--eval"])
def test_what_is_not_offered_says_what_to_do(flag: str) -> None:
    assert suggest(flag, FLAGS["distill"]).startswith("; not offered: ")


@pytest.mark.parametrize("flag", ["--xyzw", "--banana", "--zero-copy", "--shiny-things", "-q", "--runs"])
def test_what_is_near_nothing_suggests_nothing(flag: str) -> None:
    for flags in FLAGS.values():
        assert suggest(flag, flags) == ""


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [("vla", ["train", "val"], "val"), ("trian", ["train", "val"], "train"), ("amp", ["alpha_spatial", "ema"], None),
     ("save_best", ["stages", "seed"], None), ("class_weights", ["logit_weight"], None),
     ("h1000", ["a100", "h100"], "h100"),
     ("CIFAR", ["MNIST", "CIFAR10"], "CIFAR10"), ("resnt50", ["resnet50", "resnet18"], "resnet50"), ("", ["a"], None),
     ("vit_tny", ["vit_base_patch16_224", "vit_tiny_patch16_224"], "vit_tiny_patch16_224"), ("a", ["b"], None)],
)  # fmt: skip
def test_only_what_is_spelt_nearly_alike_is_near(word: str, known: list[str], meant: str | None) -> None:
    assert nearest(word, known) == meant


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("img_size", "did you mean 'resolution'?"),
        ("epcohs", "did you mean 'epochs'?"),
        ("batch-size", "did you mean 'batch'?"),
        ("output_dir", "it is not a key but a flag, --output"),
        ("lr_decay", "not offered: see `schedule`"),
    ],
)
def test_keys_of_other_tools_in_a_recipe(tmp_path: Path, key: str, told: str) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({key: 3}))
    with pytest.raises(UserError, match=f"unknown key '{key}'; {re.escape(told)}"):
        load(tmp_path / "r.yaml", {})


def test_the_command_line_suggests_by_the_same_table(cli: Cli) -> None:
    cli("distill", "--amp").refused("No such option: --amp; did you mean '--precision'?")
    cli("evaluate", "x", "--checkpoint", "y").refused("did you mean '--weights'?")
    cli("transfer", "detection", "--imgsz", "640").refused("did you mean '--sizes'?")
    cli("distill", "--save-best").refused("did you mean '--keep-best'?")
    cli("distill", "--lr-decay", "3").refused("--lr-decay; not offered: see `schedule`")
