"""From the scores of many faces to one number a video.

Every strategy takes p_fake of one video, (n,), and returns a float; or of many videos at once, (videos, n) with NaN
where a video has fewer scores, and returns (videos,). Notebook 08 compares them.
"""

from collections.abc import Callable
from functools import wraps

import numpy as np

STRATEGIES: dict[str, Callable] = {}  # by name; filled below


def _strategy(name: str) -> Callable:
    """Register a strategy that is written for checked scores (videos, n), NaN where there are none."""

    def register(join: Callable) -> Callable:
        @wraps(join)
        def run(p, **settings):
            p = np.asarray(p, dtype=float)
            rows = p if p.ndim == 2 else p.reshape(1, -1)
            there = ~np.isnan(rows) if p.ndim == 2 else np.ones(rows.shape, bool)
            if not there.any(axis=1).all():
                raise ValueError("no scores: a video without faces has a status, not a score")
            if not ((rows[there] >= 0) & (rows[there] <= 1)).all():
                raise ValueError("scores must be probabilities in [0, 1]")
            joined = np.clip(join(rows, **settings), 0, 1)  # a mean of ones may round to 1.0000000000000002
            return joined if p.ndim == 2 else float(joined[0])

        STRATEGIES[name] = run
        return run

    return register


@_strategy("mean")
def mean(p) -> float:
    """The plain average of p_fake."""
    return np.nanmean(p, axis=1)


@_strategy("confident")
def confident_strategy(p, t: float = 0.8, divisor: float = 2.5, least: int = 11, share: float = 0.9) -> float:
    """Trust the confident frames, if there are enough of them. p: p_fake of every face in every frame.

    Source: the slides. If the count of p > t exceeds both n // 2.5 and 11: the mean of those. Else, if more than 90 %
    of p lie below 0.2: the mean of those. Else: the mean of all. For one B5 this took the log loss from 0.25 to 0.22.
    """
    n = np.count_nonzero(~np.isnan(p), axis=1)
    fakes, reals = p > t, p < 0.2
    is_fake = (fakes.sum(axis=1) > n // divisor) & (fakes.sum(axis=1) > least)
    is_real = ~is_fake & (reals.sum(axis=1) > share * n)
    taken = np.where(is_fake[:, None], fakes, np.where(is_real[:, None], reals, ~np.isnan(p)))
    return _mean_of(p, taken)


@_strategy("confident_2")
def confident_strategy_2(p) -> float:
    """Upstream's second variant, which it used elsewhere: t 0.87, a third of the scores, 60 % of reals."""
    return confident_strategy.__wrapped__(p, t=0.87, divisor=3, least=0, share=0.6)


@_strategy("median")
def median(p) -> float:
    """The middle score."""
    return np.nanmedian(p, axis=1)


@_strategy("trimmed")
def trimmed_mean(p, share: float = 0.1) -> float:
    """The mean without the lowest and the highest `share` of the scores."""
    p = np.sort(p, axis=1)  # NaN last
    n = np.count_nonzero(~np.isnan(p), axis=1)[:, None]
    cut, place = np.floor(share * n), np.arange(p.shape[1])
    return _mean_of(p, (place >= cut) & (place < n - cut))


@_strategy("top")
def mean_of_top(p, share: float = 0.25) -> float:
    """The mean of the highest quarter: one fake face among many frames is enough."""
    p = -np.sort(-p, axis=1)  # NaN last
    n = np.count_nonzero(~np.isnan(p), axis=1)[:, None]
    return _mean_of(p, np.arange(p.shape[1]) < np.ceil(share * n))


@_strategy("max")
def highest(p) -> float:
    """The highest score: the most suspicious face decides alone."""
    return np.nanmax(p, axis=1)


@_strategy("logits")
def mean_of_logits(p, eps: float = 1e-6) -> float:
    """Average before the sigmoid: a sure frame counts for more than in the mean of probabilities."""
    p = np.clip(p, eps, 1 - eps)
    return 1 / (1 + np.exp(-np.nanmean(np.log(p) - np.log1p(-p), axis=1)))


@_strategy("sharpened")
def sharpened_mean(p, power: float = 0.65) -> float:
    """Push each score away from 0.5, then weigh it by its distance from there.

    Source: the 3rd place (NTech-Lab): q = 0.5 ± |p - 0.5|^0.65, kept in [0.01, 0.99], weights |p - 0.5| + 0.0001.
    """
    distance = np.abs(p - 0.5)
    pushed = np.where(distance > 0, np.clip(0.5 + np.sign(p - 0.5) * distance**power, 0.01, 0.99), 0.5)
    weights = np.where(np.isnan(p), 0, distance + 1e-4)
    return (np.where(np.isnan(p), 0, pushed) * weights).sum(axis=1) / weights.sum(axis=1)


def join_videos(strategy: str, p: np.ndarray, video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join scores in a long table. p: (n,) · video: (n,) to whom each belongs → (videos, sorted), their scores."""
    if np.isnan(np.asarray(p, float)).any():
        raise ValueError("a score is NaN: has a checkpoint diverged?")
    names, number = np.unique(np.asarray(video), return_inverse=True)
    if len(names) == 0:
        return names, np.zeros(0)
    counts = np.bincount(number)
    order = np.argsort(number, kind="stable")
    place = np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.full((len(names), counts.max()), np.nan)
    rows[number[order], place] = np.asarray(p, float)[order]
    return names, STRATEGIES[strategy](rows)


def _mean_of(p: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The mean of the scores that are taken, of each video."""
    return np.where(taken, p, 0).sum(axis=1) / taken.sum(axis=1)
