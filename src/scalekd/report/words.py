"""Writes the sentences and facts of a report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from scalekd.methods.registry import METHODS
from scalekd.planner import StepFlops
from scalekd.report.measure import Figures
from scalekd.report.predictions import accuracy as share_right
from scalekd.report.record import Record
from scalekd.report.verdict import beside_teacher


def model_name(record: Record, role: str) -> str:
    """Return a model's name; for a weights file its file name without the folder."""
    name = str(record.keys.get(role) or "?")
    return Path(name).name if name.endswith(".safetensors") else name


def summary(record: Record, figures: Figures) -> list[str]:
    """Summarise a run: what was trained on what, the progress and the outcome, one sentence each."""
    classes = len(figures.classes)
    images = record.training_images
    data = f"{images:,} images" if images else "images"
    of = f" of {classes} classes" if classes else ""
    student, side = model_name(record, "student"), record.keys.get("resolution")
    if record.method == "none":
        what = f"{student} learned alone, from the labels of {data}{of} at {side} px."
    else:
        teacher = model_name(record, "teacher")
        method = METHODS[record.method].label if record.method in METHODS else record.method
        what = f"{teacher} taught {student} with {method} on {data}{of} at {side} px."
    warnings = record.result.get("warnings")
    said = [f"Warning: {each}." for each in warnings] if isinstance(warnings, list) else []
    return [what, _progress(record), *_outcome(record, figures), *said]


def _progress(record: Record) -> str:
    done, wanted = record.epochs_done, record.keys.get("epochs")
    viewed = f"{record.samples:,} images viewed"
    epochs = f"{done:.3g} of {wanted} epochs, {viewed}" if done is not None else viewed
    if record.finished:
        return f"The run is finished: {epochs}{_took(record)}."
    if not record.lines:
        return "The run is not finished: nothing is logged yet."
    return f"The run is not finished: {epochs} so far{_took(record)}."


def _took(record: Record) -> str:
    if record.seconds is None:
        return ""
    return f", in {'about ' if record.result.get('seconds') is None else ''}{duration(record.seconds)}"


def _outcome(record: Record, figures: Figures) -> list[str]:
    said = []
    accuracy, teacher = record.accuracy, record.teacher_accuracy
    if accuracy is not None:
        said.append(_measured(record, accuracy))
        if teacher is not None:
            gap = accuracy - teacher
            same = "as much as" if record.metric == "map" else "as many as"
            side = same if not gap else f"{abs(gap):.2f} points {'more' if gap > 0 else 'less'} than"
            said.append(f"That is {side} the teacher's {teacher:.2f}%.")
            if record.finished and (advice := beside_teacher(accuracy, teacher)):
                said.append(f"{advice[0].upper()}{advice[1:]}.")
    if accuracy is None:
        said.append("No accuracy was measured yet.")
    if teacher is None and figures.teacher_given and record.method != "none":
        here = (
            f"On the {figures.images:,} images measured for this report the teacher classifies "
            f"{share_right(figures.teacher_given):.1f}%"
        )
        own = f", the student {share_right(figures.given):.1f}%" if figures.given else ""
        said.append(f"{here} correctly{own}.")
    return said


def _measured(record: Record, accuracy: float) -> str:
    of = f" of {record.validation_images:,} validation images" if record.validation_images else ""
    if record.metric == "map":
        return f"The student's mean average precision is {accuracy:.2f}%{of and ' on' + of[3:]} (last validation)."
    return f"The student classifies {accuracy:.2f}%{of} correctly (top-1 of the last validation)."


def duration(seconds: float) -> str:
    """Format seconds: 42 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def amount(value: float) -> str:
    """Format a count of operations or parameters: 1.2 G."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def cost(record: Record, figures: Figures) -> dict[str, str]:
    """Return the facts on cost: images, time, operations and energy."""
    facts = {"images viewed": f"{record.samples:,}"}
    if record.seconds is not None:
        measured = record.result.get("seconds") is not None
        facts["time"] = duration(record.seconds) + (
            "" if measured else ", estimated from logged speeds, no validations"
        )
    speed = record.last("images_per_second")
    if speed is not None:
        facts["speed"] = f"{speed:.3g} images per second (at the end of the log)"
    if figures.flops is not None:
        facts |= _operations(record, figures.flops)
    for role, model in (("student", figures.student), ("teacher", figures.teacher)):
        if model is not None:
            facts[role] = f"{amount(model.parameters)} parameters, {amount(model.macs)}MACs per image"
    facts["energy"] = _energy(record)
    return facts


