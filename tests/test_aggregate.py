import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dfdc_lib.aggregate import STRATEGIES, confident_strategy

probabilities = arrays(float, st.integers(1, 64), elements=st.floats(0, 1))


def votes(confident: int, total: int) -> np.ndarray:
    return np.where(np.arange(total) < confident, 0.9, 0.5)


@pytest.mark.parametrize(
    ("confident", "total", "taken"), [(12, 32, False), (13, 32, True), (11, 29, False), (12, 29, True)]
)
def test_fake_branch_at_its_borders(confident, total, taken):
    scores = votes(confident, total)
    assert confident_strategy(scores) == pytest.approx(0.9 if taken else scores.mean())


def test_real_branch_needs_more_than_nine_in_ten():
    assert confident_strategy([0.1] * 9 + [0.7]) == pytest.approx(0.16)
    assert confident_strategy([0.1] * 19 + [0.7]) == pytest.approx(0.1)


@pytest.mark.parametrize("name", STRATEGIES)
@given(p=probabilities)
def test_every_strategy_stays_inside_its_scores_whatever_their_order(name, p):
    result = STRATEGIES[name](p)
    assert p.min() - 1e-12 <= result <= p.max() + 1e-12
    assert result == pytest.approx(STRATEGIES[name](p[::-1]))


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_scores_or_no_probabilities_are_errors(name):
    with pytest.raises(ValueError, match="no scores"):
        STRATEGIES[name]([])
    for wrong in ([1.2], [np.nan]):
        with pytest.raises(ValueError, match="probabilities"):
            STRATEGIES[name](wrong)
