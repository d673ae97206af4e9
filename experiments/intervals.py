"""What the experiments with several seeds share: a metric seed by seed, and how far its mean over
seeds can be trusted."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from dfdc_lib.metrics import auc, bootstrap_interval

Metric = Callable[[np.ndarray, np.ndarray], float]


def compare_auc(scored: pd.DataFrame, column: str, against: str | None = None) -> dict[str, float]:
    """`compare_seeds` for AUC."""
    return compare_seeds(auc, scored, column, against)


def compare_seeds(
    metric: Metric, scored: pd.DataFrame, column: str, against: str | None = None
) -> dict[str, float]:
    """A metric of a column of scores, or by how much it exceeds another column's: value, low, high,
    same_sign.

    scored: one row per picture or video, with label, original_id and seed. Each seed has its own
    network, so the metric is taken within each seed, then averaged. low, high: 95 % by bootstrap
    over originals, with the networks fixed: another training's variation is not included.
    same_sign: do all seeds agree which column is higher?
    """
    columns = [column, against or column, "seed"]

    def of_seeds(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
        of = [
            (labels[values[:, 2] == seed], values[values[:, 2] == seed])
            for seed in np.unique(values[:, 2])
        ]
        other = [metric(y, v[:, 1]) if against else 0 for y, v in of]
        return np.array([metric(y, v[:, 0]) for y, v in of]) - other

    def mean_of_seeds(labels: np.ndarray, values: np.ndarray) -> float:
        # A draw may leave one seed without reals.
        return float(np.nanmean(of_seeds(labels, values)))

    values, labels = scored[columns].to_numpy(float), scored.label.to_numpy()
    low, high = bootstrap_interval(mean_of_seeds, labels, values, scored.original_id, n_draws=500)
    each = of_seeds(labels, values)
    same = bool((each > 0).all() or (each < 0).all())
    return {"value": float(np.nanmean(each)), "low": low, "high": high, "same_sign": same}