def _energy(record: Record) -> str:
    """Describe the energy that the machine's counters reported, and what they count."""
    if not record.finished:
        return "reported when the run is finished"
    if "energy" not in record.result:
        return "not recorded: the run was finished by an earlier revision"
    energy = record.result["energy"]
    if not isinstance(energy, Mapping):
        return "not known: the machine reported none, or not for the whole run"
    known = {
        name: energy[key] for name, key in (("CPU", "cpu_joules"), ("GPU", "gpu_joules")) if energy.get(key) is not None
    }
    total = sum(known.values())
    parts = [f"{name} {_measure(joules, 'J')}" for name, joules in known.items()]
    used = ("CPU", "GPU") if record.result.get("device") == "cuda" else ("CPU",)
    parts += [f"{name} not known" for name in used if name not in known]
    where = "the first process's machine" if record.result.get("processes", 1) > 1 else "the machine"
    counted = " and ".join({"CPU": "processors", "GPU": "GPUs"}[name] for name in known)
    counts = f"counts all that the {counted} of {where} did in that time"
    return f"{_measure(total, 'J')} ({_measure(total / 3600, 'Wh')}): {', '.join(parts)}; {counts}"


def _measure(value: float, unit: str) -> str:
    return f"{amount(value)}{'' if value >= 1e3 else ' '}{unit}"


def step_parts(record: Record, flops: StepFlops) -> dict[str, int]:
    """Return the FLOPs of a training step for one image by part; a cached teacher takes none."""
    teacher = 0 if record.keys.get("cache") else flops.teacher
    parts = {"teacher": teacher, "student": flops.student, "projectors": flops.cap, "tail": flops.tail}
    return {name: value for name, value in parts.items() if value}


def _operations(record: Record, flops: StepFlops) -> dict[str, str]:
    parts = step_parts(record, flops)
    step = sum(parts.values())
    shares = ", ".join(f"{name} {value / step:.0%}" for name, value in parts.items())
    return {
        "operations per image": f"{amount(step)}FLOPs per training step ({shares}), counted, not measured",
        "operations so far": f"{amount(step * record.samples)}FLOPs",
    }


def environment(record: Record) -> dict[str, str]:
    """Return the facts on software and hardware."""
    packages = record.environment.get("packages")
    versions = packages if isinstance(packages, Mapping) else {}
    facts = {"software": ", ".join(f"{name} {version}" for name, version in versions.items() if version)}
    facts |= {key: str(record.environment.get(key) or "") for key in ("python", "git", "platform", "cpu", "gpu")}
    facts["device"] = " ".join(str(record.result.get(key) or "") for key in ("device", "dtype")).strip()
    threads = record.environment.get("threads")
    return {key: value for key, value in (facts | {"threads": str(threads or "")}).items() if value}


def hashes(record: Record) -> dict[str, str]:
    """Return the fingerprints of the run's inputs, the student's hash, and the licence of the teacher's weights."""
    facts = {key: str(value) for key, value in record.inputs.items()}
    if record.result.get("sha256"):
        facts[f"{record.result['student']} (SHA-256)"] = str(record.result["sha256"])
    if record.method != "none" and "teacher_license" in record.result:
        facts["licence of the teacher's weights"] = str(record.result["teacher_license"] or "not known")
    return facts


def commands(record: Record) -> list[str]:
    """Return the commands that resume the run, if it is unfinished, or start it from scratch."""
    again = f"scalekd distill --recipe {shlex.quote(str(record.folder.recipe))} --output runs/again"
    if record.finished:
        return [again]
    return [f"scalekd distill --resume --output {shlex.quote(str(record.folder.path))}   # resumes it", again]
