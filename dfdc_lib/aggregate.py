"""From the scores of many faces to one number a video."""

import numpy as np


def _scores(p) -> np.ndarray:
    p = np.asarray(p, dtype=float).ravel()
    if p.size == 0:
        raise ValueError("no scores: a video without faces has a status, not a score")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("scores must be probabilities in [0, 1]")
    return p


def mean(p) -> float:
    """The plain average of p_fake."""
    return float(_scores(p).mean())


def confident_strategy(p, t: float = 0.8) -> float:
    """Trust the confident frames, if there are enough of them. p: p_fake of every face in every frame, any shape.

    Source: the slides. If the count of p > t exceeds both n // 2.5 and 11: the mean of those. Else, if more than 90 %
    of p lie below 0.2: the mean of those. Else: the mean of all. For one B5 this took the log loss from 0.25 to 0.22.
    """
    p = _scores(p)
    fakes, reals = p[p > t], p[p < 0.2]
    if len(fakes) > p.size // 2.5 and len(fakes) > 11:
        return float(fakes.mean())
    if len(reals) > 0.9 * p.size:
        return float(reals.mean())
    return float(p.mean())


STRATEGIES = {"mean": mean, "confident": confident_strategy}
