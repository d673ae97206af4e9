import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfdc_lib.metrics import at_base_rate, auc, bootstrap_interval, log_loss
from experiments.intervals import compare_auc


def test_log_loss_by_hand():
    assert log_loss([1, 0], [0.9, 0.2]) == pytest.approx(-(np.log(0.9) + np.log(0.8)) / 2)
    assert log_loss([1, 0, 1], [0.5] * 3) == pytest.approx(np.log(2))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=4, max_size=30))
def test_auc_is_the_chance_that_a_fake_scores_above_a_real(pairs):
    labels = np.array([label for label, _ in pairs], int)
    scores = np.array([score for _, score in pairs], float)
    fakes, reals = scores[labels == 1], scores[labels == 0]
    if not len(fakes) or not len(reals):
        assert np.isnan(auc(labels, scores))
        return
    won = (fakes[:, None] > reals).mean() + 0.5 * (fakes[:, None] == reals).mean()
    assert auc(labels, scores) == pytest.approx(won)


def test_bootstrap_draws_whole_groups():
    """Copies are no new evidence: repeating each row leaves the interval as wide."""
    rng = np.random.default_rng(1)
    labels, groups = np.tile([0, 1], 20), np.repeat(np.arange(20), 2)
    scores = rng.random(40) + 0.2 * labels
    once = bootstrap_interval(auc, labels, scores, groups)
    often = bootstrap_interval(auc, *(np.repeat(a, 10) for a in (labels, scores, groups)))
    assert once == pytest.approx(often)
    assert once[0] < auc(labels, scores) < once[1]


@pytest.mark.parametrize(("labels", "groups"), [([1, 1], [0, 1]), ([0, 1], [0, 0])])
def test_one_class_or_one_original_has_no_interval(labels, groups):
    assert np.isnan(bootstrap_interval(log_loss, labels, [0.1, 0.2], groups)).all()


def test_a_score_at_another_base_rate():
    """By counting: of 10,000 videos 100 are fakes; 90 of them and 990 originals are accused."""
    assert at_base_rate(0.9, 0.01) == pytest.approx(90 / (90 + 990))
    assert at_base_rate(0.7, 0.5) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="base rate"):
        at_base_rate(0.9, 1.0)


def mean_auc(table: pd.DataFrame, column: str) -> float:
    return np.mean([auc(rows.label, rows[column]) for _, rows in table.groupby("seed")])


def test_networks_are_not_ranked_against_each_other_and_a_difference_is_paired():
    """Two seeds that rank alike, the second with all its scores far higher."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"seed": np.repeat([0, 1], 40), "label": np.tile([0, 1], 40)})
    table["original_id"] = [f"{i // 2}" for i in range(80)]  # each seed scores its own
    table["good"] = 10 * table.seed + table.label + rng.normal(size=80)
    table["blind"] = 10 * table.seed + rng.normal(size=80)
    found = compare_auc(table, "good")
    assert found["value"] == pytest.approx(mean_auc(table, "good"))
    assert found["low"] < found["value"] < found["high"]
    assert found["value"] > auc(table.label, table.good) + 0.1  # there the gap of the seeds counts
    gain = compare_auc(table, "good", "blind")
    assert gain["value"] == pytest.approx(mean_auc(table, "good") - mean_auc(table, "blind"))
    assert gain["low"] > 0
    assert gain["same_sign"]
    nothing = {"value": 0, "low": 0, "high": 0, "same_sign": False}
    assert compare_auc(table, "good", "good") == nothing
