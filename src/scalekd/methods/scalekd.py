"""`scalekd`: the whole method, which combines CAP, DFM and TPP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from torch import Tensor

from scalekd.methods.base import DEFAULTS, Method, Shared
from scalekd.methods.mimicking import DualViewMimicking
from scalekd.methods.outputs import MapShape, StudentLike, StudentOutputs, TeacherLike, TeacherOutputs
from scalekd.methods.parts import PROJECTORS, VIEWS, refuse_cap_settings, resolve_parts
from scalekd.methods.perception import TeacherParameterPerception
from scalekd.methods.plan import Place, Plan
from scalekd.methods.projector import CrossAttentionProjector, LinearProjector
from scalekd.methods.registry import MethodKeys


class ScaleKD(Method):
    """ScaleKD (arXiv 2411.06786, section 3 and equation 8): CAP, DFM and TPP in addition to labels and logits.

    Each part can be switched off. In the paper's ablation (table 9), `tpp=False, alpha={"spatial": 0.08}` is CAP
    alone, `tpp=False` adds DFM, and the default adds TPP.

    Args:
        teacher: A vision transformer.
        student: The student to train.
        alpha: Weight of each view; a view that is left out is not used.
        tpp: Whether to use the proxy path through the teacher's tail.
        stages: Student stages whose tokens are compared with the teacher's: `previous` (through the proxy path) and
            `last`. Default both with TPP, `last` without.
        projector: `cap`, or `linear` for a 1x1 convolution instead (ours); the arguments from `query` on are CAP's.
        query: Query of the student path: `proxy` (input-dependent, the proxy tokens) or `learned` (a table).
            Default `proxy` with TPP, `learned` without.
        heads: Attention heads of (CAP_prev, CAP_last); by default the paper's for this teacher.
        softmax_scale: Factor on CAP's attention logits, one for all views or one per view.
        stem: CAP's stem, see `CrossAttentionProjector`.
        stem_norm: Norm in the stem; by default the one that suits the student.
        shared: `logit_weight`, `temperature`, `task_loss` and `feature_share`, see `Method`.

    Raises:
        ValueError: If a setting does not fit the pair or the other settings.
    """

    def __init__(
        self,
        teacher: TeacherLike,
        student: StudentLike,
        *,
        alpha: Mapping[str, float] | None = None,
        tpp: bool = DEFAULTS.tpp,
        stages: Sequence[str] | None = None,
        projector: str = DEFAULTS.projector,
        query: str | None = None,
        heads: tuple[int, int] | None = None,
        softmax_scale: float | Mapping[str, float] = DEFAULTS.softmax_scale,
        stem: str = DEFAULTS.stem,
        stem_norm: str | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(teacher, student, **shared)
        alpha = _alpha(DEFAULTS) if alpha is None else dict(alpha)
        if not alpha or not set(alpha) <= set(VIEWS):
            raise ValueError(
                f"alpha: views must be one or both of {', '.join(VIEWS)}, not {', '.join(alpha) or 'none'}"
            )
        if projector not in PROJECTORS:
            raise ValueError(f"projector: {projector!r} is not one of {', '.join(PROJECTORS)}")
        settings = {"heads": heads, "softmax_scale": softmax_scale, "stem": stem, "stem_norm": stem_norm}
        refuse_cap_settings(projector, [key for key, value in settings.items() if value != getattr(DEFAULTS, key)])
        self.stages, self.query = resolve_parts(tpp=tpp, stages=stages, query=query, projector=projector)
        scales = softmax_scale if isinstance(softmax_scale, Mapping) else dict.fromkeys(alpha, softmax_scale)
        head_prev, head_last = heads or teacher.heads

        def place(features: MapShape, tokens: MapShape, num_heads: int, learned: bool) -> DualViewMimicking:
            if projector == "linear":
                return DualViewMimicking({view: LinearProjector(features, tokens) for view in alpha}, alpha)
            projectors = {
                view: CrossAttentionProjector(
                    features,
                    tokens,
                    num_heads=num_heads,
                    softmax_scale=scales[view],
                    stem=stem,
                    stem_norm=stem_norm or student.stem_norm,
                    learned_query=learned,
                )
                for view in alpha
            }
            return DualViewMimicking(projectors, alpha)

        previous, last = student.maps
        self.tpp = TeacherParameterPerception(place(previous, teacher.tail_input, head_prev, True)) if tpp else None
        learned = self.query == "learned"
        self.last = place(last, teacher.tokens, head_last, learned) if "last" in self.stages else None

    @staticmethod
    def arguments(keys: MethodKeys) -> dict[str, Any]:
        """Return the arguments of all methods and ScaleKD's own settings."""
        names = ("tpp", "stages", "projector", "query", "heads", "softmax_scale", "stem", "stem_norm", "feature_share")
        own = {"alpha": _alpha(keys)} | {name: getattr(keys, name) for name in names}
        return Method.arguments(keys) | own

    @property
    def plan(self) -> Plan:
        """How the pair is joined; `str` formats it as a table."""
        teacher, student = self.teacher, self.student
        places = []
        if self.tpp is not None:
            places.append(Place.of("CAP_prev", student.maps[0], teacher.tail_input, "learned", self.tpp.previous))
        if self.last is not None:
            places.append(Place.of("CAP_last", student.maps[1], teacher.tokens, self.query, self.last))
        return Plan(
            teacher=str(teacher),
            student=str(student),
            student_maps=student.maps_reason,
            teacher_tokens=teacher.tokens,
            tail=teacher.tail_name if self.tpp is not None else "not used",
            logit_weight=self.logit_weight,
            places=tuple(places),
        )

    def feature_terms(
        self, student: StudentOutputs, teacher: TeacherOutputs | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compare the proxies (TPP) and the tokens of the student path with the teacher's tokens (DFM)."""
        assert teacher is not None
        terms: dict[str, Tensor] = {}
        cosines: dict[str, Tensor] = {}
        proxies = None
        if self.tpp is not None:
            proxies = self.tpp(student.previous, self.teacher.tail)
            if "previous" in self.stages:
                terms, cosines = self.tpp.previous.losses(proxies, teacher.tokens, "proxy")
        if self.last is not None:
            tokens = self.last(student.last, proxies if self.query == "proxy" else None)
            student_terms, student_cosines = self.last.losses(tokens, teacher.tokens, "student")
            terms, cosines = terms | student_terms, cosines | student_cosines
        return terms, cosines


def _alpha(keys: MethodKeys) -> dict[str, float]:
    """Return the weight of each view that is used."""
    weights = {"spatial": keys.alpha_spatial, "frequency": keys.alpha_frequency}
    return {view: weights[view] for view in keys.views}
