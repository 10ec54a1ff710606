"""The objective: what every method shares (task and logit terms), and ScaleKD, which joins CAP, DFM and TPP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from scalekd.method.mimicking import VIEWS, DualViewMimicking
from scalekd.method.outputs import Losses, MapShape, StudentLike, StudentOutputs, TeacherLike, TeacherOutputs
from scalekd.method.perception import TeacherParameterPerception
from scalekd.method.plan import Place, Plan
from scalekd.method.projector import CrossAttentionProjector
from scalekd.method.task import cross_entropy

TaskLoss = Callable[[Tensor, Tensor], Tensor]
STAGES = ("previous", "last")


def logit_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`tau^2 * CE(softmax(t / tau), softmax(s / tau))`, the mean over the batch, in float32.

    Args:
        student: Logits `[B, K]`.
        teacher: Logits `[B, K]`.
        temperature: `tau`.

    Returns:
        A scalar.
    """
    target = F.softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * F.cross_entropy(student.float() / temperature, target)


def check_parts(*, tpp: bool, stages: Sequence[str], query: str) -> None:
    """Make sure that ScaleKD's switches go together.

    Raises:
        ValueError: If they do not; names the one to change.
    """
    if query not in ("proxy", "learned"):
        raise ValueError(f"query: {query!r} is neither proxy nor learned")
    if query == "proxy" and not tpp:
        raise ValueError("query: proxy needs tpp, which makes the proxies; set query to learned")
    if not stages or not set(stages) <= set(STAGES):
        raise ValueError(f"stages: must be one or both of {', '.join(STAGES)}, not {', '.join(stages) or 'none'}")
    if "previous" in stages and not tpp:
        raise ValueError("stages: previous is compared through the proxies, which need tpp; set stages to last")
    if tpp and "previous" not in stages and query != "proxy":
        raise ValueError("stages: without previous and without the proxy query TPP has no use; switch tpp off")


