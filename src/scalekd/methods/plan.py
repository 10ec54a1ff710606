"""Human-readable plan of a pair: which student maps are projected to which tokens, with how many parameters."""

from __future__ import annotations

from dataclasses import dataclass

from scalekd.methods.mimicking import DualViewMimicking
from scalekd.methods.outputs import MapShape


@dataclass(frozen=True)
class Place:
    """One place in the student: its map, the tokens it is projected to, and the projectors.

    Attributes:
        name: `CAP_prev` or `CAP_last`.
        student_map: The student's map.
        tokens: The tokens that the projectors return.
        query: `learned` or `proxy`.
        views: Views of DFM, each with its own projector.
        heads: Attention heads.
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
        views = tuple(mimicking.alpha)
        cap = mimicking.projectors[views[0]]
        width = f"{tokens.channels} -> {tokens.channels}"
        stem = f"stem {tuple(cap.stem.get_parameter('conv.weight').shape)}, " if len(cap.stem) else ""
        return cls(
            name=name,
            student_map=student_map,
            tokens=tokens,
            query=query,
            views=views,
            heads=cap.attn.num_heads,
            parameters=sum(p.numel() for p in mimicking.parameters()),
            layers=(
                f"{stem}query {width}, keys and values {student_map.channels} -> {tokens.channels}, output {width}, "
                f"FFN {tokens.channels} -> {4 * tokens.channels} -> {tokens.channels}"
            ),
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
            lines.append(
                f"{place.name:<9} student {place.student_map} -> tokens {place.tokens}, {place.heads} heads, "
                f"{place.query} query, {' + '.join(place.views)}, {place.parameters / 1e6:.2f} M parameters"
            )
            lines.append(f"          each view: {place.layers}")
            if place.student_map.positions == 1:
                lines.append("          note: a map of one position has nothing to attend to; raise the resolution")
        lines.append(f"projectors {self.parameters / 1e6:.2f} M parameters, gone after training")
        return "\n".join(lines)
