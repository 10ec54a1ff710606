"""Guards machine-independent costs of a training step: finds regressions of speed or memory without timing.

`python benchmarks/guard.py` compares them with `results/guard.json` and fails if one has grown; `--update` writes the
file again, which a justified change does, with the reason in its message. The tests run it too.

For each pair, of full width but few blocks, and at half the usual resolution:
- `flops`: of a step for an image, by part (see `scalekd.planner.step_flops`);
- `weights`: bytes of teacher, student and projectors, the teacher's matrices in bf16;
- `activations`: bytes that a step of 8 images in bf16 holds beyond weights and gradients;
- `operations`: operations that torch dispatches in forward and backward;
- `host_syncs`: those among them whose result's value or shape the host must wait for on a GPU (`.item()`, a mask as an
  index);
- `teacher_forwards`, `tail_passes`, `student_forwards`: calls in a step, and `teacher_forwards_taught` in one that is
  given the teacher's outputs;
- `graphs`, `graph_breaks`: of the step's forward under `torch.compile`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from command import Parser, check_output, say
from pair import Pair, join, prepare, step
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scalekd import ScaleKD
from scalekd.atomic import write_json
from scalekd.errors import UserError
from scalekd.hardware import autocast
from scalekd.methods.projector import StemConvolution
from scalekd.planner import step_flops, step_memory

FILE = Path(__file__).parent / "results" / "guard.json"
CPU = torch.device("cpu")
SWIN = {"depths": (1, 1, 2, 2)}
VIT = {"depth": 4}
PAIRS = {
    "Swin-T -> ResNet-18": Pair("swin_tiny_patch4_window7_224", "resnet18", 112, teacher_args=SWIN),
    "ViT-S/16 -> MobileNet-V1": Pair("vit_small_patch16_224", "mobilenetv1_100", 112, teacher_args=VIT),
    "ViT-Ti/16 -> ViT-Ti/16": Pair(
        "vit_tiny_patch16_224", "vit_tiny_patch16_224", 112, teacher_args=VIT, student_args=VIT
    ),
}
TOLERANCE = 1.02
aten = torch.ops.aten


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts dispatched operations, and those for which the host of a GPU would have to wait.

    Attributes:
        count: Number of all operations.
        host_syncs: Number of those whose result is a Python number or a tensor whose shape depends on values.
    """

    count = host_syncs = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += 1
        self.host_syncs += _waits(func, args)
        return func(*args, **(kwargs or {}))


def _waits(func: Any, args: tuple[Any, ...]) -> bool:
    if torch.Tag.data_dependent_output in func.tags:
        return True
    if func._overloadpacket is aten.index:  # tagged for its masks; with numbers as indices the shape is known
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return torch.Tag.dynamic_output_shape in func.tags


def quantities(pair: Pair) -> dict[str, int]:
    """Return all guarded quantities of one pair."""
    teacher, student = pair.models(CPU)
    method = join(teacher, student)
    prepare(method, torch.bfloat16)
    for part in method.modules():
        if isinstance(part, StemConvolution):  # processors choose it
            part.as_product = False
    flops = step_flops(method)
    memory = step_memory(method, batch=8, optimizer="adamw", ema=False, dtype=torch.bfloat16)
    images, labels = pair.batch(2, CPU)
    compiled = graphs(method, images, labels)
    with autocast(CPU, torch.bfloat16):
        teacher_outputs = teacher(images)
    calls: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    teacher.model.forward_features = counted("teacher_forwards", teacher.model.forward_features)
    teacher.tail = counted("tail_passes", teacher.tail)  # type: ignore[method-assign]
    student.model.forward_intermediates = counted("student_forwards", student.model.forward_intermediates)
    operations = Operations()  # type: ignore[no-untyped-call]
    with operations:
        step(method, images, labels, torch.bfloat16)
    live = dict(calls)
    step(method, images, labels, torch.bfloat16, teacher_outputs=teacher_outputs)
    parts = {f"flops_{part}": getattr(flops, part) for part in ("teacher", "student", "cap", "tail")}
    return {
        **parts,
        "weights": memory.weights,
        "activations": memory.activations,
        "operations": operations.count,
        "host_syncs": operations.host_syncs,
        **live,
        "teacher_forwards_taught": calls["teacher_forwards"] - live["teacher_forwards"],
        **compiled,
    }


def graphs(method: ScaleKD, images: Tensor, labels: Tensor) -> dict[str, int]:
    """Count the graphs that `torch.compile` would create, and the breaks between them; nothing is compiled."""
    torch._dynamo.reset()
    with autocast(CPU, torch.bfloat16):
        found = torch._dynamo.explain(method)(images, labels)
    torch._dynamo.reset()
    return {"graphs": found.graph_count, "graph_breaks": found.graph_break_count}


def recorded() -> dict[str, dict[str, int]]:
    """Return the recorded quantities by pair; `operations` only with the torch version of the recording."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    pairs: dict[str, dict[str, int]] = content["pairs"]
    if content["torch"] != torch.__version__:
        for values in pairs.values():
            del values["operations"]
    return pairs


def grown(now: Mapping[str, int], before: Mapping[str, int]) -> list[str]:
    """Return one line for each quantity that has grown; only recorded quantities are compared."""
    return [
        f"{name}: {value:,} before, {now[name]:,} now"
        for name, value in before.items()
        if now[name] > value * TOLERANCE
    ]


def main() -> int:
    parser = Parser(
        description="Compare a step's machine-independent costs with the recorded ones.",
        epilog="exit codes: 0 nothing has grown, 1 something has, 2 wrong input",
    )
    parser.add_argument("--update", action="store_true", help=f"write {FILE.name} again")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write quantities and what has grown as JSON")
    args = parser.parse_args()
    try:
        check_output(args.output)
    except UserError as error:
        say(f"error: {error}")
        return 2
    now = {name: quantities(pair) for name, pair in PAIRS.items()}
    if args.update:
        FILE.write_text(json.dumps({"torch": torch.__version__, "pairs": now}, indent=1) + "\n", encoding="utf-8")
    before = recorded()
    more = {pair: grown(values, before[pair]) for pair, values in now.items()}
    for pair, values in now.items():
        print(f"{pair}: " + ", ".join(f"{name} {value:,}" for name, value in values.items()))
        for line in more[pair]:
            print(f"  GROWN {line}")
    if args.output:
        write_json(args.output, {"benchmark": "guard", "torch": torch.__version__, "pairs": now, "grown": more})
    return int(any(more.values()))


if __name__ == "__main__":
    sys.exit(main())
