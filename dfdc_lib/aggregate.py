"""Join p_fake (n,), n > 0, of a video's faces into one float. Notebook 09 compares strategies."""

from collections.abc import Callable
from math import ceil

import numpy as np


def confident_strategy(p, t: float = 0.8) -> float:
    """Trust the confident frames if there are enough of them. Source: the slides."""
    p = np.asarray(p, float)
    sure_fakes, sure_reals = p[p > t], p[p < 0.2]
    if len(sure_fakes) > len(p) // 2.5 and len(sure_fakes) > 11:
        return sure_fakes.mean()
    if len(sure_reals) > 0.9 * len(p):
        return sure_reals.mean()
    return p.mean()


def confident_strategy_2(p: np.ndarray) -> float:
    """Upstream's second variant: `confident_strategy` with other limits."""
    sure_fakes, sure_reals = p[p > 0.87], p[p < 0.2]
    if len(sure_fakes) > len(p) // 3:
        return sure_fakes.mean()
    if len(sure_reals) > 0.6 * len(p):
        return sure_reals.mean()
    return p.mean()


def trimmed_mean(p: np.ndarray) -> float:
    """Average all but the lowest and the highest tenth of the scores."""
    cut = len(p) // 10
    return np.sort(p)[cut : len(p) - cut].mean()


def mean_of_top(p: np.ndarray) -> float:
    """Average the highest quarter: one fake face among many frames is enough."""
    return np.sort(p)[-ceil(len(p) / 4) :].mean()


def mean_of_logits(p: np.ndarray) -> float:
    """Average before the sigmoid, where a sure frame counts for more."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return 1 / (1 + np.exp(-np.log(p / (1 - p)).mean()))


def sharpened_mean(p: np.ndarray) -> float:
    """Push scores away from 0.5 and weight them by distance. Source: NTech-Lab, 3rd place."""
    distance = np.abs(p - 0.5)
    pushed = np.clip(0.5 + np.sign(p - 0.5) * distance**0.65, 0.01, 0.99)
    return float(np.average(pushed, weights=distance + 1e-4))


STRATEGIES: dict[str, Callable[[np.ndarray], float]] = {
    "mean": np.mean,
    "confident": confident_strategy,
    "confident_2": confident_strategy_2,
    "median": np.median,
    "trimmed": trimmed_mean,
    "top": mean_of_top,
    "max": np.max,  # the most suspicious face decides
    "logits": mean_of_logits,
    "sharpened": sharpened_mean,
}


def join_videos(strategy: str, p, video) -> tuple[np.ndarray, np.ndarray]:
    """Join p (n,) by video (n,) into (sorted videos, scores). Raises ValueError outside [0, 1]."""
    p = np.asarray(p, float)
    if not ((p >= 0) & (p <= 1)).all():  # NaN too, from a diverged network
        raise ValueError("scores must be probabilities in [0, 1]: has a checkpoint diverged?")
    names, number, counts = np.unique(video, return_inverse=True, return_counts=True)
    order = np.argsort(number, kind="stable")
    groups = np.split(p[order], np.cumsum(counts))[:-1]  # nothing follows the last video
    joined = [STRATEGIES[strategy](scores) for scores in groups]
    return names, np.clip(joined, 0, 1)  # a mean of ones may round to 1.0000000000000002
