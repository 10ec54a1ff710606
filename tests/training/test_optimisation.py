from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from scalekd import ScaleKD, Student, Teacher
from scalekd.engine.optimisation import build_optimizer, build_schedule, parameter_kinds
from scalekd.errors import UserError
from scalekd.recipes import load
from scalekd.tasks.distill.build import task_loss


def rates(keys: dict[str, object], steps_per_epoch: int) -> list[float]:
    recipe = load(None, keys)
    optimizer = build_optimizer(recipe, nn.ModuleDict({"student": nn.Linear(2, 2)}))
    schedule = build_schedule(recipe, optimizer, steps_per_epoch)
    values = []
    for step in range(recipe.epochs * steps_per_epoch):
        values.append(optimizer.param_groups[0]["lr"])
        schedule.step_update(num_updates=step + 1)
    return values


def test_the_cosine_warms_up_and_ends_at_its_minimum() -> None:
    values = rates({"epochs": 10, "warmup_epochs": 2, "warmup_lr": 0.1, "lr": 1.0, "min_lr": 0.01}, 5)
    assert values[:11] == pytest.approx([0.1 + 0.09 * step for step in range(11)]), "the peak is reached"
    assert values[10:] == pytest.approx([0.01 + 0.495 * (1 + math.cos(math.pi * t / 40)) for t in range(40)])


def test_the_step_schedule_drops_by_ten_at_each_milestone() -> None:
    values = rates({"epochs": 4, "warmup_epochs": 0, "schedule": "step", "milestones": [1, 3], "lr": 1.0}, 2)
    assert values == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
def test_norms_biases_and_positions_do_not_decay(optimizer: str, teacher: Teacher) -> None:
    method = ScaleKD(teacher, Student("vit_tiny_patch16_224", num_classes=3, resolution=32, depth=4))
    built = build_optimizer(load(None, {"optimizer": optimizer, "weight_decay": 0.05}), method)
    decay = {id(p): group["weight_decay"] for group in built.param_groups for p in group["params"]}
    parameters = dict(method.named_parameters())
    assert len(decay) == len(parameters)
    for name, parameter in parameters.items():
        spared = parameter.ndim <= 1 or name.endswith(("pos_embed", "cls_token"))
        assert decay[id(parameter)] == (0 if spared else 0.05), name
    kinds = parameter_kinds(method)
    assert kinds["student.model.pos_embed"] == kinds["last.views.spatial.pos_embed"] == "position"
    assert kinds["student.model.cls_token"] == "class_token"
    assert kinds["student.model.norm.weight"] == "norm"
    assert kinds["last.views.spatial.norm.bias"] == "bias"
    assert kinds["last.views.spatial.attn.q.weight"] == "weight"


def test_sgd_is_plain() -> None:
    group = build_optimizer(load(None, {"optimizer": "sgd", "momentum": 0.9}), nn.Linear(2, 2)).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, False)


def test_bce_is_summed_over_classes() -> None:
    loss = task_loss(load(None, {"task_loss": "bce"}))
    assert float(loss(torch.zeros(2, 7), torch.tensor([1, 3]))) == pytest.approx(7 * math.log(2))


