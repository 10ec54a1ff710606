"""Every method: its name, its label, the recipe keys it reads, and where its class is.

A new method is a file with its class, a line in `METHODS` and, where it has keys of its own, their fields in
`MethodKeys`; recipes, flags, help, docs and the report follow. No torch here: the command line reads this for `--help`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from scalekd.keys import Fraction, Keys, NonNegative, Positive
from scalekd.methods.parts import Query, Stage, Stem, StemNorm, View

if TYPE_CHECKING:
    from scalekd.methods.base import Method

LOGIT_WEIGHT = 0.5
LOGITS = frozenset({"logit_weight", "temperature"})


@dataclass(frozen=True)
class Entry:
    """What is known of a method before its class is imported.

    Attributes:
        label: What reports call it.
        teaches: What the student learns from beside labels, for the help.
        place: Where its class is, `MODULE:CLASS`.
        keys: The recipe keys that it reads and not all methods do.
        logit_weight: `lambda` where the recipe leaves it open.
        logits_only: Whether logits are all that the teacher gives.
        compares: The loss term that compares the images at once with each other, where there is one.
    """

    label: str
    teaches: str
    place: str
    keys: frozenset[str] = LOGITS
    logit_weight: float = LOGIT_WEIGHT
    logits_only: bool = False
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
        LOGITS | {"dist_inter", "dist_intra"}, logits_only=True, compares="intra-class relation",
    ),
    "ofa": Entry(
        "logits of two stages (ofa)", "logits, for two stages too", "scalekd.methods.ofa:LogitSpaceDistillation",
        LOGITS | {"ofa_gamma", "projector_lr_scale"}, logits_only=True,
    ),
    "fd": Entry(
        "last-stage features (fd)", "last-stage features", "scalekd.methods.fd:FeatureDistillation",
        LOGITS | {"alpha_spatial", "projector_lr_scale"}, logit_weight=0.0,
    ),
    "scalekd": Entry(
        "ScaleKD", "the whole method", "scalekd.methods.scalekd:ScaleKD",
        LOGITS | {
            "views", "alpha_spatial", "alpha_frequency", "tpp", "stages", "query", "heads", "softmax_scale", "stem",
            "stem_norm", "tail_blocks", "projector_lr_scale",
        },
    ),
}  # fmt: skip


class MethodKeys(Keys):
    """Method."""

    method: Literal[tuple(METHODS)] = Field(  # type: ignore[valid-type]  # the registry's names
        default="scalekd",
        description=" ".join(
            ["What the student learns from beside labels.", *(f"{name}: {m.teaches}." for name, m in METHODS.items())]
        ),
    )
    views: tuple[View, ...] = ("spatial", "frequency")
    """Views in which DFM compares features: as they are, and without their zero frequency."""
    alpha_spatial: NonNegative = 0.08
    """Weight of the spatial view (alpha_s), and of fd's distance."""
    alpha_frequency: NonNegative = 0.06
    """Weight of the frequency view (alpha_f)."""
    tpp: bool = True
    """Whether proxies pass through the teacher's own tail (TPP)."""
    stages: tuple[Stage, ...] | None = None
    """Student stages that are compared: previous (by the proxies), last. Default: both with TPP, last without."""
    query: Query | None = None
    """Query of the student path: proxy tokens, or a learned table. Default: proxy with TPP, learned without."""
    heads: tuple[Positive, Positive] | None = None
    """Attention heads of CAP_prev and CAP_last. Default: the paper's for the teacher."""
    softmax_scale: float = Field(default=5.0, gt=0)
    """Factor on CAP's attention logits."""
    stem: Stem = "conv3x3"
    """CAP's stem on the student's map."""
    stem_norm: StemNorm | None = None
    """Norm in CAP's stem. Default: layernorm2d for students that use it themselves (ConvNeXt), otherwise batchnorm."""
    logit_weight: Fraction | None = None
    """Weight of the logit terms (lambda); the task term has the rest. Default: 0.5, for fd 0."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the logit terms (tau)."""
    dist_inter: NonNegative = 1.0
    """Weight of dist's inter-class relation (its beta)."""
    dist_intra: NonNegative = 1.0
    """Weight of dist's intra-class relation (its gamma)."""
    ofa_gamma: float = Field(default=1.5, ge=1)
    """Exponent of ofa's target enhancement (its gamma); 1 switches it off."""
    task_loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Loss on labels: softmax cross-entropy, or binary cross-entropy over one-hot targets, summed over classes."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Label smoothing of the task loss."""

    @property
    def used_logit_weight(self) -> float:
        """`lambda`: the method's default where the recipe leaves it open, 0 where the method has no logit term."""
        entry = METHODS[self.method]
        given = self.logit_weight if "logit_weight" in entry.keys else None
        return entry.logit_weight if given is None else given


def has_key(method: object, key: str) -> bool:
    """Whether a method has a key: one of its own, or one that all have."""
    own = METHODS[str(method)].keys if str(method) in METHODS else frozenset()
    return key in own or not methods_with(key)


def methods_with(key: str) -> str:
    """The methods that have a key, for people; empty where all have it."""
    return ", ".join(sorted(name for name, entry in METHODS.items() if key in entry.keys))
