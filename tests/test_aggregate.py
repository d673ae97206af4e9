import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dfdc_lib.aggregate import STRATEGIES, confident_strategy, join_videos

at_borders = st.sampled_from([0.0, 0.2, np.nextafter(0.2, 0), 0.5, 0.8, np.nextafter(0.8, 1), 1.0])
probabilities = arrays(float, st.integers(1, 64), elements=st.floats(0, 1) | at_borders)


def votes(confident: int, total: int) -> np.ndarray:
    return np.where(np.arange(total) < confident, 0.9, 0.5)


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
            for p in (votes(confident, total), votes(confident, total) - 0.45):  # 0.45 and 0.05
                assert confident_strategy(p) == pytest.approx(as_the_slides_say(p)), (p, total)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"sharpened"}))
@given(p=probabilities)
def test_every_strategy_stays_inside_its_scores_whatever_their_order(name, p):
    result = STRATEGIES[name](p)
    assert isinstance(result, float)
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
@given(videos=st.lists(probabilities, max_size=6), draw=st.randoms())
def test_a_long_table_is_joined_as_each_video_alone(name, videos, draw):
    rows = [(f"v{i}", score) for i, p in enumerate(videos) for score in p]
    draw.shuffle(rows)
    names, joined = join_videos(name, [score for _, score in rows], [who for who, _ in rows])
    assert names.tolist() == [f"v{i}" for i in range(len(videos))]
    assert joined == pytest.approx([STRATEGIES[name](p) for p in videos], abs=1e-12)
    assert ((joined >= 0) & (joined <= 1)).all()


@pytest.mark.parametrize(
    ("name", "scores", "expected"),
    [
        ("mean", [0.0, 0.2, 1.0], 0.4),
        ("median", [0.4, 0.5, 0.0, 1.0], 0.45),
        ("max", [0.0, 0.2, 1.0], 1.0),
        ("top", [1.0, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1], 0.95),
        ("trimmed", [0.5] * 8 + [1.0, 0.0], 0.5),
        ("trimmed", [0.4] * 8 + [0.4, 1.0], 0.4),
        ("logits", [0.4, 0.4], 0.4),
        ("logits", [0.2, 0.8], 0.5),
        ("confident_2", [0.9, 0.1, 0.5], 0.5),
        ("confident_2", [0.9, 0.9, 0.5], 0.9),
        ("confident_2", [0.1, 0.1, 0.8], 0.1),
        # By hand: q = 0.5 ± distance^0.65, weighted by the distance.
        ("sharpened", [0.8, 0.4], 0.5 + (0.3**0.65 * 0.3001 - 0.1**0.65 * 0.1001) / 0.4002),
    ],
)
def test_known_answers(name, scores, expected):
    assert STRATEGIES[name](np.array(scores)) == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [1.2, -0.1, np.nan])
def test_scores_that_are_no_probabilities_are_an_error(wrong):
    with pytest.raises(ValueError, match="diverged"):
        join_videos("mean", [wrong, 0.9], ["a", "a"])
