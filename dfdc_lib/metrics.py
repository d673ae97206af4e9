"""Log loss, AUC, and how far a number from few videos can be trusted."""

from collections.abc import Callable

import numpy as np
from sklearn.metrics import log_loss as _log_loss
from sklearn.metrics import roc_auc_score


def log_loss(labels: np.ndarray, p_fake: np.ndarray) -> float:
    """The challenge's metric: mean of -log of the probability given to the truth."""
    return float(_log_loss(labels, np.asarray(p_fake, float), labels=[0, 1]))


def auc(labels: np.ndarray, p_fake: np.ndarray) -> float:
    """The chance that a random fake scores above a random real; NaN where one class is absent."""
    if len(np.unique(labels)) < 2:
        return float("nan")
    return float(roc_auc_score(labels, p_fake))


def at_base_rate(p_fake: float, rate: float) -> float:
    """What p_fake of a model that learned with half fakes means where their share is `rate`.

    Bayes' rule, if p_fake is calibrated: 0.9 becomes 0.083 where one video in a hundred is fake.
    """
    if not 0 < rate < 1:
        raise ValueError(f"a base rate lies between 0 and 1, got {rate}")
    fakes, reals = p_fake * rate, (1 - p_fake) * (1 - rate)
    return fakes / (fakes + reals)


def bootstrap_interval(
    metric: Callable[[np.ndarray, np.ndarray], float],
    labels: np.ndarray,
    p_fake: np.ndarray,
    groups: np.ndarray,
    n_draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The middle 95 % of `metric` when whole groups are drawn again with replacement.

    `groups` names the original of each video: an original and its fakes share a scene, so they are
    not independent and are drawn together. Draws that hold one class only are skipped. p_fake:
    (n,), or (n, k) where `metric` takes it. NaN where there is one group only, or one class: then
    nothing can be said.
    """
    labels, p_fake, groups = np.asarray(labels), np.asarray(p_fake), np.asarray(groups)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(n_draws):
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if len(np.unique(labels[rows])) == 2:
            values.append(metric(labels[rows], p_fake[rows]))
    if not values or len(members) == 1:
        return float("nan"), float("nan")
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))
