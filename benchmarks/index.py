"""Measures start-up and memory of a split of a million images: listed, read from the index, and listed by torchvision.

Usage: python benchmarks/index.py --folder FOLDER [options]; FOLDER is best on a tmpfs, such as /dev/shm.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from command import Parser, check_output, say
from measurement import describe_machine

from scalekd.atomic import write_json
from scalekd.data import ReplayDataset, Split, TrainingStream, read_split, read_unlabelled
from scalekd.data.cache import list_images
from scalekd.errors import UserError

GOAL = {"start_seconds": 5, "megabytes_a_process": 300}
BUILD, START, TORCHVISION = "build", "start", "torchvision"
MEGABYTE = 10**6


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder to make the files in, and to delete them")
    parser.add_argument("--entries", type=int, default=1_280_000, help="images, empty files; default 1280000")
    parser.add_argument("--classes", type=int, default=1000, help="default 1000")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each way, alternating; default 5")
    parser.add_argument("--workers", type=int, default=2, help="processes that share the split; default 2")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON to this file")
    parser.add_argument("--way", choices=(BUILD, START, TORCHVISION), help=argparse.SUPPRESS)
    return parser.parse_args()


def generate(root: Path, entries: int, classes: int) -> None:
    """Create empty files with ImageNet's names and class folders."""
    for label in range(classes):
        folder = root / f"n{label:08}"
        folder.mkdir(parents=True)
        for number in range(label, entries, classes):
            os.close(os.open(folder / f"n{label:08}_{number}.JPEG", os.O_CREAT | os.O_WRONLY))


def memory() -> dict[str, float]:
    """Return this process's megabytes: resident, proportional share, private, and anonymous."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    values = {"rss": kilobytes["Rss"], "pss": kilobytes["Pss"], "uss": own, "anonymous": kilobytes["Anonymous"]}
    return {name: round(1024 * value / MEGABYTE, 1) for name, value in values.items()}


def touch(split: Split) -> int:
    """Read every name and label, as an epoch does."""
    return sum(len(split.locate(index)) + int(split.labels[index]) for index in range(len(split)))


def measure(way: str, data: Path) -> dict[str, Any]:
    """Measure one start in this process: seconds, and the megabytes that it adds."""
    from torchvision.datasets import ImageFolder  # noqa: PLC0415  # for all ways, so that none of them pays for it

    before, started = memory(), time.perf_counter()
    split = ImageFolder(str(data / "train")) if way == TORCHVISION else read_split(data, "train")
    seconds = time.perf_counter() - started
    after = memory()
    assert len(split)
    return {"seconds": seconds} | {f"{name}_added": round(after[name] - before[name], 1) for name in after}


def in_new_process(way: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--folder", str(args.folder), "--way", way]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def shared_memory(data: Path, workers: int) -> dict[str, Any]:
    """Measure the megabytes that the data adds to the main process and to forked workers after all entries are read."""
    gc.collect()
    before = memory()
    split = read_split(data, "train")
    dataset = ReplayDataset(split, torch.zeros_like, substitute=True)  # type: ignore[arg-type]  # nothing is decoded
    stream: Iterator[Any] = iter(TrainingStream(size=len(split), batch=256, epochs=1, seed=0))
    next(stream)
    touch(split)
    main = memory()
    fork = get_context("fork")
    results, barrier = fork.SimpleQueue(), fork.Barrier(workers + 1)

    def work() -> None:
        first = memory()
        touch(dataset.split)
        barrier.wait()  # all have the pages: shares are those of a run
        results.put((first, memory()))
        barrier.wait()

    processes = [fork.Process(target=work) for _ in range(workers)]
    for process in processes:
        process.start()
    barrier.wait()
    told = [results.get() for _ in processes]
    together = memory()
    barrier.wait()
    for process in processes:
        process.join()
    arrays = (split.store.names.text, split.store.names.bounds, split.labels)  # type: ignore[attr-defined]
    return {
        "arrays_megabytes": round(sum(array.nbytes for array in arrays) / MEGABYTE, 1),
        "permutation_megabytes": 8 * len(split) / MEGABYTE,
        "main_before": before,
        "main_after_reading_all": main,
        "main_beside_workers": together,
        "main_added": {name: round(main[name] - before[name], 1) for name in main},
        "workers": [{"at_start": first, "after_reading_all": last} for first, last in told],
    }


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return round(time.perf_counter() - started, 3)


def summary(taken: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [one["seconds"] for one in taken]
    return {
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "all": taken,
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    data, caches = args.folder / "data", Path(os.environ["XDG_CACHE_HOME"])
    load_before = os.getloadavg()
    say(f"generating {args.entries} files in {data}")
    generate(data / "train", args.entries, args.classes)
    time.sleep(3)  # what has just changed is not trusted
    taken: dict[str, list[dict[str, Any]]] = {BUILD: [], START: [], TORCHVISION: []}
    for number in range(args.rounds):
        ways = (TORCHVISION, BUILD, START) if number % 2 else (BUILD, START, TORCHVISION)
        for way in ways:
            if way == BUILD:
                shutil.rmtree(caches)
            taken[way].append(in_new_process(way, args))
            say(f"{way:<12} {taken[way][-1]}")
    shared = shared_memory(data, args.workers)
    split = read_split(data, "train")
    also = {
        "fingerprint_seconds": timed(lambda: split.fingerprint),
        "unlabelled_build_seconds": timed(lambda: read_unlabelled(data, "train")),
        "unlabelled_start_seconds": timed(lambda: read_unlabelled(data, "train")),
        "teacher_cache_listing_seconds": timed(lambda: list_images(split)),
    }
    pairs = zip(taken[TORCHVISION], taken[START], strict=True)
    ratios = [one["seconds"] / two["seconds"] for one, two in pairs]
    return {
        "benchmark": "index",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {"entries": args.entries, "classes": args.classes, "rounds": args.rounds},
        "goal": GOAL,
        "index_megabytes": round(sum(f.stat().st_size for f in caches.rglob("*.safetensors")) / 2 / MEGABYTE, 1),
        "ways": {way: summary(results) for way, results in taken.items()},
        "torchvision_over_start": {"ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "memory_megabytes": shared,
        "also": also,
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "machine": describe_machine(torch.device("cpu")),
    }


def main() -> int:
    args = parse_arguments()
    if args.way:
        print(json.dumps(measure(args.way, args.folder / "data")))
        return 0
    try:
        check_output(args.output)
    except UserError as error:
        say(f"error: {error}")
        return 2
    args.folder = Path(tempfile.mkdtemp(prefix="scalekd-index-", dir=args.folder))
    (args.folder / "caches").mkdir()
    os.environ["XDG_CACHE_HOME"] = str(args.folder / "caches")
    try:
        result = run(args)
    finally:
        shutil.rmtree(args.folder)
    if args.output:
        write_json(args.output, result)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