@pytest.mark.parametrize("kind", ["cross_entropy", "bce"])
def test_the_task_loss_adds_up_over_parts_of_a_partly_labelled_batch(kind: str) -> None:
    """So that accumulation and several devices do not change it."""
    loss = task_loss(load(None, {"task_loss": kind, "label_smoothing": 0.1}))
    logits, labels = torch.randn(6, 3), torch.tensor([0, -1, 2, -1, -1, 1])
    parts = [loss(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(loss(logits, labels), torch.stack(parts).mean())
    assert loss(logits[3:5], labels[3:5]) == 0


def test_smoothing_is_not_applied_twice_after_mixup() -> None:
    loss = task_loss(load(None, {"label_smoothing": 0.2}))
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    smoothed = functional.one_hot(labels, 3) * 0.8 + 0.2 / 3
    torch.testing.assert_close(loss(logits, labels), loss(logits, smoothed))
    torch.testing.assert_close(loss(logits, labels), functional.cross_entropy(logits, labels, label_smoothing=0.2))


@pytest.mark.parametrize("kinds", [(), ("position",), ("norm", "bias")])
def test_only_the_named_kinds_are_spared(teacher: Teacher, student: Student, kinds: tuple[str, ...]) -> None:
    method = ScaleKD(teacher, student)
    built = build_optimizer(load(None, {"no_decay": kinds, "weight_decay": 0.1}), method)
    decay = {id(p): group["weight_decay"] for group in built.param_groups for p in group["params"]}
    parameters, found = dict(method.named_parameters()), parameter_kinds(method)
    assert {found[name] for name, p in parameters.items() if decay[id(p)] == 0} == set(kinds)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_projectors_learn_at_their_own_share_of_the_rate(scale: float, teacher: Teacher, student: Student) -> None:
    keys = {"lr": 0.4, "epochs": 2, "warmup_epochs": 1, "warmup_lr": 0.2, "min_lr": 0.1}
    recipe = load(None, keys | {"projector_lr_scale": scale})
    method = ScaleKD(teacher, student)
    built = build_optimizer(recipe, method)
    schedule = build_schedule(recipe, built, 4)
    for step, rate in ((0, 0.2), (2, 0.3), (4, 0.4), (6, 0.25), (8, 0.1)):  # warm-up, peak, cosine, end
        schedule.step_update(num_updates=step)
        rates = {id(p): group["lr"] for group in built.param_groups for p in group["params"]}
        for name, parameter in method.named_parameters():
            own = 1.0 if name.startswith("student.") else scale
            assert rates[id(parameter)] == pytest.approx(rate * own), name
        assert built.param_groups[0]["lr"] == pytest.approx(rate), "what is logged is the student's"


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        ({"lr": 8e-3}, 0.125),
        ({"lr": 1e-3}, 1.0),
        ({"lr": 1e-4}, 1.0),
        ({"lr": 8e-3, "optimizer": "lamb"}, 1.0),
        ({"lr": 0.1, "optimizer": "sgd"}, 1.0),
        ({"lr": 8e-3, "projector_lr_scale": 0.5}, 0.5),
        ({"lr": 8e-3, "projector_lr_scale": "auto"}, 0.125),
        ({"lr": 8e-3, "method": "fd"}, 1.0),
        ({"lr": 8e-3, "method": "ofa"}, 1.0),
    ],
)
def test_scalekds_projectors_under_adamw_learn_at_1e_3_at_most_by_default(keys: dict[str, Any], scale: float) -> None:
    assert load(None, keys).used_projector_lr_scale == pytest.approx(scale)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "mobilenetv1_100"])
def test_each_layer_of_the_student_has_a_part_of_the_rate_of_the_next(name: str, teacher: Teacher) -> None:
    own = Student(name, num_classes=3, resolution=32)
    method, student_model = ScaleKD(teacher, own), own.model
    built = build_optimizer(load(None, {"lr": 1e-2, "layer_decay": 0.5, "projector_lr_scale": 3.0}), method)
    scales = {id(p): group["lr_scale"] for group in built.param_groups for p in group["params"]}
    found = {name: scales[id(parameter)] for name, parameter in method.named_parameters()}
    student = {name: scale for name, scale in found.items() if name.startswith("student.")}
    assert {scale for name, scale in found.items() if name not in student} == {3}
    layout = student_model.pretrained_cfg
    assert student[f"student.model.{layout['classifier']}.weight"] == built.param_groups[0]["lr_scale"] == 1
    layers = sorted(set(student.values()), reverse=True)
    assert layers == [0.5**layer for layer in range(len(layers))]
    assert student[f"student.model.{layout['first_conv']}.weight"] == layers[-1] <= 0.5**4


def test_layers_of_other_models_are_not_known() -> None:
    method = nn.ModuleDict({"student": nn.ModuleDict({"model": nn.Linear(2, 2)})})
    with pytest.raises(UserError, match="layer_decay: Linear does not declare its layers"):
        build_optimizer(load(None, {"layer_decay": 0.5}), method)
