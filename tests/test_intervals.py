import numpy as np
import pandas as pd
import pytest

from dfdc_lib.metrics import auc
from experiments.intervals import compare_auc


def scored(n_originals: int = 40) -> pd.DataFrame:
    """Two seeds that rank alike, the second with all its scores far higher; each judges originals of its own."""
    rng = np.random.default_rng(0)
    rows = [
        (f"{seed}-{original}", label, seed, 10 * seed + label + rng.normal(), 10 * seed + rng.normal())
        for seed in range(2)
        for original in range(n_originals)
        for label in (0, 1)
    ]
    return pd.DataFrame(rows, columns=["original_id", "label", "seed", "good", "blind"])


def test_networks_are_not_ranked_against_each_other():
    table = scored()
    each = [auc(rows.label, rows.good) for _, rows in table.groupby("seed")]
    found = compare_auc(table, "good")
    assert found["value"] == pytest.approx(np.mean(each))
    assert found["value"] > auc(table.label, table.good) + 0.1  # pooled, the gap between the seeds would count
    assert found["low"] < found["value"] < found["high"]


def test_a_difference_is_paired_and_asks_all_seeds():
    table = scored(20)
    found = compare_auc(table, "good", "blind")
    each = [auc(rows.label, rows.good) - auc(rows.label, rows.blind) for _, rows in table.groupby("seed")]
    assert found["value"] == pytest.approx(np.mean(each))
    assert found["low"] > 0
    assert found["same_sign"]
    assert compare_auc(table, "good", "good") == {"value": 0, "low": 0, "high": 0, "same_sign": False}
