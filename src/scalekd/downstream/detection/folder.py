"""The folder of a detection run, and the detector that is in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torchvision.models.detection import MaskRCNN

from scalekd.downstream.backbone import Backbone
from scalekd.downstream.detection.model import build_detector
from scalekd.downstream.detection.schema import Detection
from scalekd.errors import UserError
from scalekd.models.weights import load_weights, read_weights
from scalekd.recipes import load_as
from scalekd.training import RunFolder

_CARD = "scalekd-detector"


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

    def check(self, recipe: Detection, *, resume: bool, overwrite: bool) -> None:
        """Make sure that the run may be written here, without changing what is there.

        Raises:
            UserError: If there is a run and neither `resume` nor `overwrite` is set; or none, a finished or another
                one to `resume`; or the folder cannot be written.
        """
        if resume and overwrite:
            raise UserError("output: --resume and --overwrite exclude each other")
        if resume:
            self.check_same(recipe)
            if self.finished:
                raise UserError(f"resume: the run in {self.path} is finished; start anew with --overwrite")
        elif self.exists and not overwrite:
            kind, mend = ("a finished", "") if self.finished else ("an unfinished", "--resume to go on or ")
            raise UserError(f"output: {self.path} holds {kind} run; add {mend}--overwrite to replace it")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output: {self.path} cannot be written: {error.strerror or error}") from error

    def clear(self) -> None:
        super().clear()
        self.detector.unlink(missing_ok=True)
        shutil.rmtree(self.pictures, ignore_errors=True)
        self.checkpoint.parent.mkdir()

    def save(self, detector: nn.Module, backbone: str, classes: Sequence[str]) -> None:
        """Write the whole detector, with what it takes to build it again."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in detector.state_dict().items()}
        partial = self.detector.with_suffix(".partial")
        save_file(state, partial, metadata={_CARD: json.dumps({"backbone": backbone, "classes": list(classes)})})
        partial.chmod(0o644)
        os.replace(partial, self.detector)


def build(recipe: Detection, backbone: Backbone, num_classes: int) -> MaskRCNN:
    """The detector of a recipe; what is not the backbone's has random weights from torch's generator."""
    return build_detector(
        backbone,
        num_classes,
        sizes=recipe.sizes,
        max_size=recipe.max_size,
        frozen_norm=recipe.frozen_norm,
        frozen_stem=recipe.frozen_stem,
        proposals=recipe.proposals,
        width=recipe.width,
        hidden=recipe.hidden,
    )


def load_detector(folder: str | Path) -> tuple[MaskRCNN, list[str]]:
    """The detector that a run left, in eval mode, and the names of its classes: label 1 is the first.

    It takes a list of images (RGB in [0, 1], each `[3, h, w]`) and gives `boxes`, `labels`, `scores`, `masks` of each.

    Raises:
        UserError: If there is no such run, or it has left no detector yet.
    """
    run = DetectionFolder(Path(folder))
    recipe = load_as(Detection, run.stored_keys(), {})
    state, _ = read_weights(run.detector)
    with safe_open(run.detector, framework="pt") as file:
        card = json.loads((file.metadata() or {})[_CARD])
    backbone = Backbone(card["backbone"], pretrained=False, **recipe.backbone_args)
    detector = build(recipe, backbone, len(card["classes"]))
    load_weights(detector, state, run.detector)
    return detector.eval(), card["classes"]
