"""Divergence: how far a model's predictions are from those of a reference model, token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bitsmith.evaluation.moments import Estimate, Moments, exponential, square_root
from bitsmith.evaluation.perplexity import (
    PerplexityMeter,
    row_chunks,
    shifted_logits,
    token_losses,
)


@dataclass(frozen=True)
class Divergence:
    """A model compared with its reference over the scored tokens. The statistics are those of llama-perplexity.

    kld: mean Kullback-Leibler divergence KL(reference || model), nats per token
    kld_median, kld_99, kld_999, kld_max, kld_min: its quantiles (50 %, 99 %, 99.9 %) and extremes
    top1: share of positions where both models give the same most probable token, 0 to 1
    delta_p: mean of p - p_reference, where p is the probability of the text's next token
    delta_p_rms: root mean square of p - p_reference
    reference_perplexity: perplexity of the reference model
    log_ratio: mean of ln(perplexity / reference perplexity)
    ratio: exponential of log_ratio
    vocab: number of tokens, from id 0, over which the distributions are compared
    """

    kld: Estimate
    kld_median: float
    kld_99: float
    kld_999: float
    kld_max: float
    kld_min: float
    top1: Estimate
    delta_p: Estimate
    delta_p_rms: Estimate
    reference_perplexity: Estimate
    log_ratio: Estimate
    ratio: Estimate
    vocab: int


@dataclass(frozen=True)
class TokenDivergence:
    """Per-token values: kld, losses and reference losses float64 [rows] in nats, same_top bool [rows]."""

    kld: np.ndarray
    losses: np.ndarray
    reference_losses: np.ndarray
    same_top: np.ndarray


def compare(logits: np.ndarray, reference: np.ndarray, targets: np.ndarray) -> TokenDivergence:
    """KL(reference || model), both losses, and whether the most probable tokens agree, for each row.

    logits, reference: [rows, vocab] float32, finite; everything after is float64
    targets: [rows] int, the text's next token

    If one vocabulary is wider (padding), KLD and the most probable token use the common tokens, and both distributions
    are normalised over them. Losses always use each model's whole vocabulary.
    """
    common = min(logits.shape[1], reference.shape[1])
    rows = len(targets)
    kld, losses, reference_losses = (np.empty(rows, dtype=np.float64) for _ in range(3))
    for part in row_chunks(reference):
        each = np.arange(len(targets[part]))
        ours, ours_log_sum = shifted_logits(logits[part, :common])
        theirs, theirs_log_sum = shifted_logits(reference[part, :common])
        losses[part] = ours_log_sum - ours[each, targets[part]]
        reference_losses[part] = theirs_log_sum - theirs[each, targets[part]]
        np.subtract(theirs, ours, out=ours)
        np.exp(theirs, out=theirs)
        mean_difference = np.einsum("rv,rv->r", theirs, ours) / np.exp(theirs_log_sum)
        kld[part] = mean_difference - theirs_log_sum + ours_log_sum
    if logits.shape[1] > common:
        losses = token_losses(logits, targets)
    if reference.shape[1] > common:
        reference_losses = token_losses(reference, targets)
    same_top = logits[:, :common].argmax(axis=1) == reference[:, :common].argmax(axis=1)
    return TokenDivergence(kld, losses, reference_losses, same_top)


class DivergenceMeter:
    """Adds up the divergence of tokens, batch by batch. It keeps one float32 per token, for the quantiles."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._reference = PerplexityMeter()
        self._kld, self._log_ratio, self._delta_p, self._delta_p_squared = (Moments() for _ in range(4))
        self._same_top = 0
        self._klds: list[np.ndarray] = []

    def add(self, tokens: TokenDivergence) -> None:
        """Add some tokens."""
        self._reference.add(tokens.reference_losses)
        self._kld.add(tokens.kld)
        self._log_ratio.add(tokens.losses - tokens.reference_losses)
        delta_p = np.exp(-tokens.losses) - np.exp(-tokens.reference_losses)
        self._delta_p.add(delta_p)
        self._delta_p_squared.add(np.square(delta_p))
        self._same_top += int(np.count_nonzero(tokens.same_top))
        self._klds.append(tokens.kld.astype(np.float32))

    def result(self) -> Divergence:
        """The divergence of all tokens so far, at least two. Standard errors are over tokens."""
        klds = np.concatenate(self._klds)
        low, median, high, higher, top = np.quantile(klds, [0.0, 0.5, 0.99, 0.999, 1.0]).tolist()
        agreement = self._same_top / klds.size
        log_ratio = self._log_ratio.estimate()
        return Divergence(
            kld=self._kld.estimate(),
            kld_median=median,
            kld_99=high,
            kld_999=higher,
            kld_max=top,
            kld_min=low,
            top1=Estimate(agreement, math.sqrt(agreement * (1.0 - agreement) / (klds.size - 1))),
            delta_p=self._delta_p.estimate(),
            delta_p_rms=square_root(self._delta_p_squared.estimate()),
            reference_perplexity=self._reference.result().perplexity,
            log_ratio=log_ratio,
            ratio=exponential(log_ratio),
            vocab=self._vocab,
        )
