"""Evaluation: perplexity of a model on a text, and its divergence from a reference model."""

from bitsmith.evaluation.measure import evaluate
from bitsmith.evaluation.result import Evaluation

__all__ = ["Evaluation", "evaluate"]
