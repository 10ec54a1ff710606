"""Compare scalekd with reference values of one ScaleKD step, file by file.

Usage: python tests/golden_check.py DIR [--tolerance 1e-4]

DIR holds `step_<teacher>_to_<student>.safetensors` and `<teacher>_teacher.safetensors`; every setting is read from the
files' metadata. Prints each file's worst relative errors and exits 1 if one is above the tolerance.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from scalekd import ScaleKD, Teacher
from scalekd.methods.mimicking import DualViewMimicking
from scalekd.methods.outputs import MapShape, StudentOutputs, TeacherOutputs
from scalekd.methods.projector import CrossAttentionProjector

VIEWS = ("spatial", "frequency")
PLACES = {"s3": "cap3", "s4": "cap4"}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["meta"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def relative(value: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    return float((value.detach() - reference).norm() / reference.norm().clamp_min(1e-30))


def load_teacher(path: Path, tail_blocks: int) -> tuple[Teacher, dict[str, Tensor]]:
    meta, tensors = read(path)
    model = SwinTransformer(**meta) if "depths" in meta else VisionTransformer(**meta)
    model.load_state_dict({k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")})
    teacher = Teacher(model, tail_blocks=tail_blocks, resolution=tensors["in.images"].shape[-1])
    teacher.mean.zero_()  # the reference images are the model's input as it is
    teacher.std.fill_(1)
    return teacher, tensors


def check_teacher(path: Path) -> dict[str, float]:
    teacher, tensors = load_teacher(path, 1)
    outputs = teacher(tensors["in.images"])
    assert outputs.logits is not None
    final = tensors["out.stage4" if "out.stage4" in tensors else "out.final"].flatten(2).transpose(1, 2)
    errors = {
        "tokens": relative(outputs.tokens, final),
        "logits": relative(outputs.logits, tensors["out.logits"]),
    }
    if "out.stage3" in tensors:
        errors["tail"] = relative(teacher.tail(tensors["out.stage3"].flatten(2).transpose(1, 2)), final)
    return errors


class StudentShapes:
    """Stands in for a student whose features are given: only the shapes and the stem's norm are read."""

    def __init__(self, tensors: dict[str, Tensor], stem_norm: str) -> None:
        self.maps = tuple(MapShape(*tensors[f"in.student_{stage}"].shape[1:]) for stage in PLACES)
        self.num_classes = tensors["in.student_logits"].shape[1]
        self.stem_norm = stem_norm
        self.maps_reason = "as given"

    def __call__(self, images: Tensor) -> StudentOutputs:
        raise AssertionError("the features are given")


def load_projectors(places: dict[str, DualViewMimicking], tensors: dict[str, Tensor]) -> None:
    """Map the reference's parameters into ours; ours must all be there and no other."""
    for stage, place in places.items():
        for view, projector in place.projectors.items():
            prefix = f"{stage}.param.{view}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            state["query_proj.weight"] = state["query_proj.weight"].flatten(1)  # a 1x1 convolution there
            if "query" in state:
                state["query"] = state["query"].unsqueeze(0)
            own = projector.state_dict()
            buffers = {k: v for k, v in own.items() if k.startswith("stem.norm.") and k not in state}
            projector.load_state_dict(state | buffers)


def gradient_errors(projector: CrossAttentionProjector, reference: dict[str, Tensor]) -> dict[str, float]:
    """Each parameter's gradient error over the largest gradient norm of its projector."""
    largest = max(gradient.norm() for gradient in reference.values())
    errors = {}
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        errors[name] = ((parameter.grad - reference[name].view_as(parameter)).norm() / largest).item()
    assert len(errors) == len(reference)
    return errors


def check_step(path: Path) -> dict[str, float]:
    meta, tensors = read(path)
    teacher_file = path.with_name(path.stem.removeprefix("step_").split("_to_")[0] + "_teacher.safetensors")
    teacher, _ = load_teacher(teacher_file, meta.get("tail_blocks", 2))
    method = ScaleKD(
        teacher,
        StudentShapes(tensors, meta.get("stem_norm", "batchnorm")),
        alpha=dict(zip(VIEWS, meta["alpha"], strict=True)),
        softmax_scale=dict(zip(VIEWS, meta["softmax_scale"], strict=True)),
        heads=tuple(meta["num_heads"]),
        logit_weight=meta["kd"]["alpha"],
        temperature=meta["kd"]["temperature"],
    )
    assert method.tpp is not None
    assert method.last is not None
    places = {"s3": method.tpp.previous, "s4": method.last}
    load_projectors(places, tensors)
    captured: dict[str, Tensor] = {}
    for stage, place in places.items():
        for view, projector in place.projectors.items():
            name = f"{PLACES[stage]}_{view}"
            projector.register_forward_hook(lambda _m, _i, out, name=name: captured.update({name: out}))
    method.tpp.register_forward_hook(
        lambda _m, _i, out: captured.update({f"proxy_{view}": tokens for view, tokens in out.items()})
    )
    inputs = {k: tensors[f"in.student_{k}"].clone().requires_grad_() for k in ("s3", "s4", "logits")}
    losses = method.losses(
        StudentOutputs(previous=inputs["s3"], last=inputs["s4"], logits=inputs["logits"]),
        TeacherOutputs(tokens=tensors["teacher.s4"].flatten(2).transpose(1, 2), logits=tensors["teacher.logits"]),
        tensors["in.labels"],
    )
    losses.total.backward()  # type: ignore[no-untyped-call]
    expected_losses = {k.removeprefix("loss."): v for k, v in tensors.items() if k.startswith("loss.")}
    ours = losses.terms | {"total": losses.total}
    assert ours.keys() == expected_losses.keys(), f"{sorted(ours)} != {sorted(expected_losses)}"
    outputs = {k.removeprefix("out."): v for k, v in tensors.items() if k.startswith("out.")}
    parameters = []
    for stage, place in places.items():
        for view, projector in place.projectors.items():
            prefix = f"{stage}.grad.{view}."
            reference = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            parameters += list(gradient_errors(projector, reference).values())
    return {
        "losses": max(relative(ours[k], v) for k, v in expected_losses.items()),
        "outputs": max(relative(captured[k], v) for k, v in outputs.items()),
        "input gradients": max(relative(v.grad, tensors[f"grad.student_{k}"]) for k, v in inputs.items()),  # type: ignore[arg-type]
        "parameter gradients": max(parameters),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()
    steps = sorted(args.folder.glob("step_*.safetensors"))
    if not steps:
        print(f"{args.folder}: no step_*.safetensors", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    worst = 0.0
    for path in [*sorted(args.folder.glob("*_teacher.safetensors")), *steps]:
        try:
            errors = check_step(path) if path in steps else check_teacher(path)
        except Exception as error:  # one bad file must not hide the others
            print(f"{path.name}: {type(error).__name__}: {error}")
            worst = float("inf")
            continue
        worst = max([worst, *(float("inf") if math.isnan(e) else e for e in errors.values())])
        print(f"{path.name}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    passed = worst <= args.tolerance
    print(f"worst relative error {worst:.1e}, tolerance {args.tolerance:.0e}: {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
