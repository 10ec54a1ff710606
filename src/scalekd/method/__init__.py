"""The paper in pure torch; nothing here knows timm, data or a training loop."""

from scalekd.method.baselines import (
    FeatureDistillation,
    LogitDistillation,
    LogitSpaceDistillation,
    RelationalDistillation,
    Supervised,
)
from scalekd.method.mimicking import DualViewMimicking, remove_zero_frequency, view_distance
from scalekd.method.objective import Method, ScaleKD, logit_distance
from scalekd.method.outputs import Losses, MapShape, StudentOutputs, TeacherOutputs
from scalekd.method.perception import TeacherParameterPerception
from scalekd.method.plan import Place, Plan
from scalekd.method.projector import CrossAttentionProjector

__all__ = [
    "CrossAttentionProjector",
    "DualViewMimicking",
    "FeatureDistillation",
    "LogitDistillation",
    "LogitSpaceDistillation",
    "Losses",
    "MapShape",
    "Method",
    "Place",
    "Plan",
    "RelationalDistillation",
    "ScaleKD",
    "StudentOutputs",
    "Supervised",
    "TeacherOutputs",
    "TeacherParameterPerception",
    "logit_distance",
    "remove_zero_frequency",
    "view_distance",
]
