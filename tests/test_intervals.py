import numpy as np
import pandas as pd
import pytest

from dfdc_lib.metrics import auc
from experiments.intervals import compare_auc


def scored(n_originals: int = 40) -> pd.DataFrame:
    """Two seeds that rank alike, the second with all its scores far higher."""
    rng, n = np.random.default_rng(0), 2 * n_originals
    table = pd.DataFrame({"seed": np.repeat([0, 1], n), "label": np.tile([0, 1], n)})
    table["original_id"] = [f"{i // 2}" for i in range(2 * n)]  # each seed judges its own
    table["good"] = 10 * table.seed + table.label + rng.normal(size=2 * n)
    return table.assign(blind=10 * table.seed + rng.normal(size=2 * n))


def mean_auc(table: pd.DataFrame, column: str) -> float:
    return np.mean([auc(rows.label, rows[column]) for _, rows in table.groupby("seed")])


def test_networks_are_not_ranked_against_each_other():
    table = scored()
    found = compare_auc(table, "good")
    assert found["value"] == pytest.approx(mean_auc(table, "good"))
    assert found["low"] < found["value"] < found["high"]
    pooled = auc(table.label, table.good)  # here the gap between the seeds counts
    assert found["value"] > pooled + 0.1


def test_a_difference_is_paired_and_asks_all_seeds():
    table = scored(20)
    found = compare_auc(table, "good", "blind")
    assert found["value"] == pytest.approx(mean_auc(table, "good") - mean_auc(table, "blind"))
    assert found["low"] > 0
    assert found["same_sign"]
    nothing = {"value": 0, "low": 0, "high": 0, "same_sign": False}
    assert compare_auc(table, "good", "good") == nothing
