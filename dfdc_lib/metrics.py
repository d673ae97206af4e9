"""Log loss, AUC, and how far to trust a number from a few videos."""

from collections.abc import Callable, Iterator

import numpy as np
from sklearn.metrics import log_loss as _log_loss
from sklearn.metrics import roc_auc_score


def log_loss(labels: np.ndarray, p_fake: np.ndarray) -> float:
    """Average -log of the probability given to the truth: the challenge's metric."""
    return float(_log_loss(labels, np.asarray(p_fake, float), labels=[0, 1]))


def auc(labels: np.ndarray, p_fake: np.ndarray) -> float:
    """Return the chance that a random fake outscores a random real; NaN if one class is absent."""
    if len(np.unique(labels)) < 2:
        return float("nan")
    return float(roc_auc_score(labels, p_fake))


def at_base_rate(p_fake: float, rate: float) -> float:
    """Move a calibrated p_fake from half fakes to a share of `rate`, by Bayes' rule.

    0.9 becomes 0.083 where one video in a hundred is fake.
    """
    if not 0 < rate < 1:
        raise ValueError(f"a base rate must lie between 0 and 1, got {rate}")
    fakes, reals = p_fake * rate, (1 - p_fake) * (1 - rate)
    return fakes / (fakes + reals)


def draw_groups(groups: np.ndarray, n_draws: int, seed: int) -> Iterator[np.ndarray]:
    """Draw whole groups with replacement: yield how often each row (n,) counts in a draw."""
    names, codes = np.unique(groups, return_inverse=True)
    rng, n = np.random.default_rng(seed), len(names)
    for _ in range(n_draws):
        yield np.bincount(rng.integers(n, size=n), minlength=n)[codes]


def bootstrap_interval(
    metric: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    p_fake: np.ndarray,
    groups: np.ndarray,
    n_draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the middle 95 % of `metric` over draws of whole groups with replacement.

    groups: each video's original, since a scene's videos are not independent. p_fake: (n,), or
    (n, k) if `metric` takes it. Draws of one class are skipped; one group or class gives two NaN.
    """
    labels, p_fake, values = np.asarray(labels), np.asarray(p_fake), []
    for counts in draw_groups(groups, n_draws, seed):
        rows: np.ndarray = np.repeat(np.arange(len(counts)), counts)
        if len(np.unique(labels[rows])) == 2:
            values.append(metric(labels[rows], p_fake[rows]))
    if not values or len(set(groups)) == 1:
        return float("nan"), float("nan")
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))
