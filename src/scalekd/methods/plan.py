"""Human-readable plan of a pair: which student maps are projected to which tokens, with how many parameters."""

from __future__ import annotations

from dataclasses import dataclass

from scalekd.methods.mimicking import DualViewMimicking
from scalekd.methods.outputs import MapShape
from scalekd.methods.projector import CrossAttentionProjector


@dataclass(frozen=True)
class Place:
    """One place in the student: its map, the tokens it is projected to, and the projectors.

    Attributes:
        name: `CAP_prev` or `CAP_last`; `prev` or `last` if the projectors are linear.
        student_map: The student's map.
        tokens: The tokens that the projectors return.
        query: `learned` or `proxy`; `none` if the projectors are linear.
        views: Views of DFM, each with its own projector.
        heads: Attention heads; 0 if the projectors are linear.
        parameters: Number of parameters of all projectors of this place.
        layers: Shapes of a projector's layers, human-readable.
    """

    name: str
    student_map: MapShape
    tokens: MapShape
    query: str
    views: tuple[str, ...]
    heads: int
    parameters: int
    layers: str

    @classmethod
    def of(cls, name: str, student_map: MapShape, tokens: MapShape, query: str, mimicking: DualViewMimicking) -> Place:
        """Describe the projectors of `mimicking`."""
        cap = next(iter(mimicking.projectors.values()), None)
        return cls(
            name=name if cap is not None else name.removeprefix("CAP_"),
            student_map=student_map,
            tokens=tokens,
            query=query,
            views=tuple(mimicking.alpha),
            heads=0 if cap is None else cap.attn.num_heads,
            parameters=sum(p.numel() for p in mimicking.parameters()),
            layers=_layers(cap, student_map.channels, tokens.channels),
        )

    def __str__(self) -> str:
        attention = f"{self.heads} heads, {self.query} query, " if self.heads else ""
        return (
            f"{self.name:<9} student {self.student_map} -> tokens {self.tokens}, {attention}"
            f"{' + '.join(self.views)}, {self.parameters / 1e6:.2f} M parameters"
        )


def _layers(cap: CrossAttentionProjector | None, channels: int, dim: int) -> str:
    """Return the shapes of a projector's layers, human-readable."""
    if cap is None:
        return f"1x1 convolution {channels} -> {dim}, resized to the teacher's grid"
    stem = f"stem {tuple(cap.stem.get_parameter('conv.weight').shape)}, " if len(cap.stem) else ""
    return (
        f"{stem}query {dim} -> {dim}, keys and values {channels} -> {dim}, output {dim} -> {dim}, "
        f"FFN {dim} -> {4 * dim} -> {dim}"
    )


@dataclass(frozen=True)
class Plan:
    """How a teacher and a student are joined. `str(plan)` is a human-readable table."""

    teacher: str
    student: str
    student_maps: str
    teacher_tokens: MapShape
    tail: str
    logit_weight: float
    places: tuple[Place, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters that are used in training only."""
        return sum(place.parameters for place in self.places)

    def __str__(self) -> str:
        lines = [
            f"teacher   {self.teacher}, final tokens {self.teacher_tokens}",
            f"student   {self.student}, {self.student_maps}",
            f"tail      {self.tail}",
            f"logits    weight {self.logit_weight:g}" if self.logit_weight else "logits    not used",
        ]
        for place in self.places:
            lines.append(str(place))
            lines.append(f"          each view: {place.layers}")
            if place.heads and place.student_map.positions == 1:
                lines.append("          note: a map of one position has nothing to attend to; raise the resolution")
        lines.append(f"projectors {self.parameters / 1e6:.2f} M parameters, gone after training")
        return "\n".join(lines)
