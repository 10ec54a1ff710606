"""The linear projector, which is ours: a 1x1 convolution in CAP's place, with and without TPP."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_RUN, Cli

from scalekd import ScaleKD, Student, Teacher
from scalekd.methods.mimicking import view_distance
from scalekd.methods.outputs import MapShape
from scalekd.methods.projector import LinearProjector


@pytest.mark.parametrize("grid", [(4, 4), (2, 3), (1, 1), (7, 5)])
def test_each_token_is_a_projection_of_the_map_at_its_place(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    projector = LinearProjector(MapShape(6, *grid), MapShape(8, 4, 4))
    features = torch.randn(2, 6, *grid)
    tokens = projector(features)
    assert tokens.shape == (2, 16, 8)
    resized = F.interpolate(features, (4, 4), mode="bilinear", align_corners=False)  # both are linear: any order
    assert projector.bias is not None
    expected = resized[1, :, 2, 3] @ projector.weight.flatten(1).T + projector.bias
    torch.testing.assert_close(tokens[1, 2 * 4 + 3], expected)


@pytest.mark.parametrize("tpp", [False, True])
def test_its_terms_are_those_of_dfm(teacher: Teacher, student: Student, tpp: bool) -> None:
    method = ScaleKD(teacher, student, projector="linear", tpp=tpp)
    images = torch.rand(4, 3, 32, 32)
    losses = method(images, torch.tensor([0, 1, 2, 0]))
    assert {"student_spatial", "student_frequency"} <= set(losses.terms)
    assert ("proxy_spatial" in losses.terms) == tpp
    assert method.last is not None
    last, tokens = student(images).last, teacher(images).tokens
    distance, _ = view_distance(method.last.views["frequency"](last), tokens, "frequency")
    torch.testing.assert_close(losses.terms["student_frequency"], 0.06 * distance)
    losses.total.backward()
    assert all(p.grad is not None for place in method.last.views.values() for p in place.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert sum(p.numel() for p in method.last.parameters()) == 2 * (16 * 32 + 32)


def test_the_plan_describes_it(teacher: Teacher, student: Student) -> None:
    lines = str(ScaleKD(teacher, student, projector="linear", tpp=False).plan).splitlines()
    (place,) = (line for line in lines if line.startswith("last "))
    assert "student 4x4x16 -> tokens 4x4x32, spatial + frequency, 0.00 M parameters" in place
    assert any("1x1 convolution 16 -> 32" in line for line in lines)
    assert "heads" not in "".join(lines)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"projector": "mlp"}, "projector"),
        ({"query": "learned"}, "query"),
        ({"stages": ("last",)}, "TPP has no use"),
        ({"heads": (3, 5)}, "heads"),
        ({"stem": "none"}, "stem"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    teacher: Teacher, student: Student, setting: dict[str, object], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        ScaleKD(teacher, student, **({"projector": "linear"} | setting))  # type: ignore[arg-type]


def test_a_lean_run_has_pictures_and_a_report_without_attention(
    cli: Cli, data: Path, teacher_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    own = ("--teacher", teacher_file, "--data", data, *TINY_RUN, "--no-check-teacher")
    trained = cli("distill", *own, "--lean", "--output", run)
    assert trained.code == 0, trained.err
    assert not any("picture" in line for line in trained.err.splitlines() if line.startswith("warning"))
    report = cli("report", run, "--output", tmp_path / "report.html")
    assert report.code == 0, report.err
    page = (tmp_path / "report.html").read_text()
    assert "student, spatial" in page
    assert "Distance between teacher and student" in page
    assert "Where CAP looks" not in page
