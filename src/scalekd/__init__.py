"""ScaleKD (arXiv 2411.06786): a frozen vision transformer teaches a CNN, MLP or ViT student."""

from scalekd.methods.dist import RelationalDistillation
from scalekd.methods.fd import FeatureDistillation
from scalekd.methods.kd import LogitDistillation
from scalekd.methods.none import Supervised
from scalekd.methods.ofa import LogitSpaceDistillation
from scalekd.methods.scalekd import ScaleKD
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
