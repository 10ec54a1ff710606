"""`scalekd inspect`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from scalekd.cli.options import Flags, with_recipe_flags
from scalekd.method import ScaleKD
from scalekd.models import Student, Teacher
from scalekd.recipes import load
from scalekd.training.build import build_method


@with_recipe_flags(
    "views", "tpp", "query", "heads", "tail_blocks", "resolution", "teacher_resolution", "teacher_args", "student_args"
)
def inspect(
    teacher: Annotated[str, typer.Argument(help="timm name or a weights file written by scalekd.")],
    student: Annotated[str, typer.Argument(help="timm name or a weights file written by scalekd.")],
    recipe: Annotated[str | None, typer.Option(help="Take further settings from this recipe.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes of the data. Default: the teacher's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    *,
    flags: Flags,
) -> None:
    """Show how a pair would be joined: stages, grids, heads, projectors and their parameters.

    Nothing is downloaded: names are built with random weights.
    """
    settings = load(recipe, flags)
    the_teacher = Teacher(
        teacher,
        pretrained=False,
        num_classes=num_classes,
        resolution=settings.teacher_resolution,
        tail_blocks=settings.tail_blocks or 2,
        **settings.teacher_args,
    )
    the_student = Student(
        student,
        num_classes=num_classes or the_teacher.num_classes or None,
        resolution=settings.resolution,
        **settings.student_args,
    )
    method = build_method(settings.model_copy(update={"method": "scalekd"}), the_teacher, the_student)
    assert isinstance(method, ScaleKD)
    plan = method.plan
    typer.echo(json.dumps(asdict(plan) | {"parameters": plan.parameters}) if as_json else str(plan))
