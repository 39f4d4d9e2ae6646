"""How well a model reads: measures, their uncertainty, and the confusion matrix."""

from mien.evaluation.measure import Measured, measure
from mien.evaluation.report import Report, evaluate

__all__ = ["Measured", "Report", "evaluate", "measure"]
