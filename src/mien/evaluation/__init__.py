"""How well a model reads: measures, their uncertainty, and the confusion matrix."""

from mien.evaluation.evaluation import Evaluation, evaluate
from mien.evaluation.measure import Measured, measure
from mien.evaluation.report import Report, classification_report

__all__ = ["Evaluation", "Measured", "Report", "classification_report", "evaluate", "measure"]
