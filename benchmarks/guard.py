"""What a training step costs in quantities that no machine changes: a regression of speed or memory without timing.

`python benchmarks/guard.py` compares them with `results/guard.json` and fails if one has grown; `--update` writes the
file anew, which a change that is worth it does, saying why. The tests run it too.

For each pair, at a quarter of the usual resolution:
- `flops`: of a step for an image, by part (see `scalekd.planner.step_flops`);
- `activations`: bytes that a step of 8 images in bf16 holds beyond weights and gradients;
- `operations`: operations that torch dispatches in forward and backward;
- `teacher_forwards`, `tail_passes`, `student_forwards`: calls in a step.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scalekd import ScaleKD, Student, Teacher
from scalekd.planner import step_flops, step_memory

FILE = Path(__file__).parent / "results" / "guard.json"
PAIRS = (
    ("swin_tiny_patch4_window7_224", "resnet18"),
    ("vit_small_patch16_224", "mobilenetv1_100"),
    ("vit_tiny_patch16_224", "vit_tiny_patch16_224"),
)
RESOLUTION = 112
TOLERANCE = 1.02


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts dispatched operations."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def quantities(teacher_name: str, student_name: str) -> dict[str, int]:
    """Everything that is guarded of one pair."""
    teacher = Teacher(teacher_name, pretrained=False, resolution=RESOLUTION).hold_weights(torch.bfloat16)
    student = Student(student_name, resolution=RESOLUTION)
    method = ScaleKD(teacher, student)
    flops = step_flops(method)
    memory = step_memory(method, batch=8, optimizer="adamw", ema=False, dtype=torch.bfloat16)
    calls: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    teacher.model.forward_features = counted("teacher_forwards", teacher.model.forward_features)
    teacher.tail = counted("tail_passes", teacher.tail)  # type: ignore[method-assign]
    student.model.forward_intermediates = counted("student_forwards", student.model.forward_intermediates)
    operations = _Operations()  # type: ignore[no-untyped-call]
    images = torch.rand(2, 3, RESOLUTION, RESOLUTION)
    with operations, torch.autocast("cpu", torch.bfloat16):
        total = method.train()(images, torch.tensor([0, 1])).total
    with operations:
        total.backward()
    parts = {f"flops_{part}": getattr(flops, part) for part in ("teacher", "student", "cap", "tail")}
    return parts | {"activations": memory.activations, "operations": operations.count} | calls


def recorded() -> dict[str, dict[str, int]]:
    """The recorded quantities by pair; `operations` only for the torch that they were recorded with."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    pairs: dict[str, dict[str, int]] = content["pairs"]
    if content["torch"] != torch.__version__:
        for values in pairs.values():
            del values["operations"]
    return pairs


def grown(now: Mapping[str, int], before: Mapping[str, int]) -> list[str]:
    """What is more than before, a line each; only what was recorded is compared."""
    return [
        f"{name}: {value:,} before, {now[name]:,} now"
        for name, value in before.items()
        if now[name] > value * TOLERANCE
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a step's machine-independent costs with the recorded ones.")
    parser.add_argument("--update", action="store_true", help=f"write {FILE.name} anew")
    options = parser.parse_args()
    now = {f"{teacher} -> {student}": quantities(teacher, student) for teacher, student in PAIRS}
    if options.update:
        content = {"torch": torch.__version__, "pairs": now}
        FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    before = recorded()
    failed = False
    for pair, values in now.items():
        print(f"{pair}: " + ", ".join(f"{name} {value:,}" for name, value in values.items()))
        for line in grown(values, before[pair]):
            failed = True
            print(f"  GROWN {line}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
