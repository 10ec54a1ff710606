"""ScaleKD (arXiv 2411.06786): a frozen vision transformer teaches a CNN, MLP or ViT student."""

from scalekd.method import (
    FeatureDistillation,
    LogitDistillation,
    LogitSpaceDistillation,
    RelationalDistillation,
    ScaleKD,
    Supervised,
)
from scalekd.models import Student, Teacher

__all__ = [
    "FeatureDistillation",
    "LogitDistillation",
    "LogitSpaceDistillation",
    "RelationalDistillation",
    "ScaleKD",
    "Student",
    "Supervised",
    "Teacher",
]
__version__ = "0.1.0"
