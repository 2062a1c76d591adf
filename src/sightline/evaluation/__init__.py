"""Comparing methods on a set of pictures: which items, one picture's figures, a run that can be stopped, and the tables."""

from sightline.evaluation.run import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
