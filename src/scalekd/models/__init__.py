"""Teachers, students and classifiers from timm, torchvision, a file or the user's code.

timm's internals are known here and in few other places, which CONTRIBUTING.md lists. Knows no data and no training.
"""

from scalekd.models.classifier import Classifier
from scalekd.models.student import Student
from scalekd.models.teacher import Teacher

__all__ = ["Classifier", "Student", "Teacher"]
