"""Writes `result.json` of a finished run."""

from __future__ import annotations

from typing import Any

from scalekd.atomic import write_json
from scalekd.models.weights import file_hash
from scalekd.runs.folder import EPOCHS_BEFORE
from scalekd.runs.logs import logged_losses
from scalekd.tasks.distill.no_learning import nothing_learned
from scalekd.tasks.distill.setup import Run
from scalekd.tasks.distill.task import StudentLearner


def write_result(run: Run, learner: StudentLearner, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the result of a student, and print a warning if it suggests that nothing was learned."""
    recipe, folder, accuracies = run.recipe, learner.folder, learner.accuracies
    assert folder is not None
    # Without the length of a continuation that was interrupted before it began.
    before = [epochs for epochs in folder.epochs_before if epochs < recipe.epochs]
    warnings = nothing_learned(logged_losses(folder.metrics), accuracies.get("top1"), run.val)
    for warning in warnings:
        run.context.say(f"warning: {learner.name + ': ' if learner.name else ''}{warning}")
    result = {
        "method": recipe.method,
        "top1": None,
        **accuracies,
        **facts,
        "warnings": warnings,
        "skipped_steps": learner.skipped_steps,
        "processes": run.context.processes.count,
        "device": run.compute.device.type,
        "dtype": str(run.compute.dtype).removeprefix("torch."),
        **_best(learner),
        **({EPOCHS_BEFORE: before} if before else {}),
        "student": folder.student.name,
        "sha256": file_hash(folder.student),
        **({"group": run.context.group.students} if run.context.group.students else {}),
    }
    write_json(folder.result, result)
    return result


def _best(learner: StudentLearner) -> dict[str, Any]:
    """Return the best validation, if its weights were kept."""
    if not learner.recipe.keep_best or learner.best is None:
        return {}
    assert learner.folder is not None
    return {
        "best": {
            "step": learner.best.step,
            learner.metric: learner.best.accuracy,
            "student": learner.folder.best_student.name,
        }
    }
