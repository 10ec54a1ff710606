"""Accuracy of any classifier on any split, and linear probes on frozen features."""

from scalekd.evaluation.accuracy import Accuracy, accuracy_metrics, measure_accuracy
from scalekd.evaluation.probe import LinearHead, collect_features, fit_linear_head

__all__ = [
    "Accuracy",
    "LinearHead",
    "accuracy_metrics",
    "collect_features",
    "fit_linear_head",
    "measure_accuracy",
]
