"""The folder of a detection run, and the detector that is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torchvision.models.detection import MaskRCNN

from scalekd.downstream.backbone import Backbone
from scalekd.downstream.detection.model import build_detector
from scalekd.downstream.detection.recipe import DetectionRecipe, load_detection
from scalekd.environment import describe_environment
from scalekd.errors import UserError
from scalekd.models.weights import read_weights
from scalekd.training.folder import RunFolder, write_json

# Keys that may change in a resumed run: where things are, and what does not bear on the result.
_CONDUCT = {"data", "backbone", "backbone_weights", "workers", "accelerator", "log_every", "max_corrupt", "pictures"}


class DetectionFolder(RunFolder):
    """Paths of a detection run's files; those that are not listed here are as in every run.

    Attributes:
        detector: The weights of the whole detector, safetensors.
        pictures: Folder of the validation images with what was found.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.detector = path / "detector.safetensors"
        self.pictures = path / "pictures"

    def check(self, recipe: DetectionRecipe, *, resume: bool, overwrite: bool) -> None:
        """Make sure that the run may be written here, without changing what is there.

        Raises:
            UserError: If there is a run and neither `resume` nor `overwrite` is set; or none, a finished or another
                one to `resume`; or the folder cannot be written.
        """
        if resume and overwrite:
            raise UserError("output: --resume and --overwrite exclude each other")
        if not resume:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"output: {self.path} cannot be written: {error.strerror or error}") from error
            if self.exists and not overwrite:
                kind, mend = ("a finished", "") if self.finished else ("an unfinished", "--resume to go on or ")
                raise UserError(f"output: {self.path} holds {kind} run; add {mend}--overwrite to replace it")
            return
        stored, wanted = self.stored_keys(), recipe.model_dump(mode="json")
        for key in wanted:
            if key not in _CONDUCT and stored.get(key) != wanted[key]:
                raise UserError(
                    f"resume: {key} is {wanted[key]!r} but the run in {self.path} was started with "
                    f"{stored.get(key)!r}; leave it out, or start anew with --overwrite"
                )
        if self.finished:
            raise UserError(f"resume: the run in {self.path} is finished; start anew with --overwrite")

    def start(self, recipe: DetectionRecipe, inputs: dict[str, Any], *, resume: bool) -> None:
        """Clear a former run away and write what this one starts from; a resumed one must start from the same.

        Raises:
            UserError: If the data or the backbone's weights are not those that the run was started with.
        """
        if resume:
            stored = self.stored_inputs()
            for name in stored | inputs:
                if stored.get(name) != inputs.get(name):
                    raise UserError(
                        f"resume: {name} changed since the run in {self.path} was started ({stored.get(name)} then, "
                        f"{inputs.get(name)} now); restore it, or start anew with --overwrite"
                    )
            return
        self.clear()
        self.detector.unlink(missing_ok=True)
        self.checkpoint.parent.mkdir(exist_ok=True)
        write_json(self.inputs, inputs)
        write_json(self.environment, describe_environment())
        places = {key: value.resolve() for key, value in recipe if isinstance(value, Path)}
        if recipe.backbone is not None and Path(recipe.backbone).exists():
            places["backbone"] = str(Path(recipe.backbone).resolve())
        keys = recipe.model_copy(update=places).model_dump(mode="json")
        self.recipe.write_text(yaml.safe_dump(keys, sort_keys=False), encoding="utf-8")  # last: it marks a run


def build(recipe: DetectionRecipe, backbone: Backbone, num_classes: int) -> MaskRCNN:
    """The detector of a recipe; what is not the backbone's has random weights from torch's generator."""
    return build_detector(
        backbone,
        num_classes,
        sizes=recipe.sizes,
        max_size=recipe.max_size,
        frozen_norm=recipe.frozen_norm,
        frozen_stem=recipe.frozen_stem,
        proposals=recipe.proposals,
    )


def load_detector(folder: str | Path) -> tuple[MaskRCNN, list[str]]:
    """The detector that a run left, in eval mode, and the names of its classes: label 1 is the first.

    It takes a list of images (RGB in [0, 1], each `[3, h, w]`) and gives `boxes`, `labels`, `scores`, `masks` of each.

    Raises:
        UserError: If there is no such run, or it has left no detector yet.
    """
    run = DetectionFolder(Path(folder))
    recipe = load_detection(run.stored_keys(), {})
    state, _ = read_weights(run.detector)
    classes: list[str] = json.loads(run.inputs.read_text(encoding="utf-8"))["classes"]
    architecture = run.stored_inputs()["backbone"]
    backbone = Backbone(architecture, pretrained=False, **recipe.backbone_args)
    detector = build(recipe, backbone, len(classes))
    detector.load_state_dict(state)
    return detector.eval(), classes


def finite(detector: torch.nn.Module) -> str | None:
    """The name of the first parameter that is NaN or infinite, if any is."""
    return next((name for name, value in detector.named_parameters() if not torch.isfinite(value).all()), None)
