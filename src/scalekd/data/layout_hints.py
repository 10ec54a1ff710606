"""Recognise the layouts that labelling tools export, to suggest in errors how to read or convert them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

_OTHER_NAMES = {"train": ("training", "Train"), "val": ("valid", "validation", "Val", "Validation", "test")}


def split_flag_hint(data: Path, split: str) -> str:
    """Suggest the flag for a split's folder that has one of the other usual names, as the end of an error.

    Empty if there is no such folder.
    """
    found = next((name for name in _OTHER_NAMES.get(split, ()) if (data / name).is_dir()), None)
    return f"; pass --{split}-split {found}" if found else ""


def conversion_hint(data: Path) -> str:
    """Suggest how to convert a known tool's export whose folders are not classes, as the end of an error.

    Empty if no tool is recognised.
    """
    tool = _tool(data)
    return f". It looks like {tool}: write a list from it (docs/data.md, What labelling tools export)" if tool else ""


def _tool(data: Path) -> str:
    if any(data.glob("*/_classes.csv")) or (data / "_classes.csv").is_file():
        return "Roboflow's CSV of labels"
    if (data / "ImageSets" / "Main").is_dir():
        return "Pascal VOC's layout"
    if (data / "annotations.xml").is_file():
        return "CVAT's annotations.xml"
    if any(islice(data.glob("*/ann/*.json"), 1)):
        return "a Supervisely project"
    if any(islice(data.glob("*.json"), 1)) or any(islice(data.glob("*/*.json"), 1)):
        return "labels as JSON (LabelMe, Label Studio)"
    return ""
