import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dfdc_lib.aggregate import STRATEGIES, confident_strategy, join_videos

anywhere = st.floats(0, 1)
at_borders = st.sampled_from([0.0, 0.1, 0.2, np.nextafter(0.2, 0), 0.5, 0.8, np.nextafter(0.8, 1), 0.9, 1.0])
probabilities = arrays(float, st.integers(1, 64), elements=anywhere | at_borders)


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


def as_the_slides_say(p: np.ndarray, t: float = 0.8) -> float:
    """The slides' definition, in plain Python."""
    sure = [value for value in p if value > t]
    if len(sure) > len(p) // 2.5 and len(sure) > 11:
        return sum(sure) / len(sure)
    low = [value for value in p if value < 0.2]
    if len(low) > 0.9 * len(p):
        return sum(low) / len(low)
    return sum(p) / len(p)


@given(p=probabilities, t=st.sampled_from([0.5, 0.8, 0.87]))
def test_the_slides_definition(p, t):
    assert confident_strategy(p, t=t) == pytest.approx(as_the_slides_say(p, t), abs=1e-12)


def test_the_slides_definition_at_every_border():
    for total in range(1, 70):
        for confident in range(total + 1):
            p = votes(confident, total)
            assert confident_strategy(p) == pytest.approx(as_the_slides_say(p)), (confident, total)
            assert confident_strategy(p - 0.45) == pytest.approx(as_the_slides_say(p - 0.45))  # 0.45 and 0.05


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"sharpened"}))
@given(p=probabilities)
def test_every_strategy_stays_inside_its_scores_whatever_their_order(name, p):
    result = STRATEGIES[name](p)
    assert p.min() - 1e-5 <= result <= p.max() + 1e-5
    assert result == pytest.approx(STRATEGIES[name](p[::-1]))


@given(p=probabilities)
def test_the_sharpened_mean_stays_a_probability_and_on_its_side(p):
    result = STRATEGIES["sharpened"](p)
    assert 0.01 - 1e-12 <= result <= 0.99 + 1e-12
    if (p > 0.5).all():
        assert result > 0.5
    assert STRATEGIES["sharpened"](1 - p) == pytest.approx(1 - result, abs=1e-9)


@pytest.mark.parametrize("name", STRATEGIES)
@given(videos=st.lists(probabilities, min_size=1, max_size=6))
def test_many_videos_at_once_are_joined_as_each_alone(name, videos):
    rows = np.full((len(videos), max(map(len, videos))), np.nan)
    for row, p in zip(rows, videos, strict=True):
        row[: len(p)] = p
    alone = [STRATEGIES[name](p) for p in videos]
    assert STRATEGIES[name](rows) == pytest.approx(alone)
    who = np.repeat([f"v{i}" for i in range(len(videos))], [len(p) for p in videos])
    names, joined = join_videos(name, np.concatenate(videos), who)
    assert names.tolist() == [f"v{i}" for i in range(len(videos))]
    assert joined == pytest.approx(alone)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", 0.5), ("median", 0.45), ("max", 1.0), ("top", 0.95), ("trimmed", 0.5),
        ("confident_2", 0.5), ("logits", 1 / (1 + np.exp(-(np.log(0.4 / 0.6)) / 1))),
    ],
)  # fmt: skip
def test_known_answers(name, expected):
    scores = {
        "logits": [0.4, 0.4],
        "confident_2": [0.9] + [0.1] * 1 + [0.5],
        "top": [1.0, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1],
        "trimmed": [0.5] * 8 + [1.0, 0.0],
        "median": [0.4, 0.5, 0.0, 1.0],
    }
    assert STRATEGIES[name](scores.get(name, [0.0, 0.5, 1.0])) == pytest.approx(expected)


def test_the_sharpened_mean_by_hand():
    q = 0.5 + np.array([0.3**0.65, -(0.1**0.65)])
    weights = np.array([0.3001, 0.1001])
    assert STRATEGIES["sharpened"]([0.8, 0.4]) == pytest.approx((q * weights).sum() / weights.sum())


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_scores_or_no_probabilities_are_errors(name):
    for none in ([], [[np.nan, np.nan], [0.1, 0.2]]):
        with pytest.raises(ValueError, match="no scores"):
            STRATEGIES[name](none)
    for wrong in ([1.2], [np.nan], [[0.1, -0.2]]):
        with pytest.raises(ValueError, match="probabilities"):
            STRATEGIES[name](wrong)


def test_a_score_that_is_no_number_is_not_taken_for_a_missing_one():
    with pytest.raises(ValueError, match="NaN"):
        join_videos("mean", [np.nan, 0.9], ["a", "a"])
