"""Comparing methods on a set of pictures: which items, one picture's figures, a run that can be stopped, and the tables."""

from sightline.evaluation.run import evaluate
from sightline.evaluation.tables import Evaluation

__all__ = ["Evaluation", "evaluate"]
