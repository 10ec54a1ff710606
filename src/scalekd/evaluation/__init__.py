"""Measure classifiers: accuracy on any split, and k nearest neighbours and linear probes on frozen features."""

from scalekd.evaluation.accuracy import (
    Accuracy,
    accuracy_metrics,
    main_metric,
    measure_accuracy,
    percentages,
    update_metrics,
)
from scalekd.evaluation.frozen import NEIGHBOURS, Features, knn_accuracy, linear_accuracy
from scalekd.evaluation.probe import LinearHead, collect_features, fit_linear_head

__all__ = [
    "NEIGHBOURS",
    "Accuracy",
    "Features",
    "LinearHead",
    "accuracy_metrics",
    "collect_features",
    "fit_linear_head",
    "knn_accuracy",
    "linear_accuracy",
    "main_metric",
    "measure_accuracy",
    "percentages",
    "update_metrics",
]
