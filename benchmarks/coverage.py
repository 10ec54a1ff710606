"""Tests which timm architectures can be a student: one ScaleKD step for the smallest model of each timm module.

A model counts as supported if one step (forward, backward) leaves a finite gradient in each of its parameters, if its
logits are timm's own, and if plain timm loads what it saves and computes the same from it. The memory layout is that of
a run, and the step is taken in a forked process, because a fault of a library may end it. Results are written one by
one; a second call resumes where the first one stopped. `--report` writes `docs/coverage.md` from them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch

from scalekd import ScaleKD, Student, Teacher
from scalekd.errors import UserError
from scalekd.hardware import autocast, pick_dtype
from scalekd.models.memory_format import prepare
from scalekd.planner import UnpredictableError, step_memory
from scalekd.tasks.distill.trial import in_safe_layout

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "coverage.json"
PAGE = ROOT / "docs" / "coverage.md"
CLASSES = 10
CPU = torch.device("cpu")
INTRODUCTION = """# timm's architectures as students

Written by `python benchmarks/coverage.py --report` with timm {version}: the smallest model of each of timm's modules
takes one ScaleKD step at its own resolution as a run does on this CPU: in {tried}, in a process of its own. Supported
means: a finite gradient in each of the student's parameters, logits equal to timm's own, and saved weights that plain
timm loads and that compute the same there. The memory of the step was predicted before it (that cannot be done for:
{unpredicted}). The last column says whether the model can be the teacher: its tail gives tokens like its own, with
finite gradients for what goes in.
"""


def tried() -> str:
    """Prepare a method as a run on this machine's CPU does."""
    return f"{str(pick_dtype('auto', CPU)).removeprefix('torch.')}, channels last"


def smallest(module: str) -> str:
    """Return the model with the fewest parameters of a timm module."""

    def parameters(name: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name).parameters())

    names: list[str] = timm.list_models(module=module)
    return min(names, key=parameters)


def a_teacher() -> Teacher:
    """Build a small ViT with random weights; only the student is tested."""
    size: dict[str, Any] = {"depth": 3, "embed_dim": 96, "num_heads": 3}
    return Teacher("vit_tiny_patch16_224", pretrained=False, num_classes=CLASSES, resolution=64, **size)


def try_student(name: str, teacher: Teacher) -> dict[str, Any]:
    """Take one step with a student at its own resolution; `reason` is empty if it is supported."""
    torch.manual_seed(0)
    student = Student(name, num_classes=CLASSES)
    result: dict[str, Any] = {
        "parameters": sum(p.numel() for p in student.parameters()),
        "resolution": student.resolution,
        "previous": str(student.maps[0]),
        "last": str(student.maps[1]),
        "teaches": can_teach(name),
    }
    size = student.resolution
    method = ScaleKD(teacher, student)
    # A run predicts its memory before its first step, on tensors without memory; the step must not be the worse for it.
    try:
        predicted = step_memory(method, batch=2, optimizer="adamw", ema=False, dtype=torch.float32)
        result["step_mib"] = predicted.total // 2**20
    except UnpredictableError:
        result["step_mib"] = None
    dtype, notes = pick_dtype("auto", CPU), list[str]()
    prepare(method, CPU, dtype, channels_last=True)
    broken = in_safe_layout(method, partial(step, dtype=dtype), dtype=dtype, say=notes.append)
    if notes:
        result["contiguous"] = notes[0]
    if broken is None:
        return result | {"reason": "the step took too long"}
    if broken:
        return result | {"reason": f"no finite gradient in {len(broken)} parameters, {broken[0]} the first"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "student.safetensors"
        student.eval().save(file)
        plain = timm.create_model(name, num_classes=CLASSES, checkpoint_path=str(file), **student.model_args).eval()
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        theirs, ours = plain(student.prepare(images)), student(images).logits
    # Relative: with random weights, inception_v3's logits are around 1e11, and its layouts differ in rounding.
    difference = ((theirs - ours).abs().max() / theirs.abs().max().clamp(min=1)).item()
    return result | {"reason": "" if difference < 1e-4 else f"plain timm's logits differ by {difference:.1e}"}


def step(method: ScaleKD, dtype: torch.dtype) -> list[str]:
    """Run forward and backward on two images; return the student's parameters without a finite gradient."""
    assert isinstance(method.student, Student)
    size, student = method.student.resolution, method.student.model
    with autocast(CPU, dtype):
        losses = method.train()(torch.rand(2, 3, size, size), torch.tensor([0, 1]))
    losses.total.backward()
    return [n for n, p in student.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def can_teach(name: str) -> bool:
    """Return whether a model can be a teacher: its tail returns tokens like its own, with a gradient for the input."""
    try:
        teacher = Teacher(name, pretrained=False)
    except UserError:
        return False
    tokens = torch.randn(1, teacher.tail_input.positions, teacher.tail_input.channels, requires_grad=True)
    through = teacher.tail(tokens)
    through.square().mean().backward()  # type: ignore[no-untyped-call]
    outputs = teacher(torch.rand(1, 3, teacher.resolution, teacher.resolution))
    return through.shape == outputs.tokens.shape and tokens.grad is not None and bool(tokens.grad.isfinite().all())


def measure(modules: list[str]) -> None:
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    teacher = a_teacher()
    for module in modules:
        if results.get(module, {}).get("tried") == tried():
            continue
        started, name = time.perf_counter(), smallest(module)
        try:
            outcome = try_student(name, teacher)
        except Exception as error:
            outcome = {"reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        results[module] = {"model": name, "tried": tried()} | outcome
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{module:28} {name:40} {outcome['reason'] or 'ok'}  {time.perf_counter() - started:.0f} s", flush=True)


def report() -> None:
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    supported = [r for r in results.values() if not r["reason"]]
    unpredicted = [f"`{r['model']}`" for r in supported if r["step_mib"] is None]
    missing = [module for module, r in results.items() if r.get("tried") != tried()]
    if missing:
        raise SystemExit(f"{RESULTS}: {len(missing)} modules, {missing[0]} the first, were not tried in {tried()}")
    lines = [
        INTRODUCTION.format(version=timm.__version__, unpredicted=", ".join(unpredicted) or "none", tried=tried()),
        f"**{len(supported)} of {len(results)} modules ({100 * len(supported) / len(results):.0f}%) are supported.**",
        "",
        "| module | smallest model | M parameters | px | S_prev | S_last | student | teacher |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for module, r in sorted(results.items()):
        size = f"{r['parameters'] / 1e6:.2f} | {r['resolution']}" if "parameters" in r else " | "
        maps = f"{r.get('previous', '')} | {r.get('last', '')}"
        verdict, teaches = (
            r["reason"] or ("yes, contiguous layout" if "contiguous" in r else "yes"),
            "yes" if r.get("teaches") else "",
        )
        lines.append(f"| {module} | `{r['model']}` | {size} | {maps} | {verdict} | {teaches} |")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{PAGE}: {len(supported)} of {len(results)} modules supported")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="timm modules; by default all")
    parser.add_argument("--report", action="store_true", help="only write docs/coverage.md from the results")
    options = parser.parse_args()
    if not options.report:
        measure(options.modules or [name for name in timm.models.list_modules() if hasattr(timm.models, name)])
    report()
