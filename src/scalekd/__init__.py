"""ScaleKD (arXiv 2411.06786): a frozen vision transformer teaches a CNN, MLP or ViT student."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalekd.api import adapt, cache, distill, evaluate, export, predict
    from scalekd.errors import UserError
    from scalekd.methods.dist import RelationalDistillation
    from scalekd.methods.fd import FeatureDistillation
    from scalekd.methods.kd import LogitDistillation
    from scalekd.methods.none import Supervised
    from scalekd.methods.ofa import LogitSpaceDistillation
    from scalekd.methods.scalekd import ScaleKD
    from scalekd.models import Student, Teacher
    from scalekd.models.paper_models import register_models

__all__ = [
    "FeatureDistillation",
    "LogitDistillation",
    "LogitSpaceDistillation",
    "RelationalDistillation",
    "ScaleKD",
    "Student",
    "Supervised",
    "Teacher",
    "UserError",
    "adapt",
    "cache",
    "distill",
    "evaluate",
    "export",
    "predict",
    "register_models",
]
__version__ = "0.1.0"

_MODULES = dict.fromkeys(("adapt", "cache", "distill", "evaluate", "export", "predict"), "scalekd.api") | {
    "FeatureDistillation": "scalekd.methods.fd",
    "LogitDistillation": "scalekd.methods.kd",
    "LogitSpaceDistillation": "scalekd.methods.ofa",
    "RelationalDistillation": "scalekd.methods.dist",
    "ScaleKD": "scalekd.methods.scalekd",
    "Student": "scalekd.models",
    "Supervised": "scalekd.methods.none",
    "Teacher": "scalekd.models",
    "UserError": "scalekd.errors",
    "register_models": "scalekd.models.paper_models",
}


def __getattr__(name: str) -> Any:
    """Import it when it is first asked for: the command line reads this file too, and must not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
