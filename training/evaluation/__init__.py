"""How good are generated images? Distances to held-out real ones, and what bounds them. One metric, one file."""

from training.evaluation.agreement import Agreement, agreement, classifier
from training.evaluation.density_coverage import density_coverage
from training.evaluation.evaluator import Evaluator
from training.evaluation.frechet import frechet_distance
from training.evaluation.kernel import kernel_distance
from training.evaluation.nearest import Nearest, nearest
from training.evaluation.precision_recall import precision_recall
from training.evaluation.report import EvaluationReport, Row, report, sample_count

__all__ = [
    "Agreement",
    "EvaluationReport",
    "Evaluator",
    "Nearest",
    "Row",
    "agreement",
    "classifier",
    "density_coverage",
    "frechet_distance",
    "kernel_distance",
    "nearest",
    "precision_recall",
    "report",
    "sample_count",
]
