"""What is added to the diagonal of a Hessian before it is factored."""

from __future__ import annotations

DAMPING = 0.03  # of a Hessian that is exact, as a share of its diagonal's mean
MOST_DAMPING = 1.0


def damping_for(cols: int, tokens: int) -> float:
    """The damping of a Hessian that is a mean over so many tokens.

    The feedback is a regression of each column on those before it. By chance it explains about columns / tokens of
    what is left, which other text does not repeat; the ridge that predicts best grows with that share (Hoerl and
    Kennard 1970: noise times unknowns, over the energy of what is explained). Measured figures: docs/LOG.md
    """
    return min(DAMPING + cols / tokens, MOST_DAMPING)
