"""Reports of benchmarks: the figures of the step benchmark, and human-readable tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

VARIANTS = ("ours", "transcription")


def summarise(
    times: dict[str, list[float]],
    flops: dict[str, int],
    peak: dict[str, float],
    *,
    batch: int,
    dtype: str,
) -> dict[str, Any]:
    """Compute the figures of each variant, and their ratio.

    Args:
        times: Seconds of each step of each variant, in pairs.
        flops: FLOPs per step of each variant.
        peak: Matrix-product peak in GFLOP/s of each type.
        batch: Images per step.
        dtype: Number format of the package's variant.
    """
    dtypes = {"ours": dtype, "transcription": "float32"}
    figures: dict[str, Any] = {}
    for name in VARIANTS:
        median = statistics.median(times[name])
        rate = flops[name] / median / 1e9
        figures[name] = {
            "dtype": dtypes[name],
            "images_per_second": batch / median,
            "step_seconds": times[name],
            "flops_per_step": flops[name],
            "gflops": rate,
            "fraction_of_peak": rate / peak[dtypes[name]],
        }
    ratios = [plain / ours for ours, plain in zip(times["ours"], times["transcription"], strict=True)]
    return figures | {
        "speedup": statistics.median(ratios),
        "speedup_min": min(ratios),
        "speedup_max": max(ratios),
        "matmul_peak_gflops": peak,
    }


def table(result: dict[str, Any]) -> str:
    """Format the result as a human-readable table."""
    settings, ours, plain, peak = (result[k] for k in ("settings", "ours", "transcription", "matmul_peak_gflops"))
    machine, differences, memory = result["machine"], result["relative_difference"], result["memory"]
    where = machine["gpu"] or f"{machine['cpu_model']}, threads: {machine['threads']}"
    rows = [
        ("", f"ours, {ours['dtype']}", "transcription, float32"),
        ("images/s", *(f"{v['images_per_second']:.2f}" for v in (ours, plain))),
        ("GFLOP a step", *(f"{v['flops_per_step'] / 1e9:.1f}" for v in (ours, plain))),
        ("GFLOP/s", *(f"{v['gflops']:.0f}" for v in (ours, plain))),
        ("matmul peak, GFLOP/s", *(f"{peak[v['dtype']]:.0f}" for v in (ours, plain))),
        ("fraction of peak", *(f"{v['fraction_of_peak']:.1%}" for v in (ours, plain))),
    ]
    if memory:
        rows.append(("peak memory, MiB", *(f"{memory[name]['peak_mib']:.0f}" for name in VARIANTS)))
    lines = [
        f"{settings['teacher']} -> {settings['student']}, batch {settings['batch']}, {settings['resolution']} px",
        where,
        *(f"{name:<22}{left:>20}{right:>26}" for name, left, right in rows),
        f"speedup {result['speedup']:.2f} (median of {settings['steps']} pairs; "
        f"{result['speedup_min']:.2f} to {result['speedup_max']:.2f})",
    ]
    if memory:
        lines.append(f"memory {memory['ratio']:.2f} of the transcription's ({memory['how']})")
    lines.append(
        f"same loss: relative difference {differences['loss']:.1e}, student gradient {differences['gradient']:.1e}"
    )
    return "\n".join(lines)


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table with padded columns, so that it is also readable as plain text."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(f"| {line} |" for line in (lines[0], " | ".join("-" * width for width in widths), *lines[1:]))
