"""What embeddings are worth without a label or a detector: pure functions on tensors, usable from a notebook."""

from codo.measures.box import BoxSensitivity, box_sensitivity, spearman
from codo.measures.knn import knn_accuracy, majority_share
from codo.measures.rank import effective_rank
from codo.measures.retrieval import Retrieval, retrieval
from codo.measures.spread import alignment, uniformity
from codo.measures.variance import Variance, variance_shares

__all__ = [
    "BoxSensitivity",
    "Retrieval",
    "Variance",
    "alignment",
    "box_sensitivity",
    "effective_rank",
    "knn_accuracy",
    "majority_share",
    "retrieval",
    "spearman",
    "uniformity",
    "variance_shares",
]