class Method(nn.Module):
    """A way to train a student, with the terms that all of them share.

    `L = (1 - lambda) * task + lambda * logit terms + feature terms`. Subclasses give the latter two. Without labels
    the task term is dropped; where only some images of a batch are labelled, the others add 0 to it. Without teacher
    logits for these classes `lambda` is 0.

    The teacher is kept out of `parameters()` and `state_dict()`, hence out of optimisers, checkpoints and DDP; it
    still follows `.to(device)`.

    Args:
        teacher: The frozen teacher; None for a method that reads none.
        student: The student to train.
        logit_weight: `lambda`.
        temperature: `tau` of the logit term.
        task_loss: `(logits [B, K], labels) -> scalar`; labels are indices `[B]`, -1 for an unlabelled image, or
            probabilities `[B, K]`.
    """

    needs_teacher: ClassVar[bool] = True
    teacher: Any

    def __init__(
        self,
        teacher: TeacherLike | None,
        student: StudentLike,
        *,
        logit_weight: float = 0.5,
        temperature: float = 1.0,
        task_loss: TaskLoss = cross_entropy,
    ) -> None:
        super().__init__()
        if teacher is None and self.needs_teacher:
            raise ValueError(f"{type(self).__name__} needs a teacher")
        object.__setattr__(self, "teacher", teacher)  # not registered: see the class docstring
        self.student = student
        has_logits = teacher is not None and teacher.num_classes == student.num_classes > 0
        self.logit_weight = logit_weight if has_logits else 0.0
        self.temperature = temperature
        self.task_loss = task_loss

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Method:
        if isinstance(self.teacher, nn.Module):
            self.teacher._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(
        self, images: Tensor, labels: Tensor | None = None, teacher_outputs: TeacherOutputs | None = None
    ) -> Losses:
        """One forward of teacher and student each, and the losses.

        Args:
            images: RGB in [0, 1], `[B, 3, height, width]`.
            labels: Indices `[B]`, -1 for an unlabelled image, or probabilities `[B, K]`; None without any labels.
            teacher_outputs: Those of these images, where they are known already; the teacher is then not run.
        """
        if teacher_outputs is None and self.needs_teacher:
            teacher_outputs = self.teacher(images)
        return self.losses(self.student(images), teacher_outputs, labels)

    def losses(self, student: StudentOutputs, teacher: TeacherOutputs | None, labels: Tensor | None = None) -> Losses:
        """The losses of outputs already at hand.

        Raises:
            ValueError: If no term is left (no labels, no teacher logits and no feature term).
        """
        terms: dict[str, Tensor] = {}
        if labels is not None:
            terms["task"] = (1 - self.logit_weight) * self.task_loss(student.logits.float(), labels)
        if self.logit_weight and teacher is not None and teacher.logits is not None:
            logit_terms = self.logit_terms(student, teacher.logits, labels)
            terms |= {name: self.logit_weight * value for name, value in logit_terms.items()}
        features, cosines = self.feature_terms(student, teacher)
        terms |= features
        if not terms:
            raise ValueError("nothing to learn from: neither labels, nor teacher logits, nor a feature term")
        return Losses(terms=terms, cosines=cosines, student_logits=student.logits)

    def logit_terms(self, student: StudentOutputs, teacher_logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Loss terms on the teacher's logits `[B, K]`, by name, before `lambda`."""
        return {"kd": logit_distance(student.logits, teacher_logits, self.temperature)}

    def feature_terms(
        self, student: StudentOutputs, teacher: TeacherOutputs | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loss terms on features with their weights applied, and teacher-student cosines, both by name."""
        return {}, {}


class ScaleKD(Method):
    """ScaleKD (arXiv 2411.06786, section 3 and equation 8): CAP, DFM and TPP on top of labels and logits.

    Every part is a switch. The paper's ablation (its table 9): `tpp=False, alpha={"spatial": 0.08}` is CAP alone,
    `tpp=False` adds DFM, the default adds TPP.

    Args:
        teacher: A vision transformer.
        student: The student to train.
        alpha: Weight of each view; a view left out is switched off.
        tpp: Whether the proxy path through the teacher's tail exists.
        stages: Student stages whose tokens are compared with the teacher's: `previous` (through the proxy path) and
            `last`. Default both with TPP, `last` without.
        query: Query of the student path: `proxy` (input-dependent, the proxy tokens) or `learned` (a table).
            Default `proxy` with TPP, `learned` without.
        heads: Attention heads of (CAP_prev, CAP_last); default the paper's for this teacher.
        softmax_scale: Factor on CAP's attention logits, one for all views or one a view.
        stem: CAP's stem, see `CrossAttentionProjector`.
        stem_norm: Norm in the stem; default the one that fits the student.
        logit_weight: `lambda`.
        temperature: `tau`.
        task_loss: See `Method`.

    Raises:
        ValueError: If a setting does not fit the pair or the other settings.
    """

    def __init__(
        self,
        teacher: TeacherLike,
        student: StudentLike,
        *,
        alpha: Mapping[str, float] | None = None,
        tpp: bool = True,
        stages: Sequence[str] | None = None,
        query: str | None = None,
        heads: tuple[int, int] | None = None,
        softmax_scale: float | Mapping[str, float] = 5.0,
        stem: str = "conv3x3",
        stem_norm: str | None = None,
        logit_weight: float = 0.5,
        temperature: float = 1.0,
        task_loss: TaskLoss = cross_entropy,
    ) -> None:
        super().__init__(teacher, student, logit_weight=logit_weight, temperature=temperature, task_loss=task_loss)
        alpha = {"spatial": 0.08, "frequency": 0.06} if alpha is None else dict(alpha)
        query = query or ("proxy" if tpp else "learned")
        stages = tuple(stages or (STAGES if tpp else ("last",)))
        if not alpha or not set(alpha) <= set(VIEWS):
            raise ValueError(
                f"alpha: views must be one or both of {', '.join(VIEWS)}, not {', '.join(alpha) or 'none'}"
            )
        check_parts(tpp=tpp, stages=stages, query=query)
        scales = softmax_scale if isinstance(softmax_scale, Mapping) else dict.fromkeys(alpha, softmax_scale)
        head_prev, head_last = heads or teacher.heads
        self.query, self.stages = query, stages

        def place(features: MapShape, tokens: MapShape, num_heads: int, learned: bool) -> DualViewMimicking:
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
        self.proxy = TeacherParameterPerception(place(previous, teacher.tail_input, head_prev, True)) if tpp else None
        self.mimicking = place(last, teacher.tokens, head_last, query == "learned") if "last" in stages else None

    @property
    def plan(self) -> Plan:
        """How the pair is joined; prints as a table."""
        teacher, student = self.teacher, self.student
        places = []
        if self.proxy is not None:
            places.append(Place.of("CAP_prev", student.maps[0], teacher.tail_input, "learned", self.proxy.mimicking))
        if self.mimicking is not None:
            places.append(Place.of("CAP_last", student.maps[1], teacher.tokens, self.query, self.mimicking))
        return Plan(
            teacher=str(teacher),
            student=str(student),
            student_maps=student.maps_reason,
            teacher_tokens=teacher.tokens,
            tail=teacher.tail_name if self.proxy is not None else "not used",
            logit_weight=self.logit_weight,
            places=tuple(places),
        )

    def feature_terms(
        self, student: StudentOutputs, teacher: TeacherOutputs | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """DFM of the proxies (TPP) and of the student path, against the teacher's tokens."""
        assert teacher is not None
        terms: dict[str, Tensor] = {}
        cosines: dict[str, Tensor] = {}
        proxies = None
        if self.proxy is not None:
            proxies = self.proxy(student.previous, self.teacher.tail)
            if "previous" in self.stages:
                terms, cosines = self.proxy.mimicking.losses(proxies, teacher.tokens, "proxy")
        if self.mimicking is not None:
            tokens = self.mimicking(student.last, proxies if self.query == "proxy" else None)
            student_terms, student_cosines = self.mimicking.losses(tokens, teacher.tokens, "student")
            terms, cosines = terms | student_terms, cosines | student_cosines
        return terms, cosines
