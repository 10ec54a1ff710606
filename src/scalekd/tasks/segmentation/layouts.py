"""Recognises the layouts that labelling tools export and says which flags read them, or how to convert them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path


def hint(data: Path) -> str:
    """Say how to read a folder in a known tool's layout, as the end of an error; empty if the layout is unknown."""
    found = _voc(data) or _roboflow(data) or _supervisely(data) or _camvid(data) or _without_masks(data)
    return f". {found}" if found else ""


def _voc(data: Path) -> str:
    """Pascal VOC's layout, which CVAT ("Segmentation mask"), LabelMe's labelme2voc and others also write."""
    masks = [folder for folder in ("SegmentationClassPNG", "SegmentationClass") if (data / folder).is_dir()]
    if not masks:
        return ""
    if not (data / "JPEGImages").is_dir():
        return f"{data} looks like Pascal VOC's layout without the images; export them too, into JPEGImages/"
    flags = f"--image-folder JPEGImages --label-folder {masks[0]}"
    lists = sorted(path.stem for path in data.glob("ImageSets/Segmentation/*.txt"))
    where = "ImageSets/Segmentation/{split}.txt" if lists else "{split}.txt"
    missing = "" if len(lists) > 1 else f"; write the lists {where} for two splits, one name without ending per line"
    train = next((name for name in lists if name.startswith("train")), "train")
    val = next((name for name in lists if name.startswith("val")), "val")
    return (
        f"{data} looks like Pascal VOC's layout: pass {flags} --split-list '{where}' --train-split {train} "
        f"--val-split {val} --no-zero-is-unlabelled{missing}"
    )


def _roboflow(data: Path) -> str:
    """Roboflow's "Semantic Segmentation Masks": images and masks in the same folder."""
    splits = [split for split in ("train", "valid", "test") if any(islice(data.glob(f"{split}/*_mask.png"), 1))]
    if not splits:
        return ""
    val = "valid" if "valid" in splits else splits[-1]
    return (
        f"{data} looks like Roboflow's layout: pass --image-folder '{{split}}' --label-folder '{{split}}' "
        f"--label-suffix _mask --train-split {splits[0]} --val-split {val} "
        "--no-zero-is-unlabelled, and the classes of _classes.csv"
    )


def _train_and_val(splits: list[str]) -> tuple[str, str]:
    """Choose the training and validation splits by their names; otherwise the first two."""
    train = next((split for split in splits if split.startswith("train")), splits[0])
    others = [split for split in splits if split != train]
    val = next((split for split in others if split.startswith("val")), others[0] if others else train)
    return train, val


def _supervisely(data: Path) -> str:
    """A Supervisely project: one folder per dataset."""
    sets = sorted(path.parent.name for path in data.glob("*/img") if path.is_dir())
    if not sets:
        return ""
    masks = next((name for name in ("masks_machine", "masks_human") if (data / sets[0] / name).is_dir()), None)
    if masks is None:
        return f"{data} looks like a Supervisely project whose labels are JSON; export it as masks (masks_machine)"
    train, val = _train_and_val(sets)
    splits = f"--train-split {train} --val-split {val}"
    more = "" if len(sets) > 1 else ", after moving some images and masks into a second data set's folder"
    return (
        f"{data} looks like Supervisely's layout: pass --image-folder '{{split}}/img' --label-folder "
        f"'{{split}}/{masks}' {splits}{more}"
    )


def _camvid(data: Path) -> str:
    """CamVid's layout as SegNet and CVAT write it: `train` next to `trainannot`."""
    splits = sorted(path.name.removesuffix("annot") for path in data.glob("*annot") if path.is_dir())
    splits = [split for split in splits if (data / split).is_dir()]
    if not splits:
        return ""
    train, val = _train_and_val(splits)
    return (
        f"{data} looks like CamVid's layout: pass --image-folder '{{split}}' --label-folder '{{split}}annot' "
        f"--train-split {train} --val-split {val}"
    )


def _without_masks(data: Path) -> str:
    """Labels that are not masks and must be converted first."""
    if any(islice(data.rglob("task-*-annotation-*.png"), 1)):
        return (
            f"{data} looks like Label Studio's brush export, one mask of 0 and 255 per object; merge them into one "
            "label image per image (docs/data.md has a script)"
        )
    if (data / "annotations.xml").is_file():
        return f"{data} holds CVAT's polygons (annotations.xml); export the task as 'Segmentation mask'"
    if any(islice(data.rglob("labels/**/*.txt"), 1)):
        return f"{data} holds YOLO's labels, boxes or polygons as text; draw the polygons as label images"
    labels = next(islice(data.rglob("*.json"), 1), None)
    if labels is not None:
        return (
            f"{labels} holds labels as JSON, as LabelMe, Label Studio and COCO write them; draw them as label images "
            "(LabelMe: labelme2voc), or train on COCO's with `scalekd transfer detection`"
        )
    return ""
