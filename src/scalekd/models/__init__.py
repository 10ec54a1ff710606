"""timm behind two small classes; the only place that knows its internals."""

from scalekd.models.classifier import Classifier
from scalekd.models.student import Student
from scalekd.models.teacher import Teacher

__all__ = ["Classifier", "Student", "Teacher"]
