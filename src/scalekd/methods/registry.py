"""The registry of methods: name, label, recipe keys and class of each.

To add a method, write a file with its class, an entry in `METHODS` and, if it has its own keys, their fields in
`MethodKeys`; recipes, flags, help, docs and the report follow. Imports no torch, because `--help` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, Strict

from scalekd.keys import Fraction, Keys, NonNegative, Positive
from scalekd.methods.parts import Projector, Query, Stage, Stem, StemNorm, View

if TYPE_CHECKING:
    from scalekd.methods.base import Method

LOGIT_WEIGHT = 0.5
# What `lean` sets; docs/LOG.md compares it with other forms.
LEAN: dict[str, str | bool | float] = {
    "projector": "linear", "tpp": False, "alpha_spatial": 0.32, "alpha_frequency": 0.24
}  # fmt: skip
LOGITS = frozenset({"logit_weight", "temperature"})


@dataclass(frozen=True)
class Entry:
    """Description of a method, available without importing its class.

    Attributes:
        label: Its name in reports.
        teaches: What the student learns from in addition to labels, for the help.
        place: Where its class is, `MODULE:CLASS`.
        keys: The recipe keys that it reads but not all methods do.
        logit_weight: `lambda` if the recipe does not set it.
        logits_only: Whether the method uses nothing of the teacher but its logits.
        projector_lr: The highest learning rate under AdamW that `projector_lr_scale: auto` gives its projectors; None
            for no limit.
        one_label: Whether the method takes classes to exclude each other.
        compares: The loss term that compares the images of a micro-batch with each other; empty if there is none.
    """

    label: str
    teaches: str
    place: str
    keys: frozenset[str] = LOGITS
    logit_weight: float = LOGIT_WEIGHT
    logits_only: bool = False
    projector_lr: float | None = None
    one_label: bool = False
    compares: str = ""

    def load(self) -> type[Method]:
        """Import the class."""
        module, _, name = self.place.partition(":")
        found: type[Method] = getattr(import_module(module), name)
        return found


METHODS = {
    "none": Entry("labels only", "nothing", "scalekd.methods.none:Supervised", frozenset(), logit_weight=0.0),
    "kd": Entry("logit distillation (kd)", "logits", "scalekd.methods.kd:LogitDistillation", logits_only=True),
    "dist": Entry(
        "relations of logits (dist)", "relations of logits", "scalekd.methods.dist:RelationalDistillation",
        LOGITS | {"dist_inter", "dist_intra"}, logits_only=True, one_label=True,
        compares="intra-class relation",
    ),
    "ofa": Entry(
        "logits of two stages (ofa)", "logits, for two stages too", "scalekd.methods.ofa:LogitSpaceDistillation",
        LOGITS | {"ofa_gamma", "projector_lr_scale"}, logits_only=True, one_label=True,
    ),
    "fd": Entry(
        "last-stage features (fd)", "last-stage features", "scalekd.methods.fd:FeatureDistillation",
        LOGITS | {"alpha_spatial", "projector_lr_scale", "feature_share", "feature_schedule"}, logit_weight=0.0,
    ),
    "scalekd": Entry(
        "ScaleKD", "the whole method", "scalekd.methods.scalekd:ScaleKD",
        LOGITS | {
            "views", "alpha_spatial", "alpha_frequency", "tpp", "stages", "projector", "query", "heads",
            "softmax_scale", "stem", "stem_norm", "tail_blocks", "projector_lr_scale", "feature_share",
            "feature_schedule", "lean",
        },
        projector_lr=1e-3,  # docs/LOG.md, "ScaleKD's collapse is the projectors' rate"
    ),
}  # fmt: skip


class MethodKeys(Keys):
    """Method."""

    method: Literal[tuple(METHODS)] = Field(  # type: ignore[valid-type]  # the registry's names
        default="scalekd",
        description=" ".join(
            [
                "What the student learns from in addition to labels.",
                *(f"{name}: {m.teaches}." for name, m in METHODS.items()),
            ]
        ),
    )
    views: tuple[View, ...] = ("spatial", "frequency")
    """Views in which DFM compares features: as is, and without their zero frequency."""
    alpha_spatial: NonNegative = 0.08
    """Weight of the spatial view (alpha_s) and of fd's distance."""
    alpha_frequency: NonNegative = 0.06
    """Weight of the frequency view (alpha_f)."""
    tpp: bool = True
    """Whether proxies pass through the teacher's own tail (TPP)."""
    stages: tuple[Stage, ...] | None = None
    """Student stages that are compared: previous (through the proxies), last. Default: both with TPP, last without."""
    projector: Projector = "cap"
    """What turns a student's map into tokens. cap: the paper's cross attention projector. linear: a 1x1 convolution
    and resizing to the teacher's grid, ours and much cheaper."""
    query: Query | None = None
    """Query of the student path: the proxy tokens, or a learned table. Default: proxy with TPP, learned without."""
    heads: tuple[Positive, Positive] | None = None
    """Attention heads of CAP_prev and CAP_last. Default: the paper's numbers for the teacher."""
    softmax_scale: float = Field(default=5.0, gt=0)
    """Factor on CAP's attention logits."""
    stem: Stem = "conv3x3"
    """CAP's stem on the student's map."""
    stem_norm: StemNorm | None = None
    """Norm in CAP's stem. Default: layernorm2d for students that use it (ConvNeXt), otherwise batchnorm."""
    feature_share: float = Field(default=1.0, gt=0, le=1)
    """Part of each batch whose features are compared; labels and logits count on all images. Below 1 it is ours, not
    the paper's: see docs/method.md."""
    feature_schedule: Literal["constant", "falling"] = "constant"
    """Weight of the feature terms in the run. constant: the paper's. falling: it falls linearly to 0 at the last step,
    so that the student ends on labels and logits alone; ours, see docs/method.md."""
    lean: Annotated[bool, Strict()] = False
    """Whether to use the lean form, which is ours and, from a cache, costs little more than labels alone: projector
    linear, tpp False, alpha_spatial 0.32 and alpha_frequency 0.24, unless they are set. See docs/method.md."""
    logit_weight: Fraction | None = None
    """Weight of the logit terms (lambda); the task term has weight 1 - lambda. Default: 0.5, and 0 for fd."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the logit terms (tau)."""
    dist_inter: NonNegative = 1.0
    """Weight of dist's inter-class relation (its beta)."""
    dist_intra: NonNegative = 1.0
    """Weight of dist's intra-class relation (its gamma)."""
    ofa_gamma: float = Field(default=1.5, ge=1)
    """Exponent of ofa's target enhancement (its gamma); 1 switches it off."""
    task_loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Loss on labels: softmax cross-entropy, or binary cross-entropy over one-hot targets, summed over classes. With
    multi_label it is bce, over the labels of an image."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing of the task loss; with multi_label the targets are 1 - s/2 and s/2."""
    class_weights: Literal["equal", "balanced"] = "equal"
    """Weight of each class in cross-entropy. balanced: a class with fewer training images counts more, so that all
    classes count the same together."""

    @property
    def used_logit_weight(self) -> float:
        """`lambda`: the method's default if the recipe does not set it, 0 if the method has no logit term."""
        entry = METHODS[self.method]
        given = self.logit_weight if "logit_weight" in entry.keys else None
        return entry.logit_weight if given is None else given


def has_key(method: object, key: str) -> bool:
    """Return whether a method reads a key: one of its own keys, or a key of all methods."""
    own = METHODS[str(method)].keys if str(method) in METHODS else frozenset()
    return key in own or not methods_with(key)


def methods_with(key: str) -> str:
    """Return the names of the methods that read a key, comma-separated; empty if all do."""
    return ", ".join(sorted(name for name, entry in METHODS.items() if key in entry.keys))
