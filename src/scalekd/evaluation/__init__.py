"""Accuracy of any classifier on any split."""

from scalekd.evaluation.accuracy import Accuracy, accuracy_metrics, measure_accuracy

__all__ = ["Accuracy", "accuracy_metrics", "measure_accuracy"]
