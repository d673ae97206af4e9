import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfdc_lib import manipulate as m
from dfdc_lib.geometry import move_points
from dfdc_lib.sample import LANDMARKS, portrait

COLLINS, HOPPER = (np.array(LANDMARKS[name]) for name in ("collins", "hopper"))


def swap(**look):
    return m.replace_region(portrait("collins"), COLLINS, portrait("hopper"), HOPPER, **look)


@pytest.mark.parametrize("region", m.REGIONS)
def test_outside_the_mask_nothing_changes(region):
    before = portrait("collins")
    after, mask = swap(region=region)
    assert np.array_equal(before[mask == 0], after[mask == 0])
    assert (before != after).any(axis=2)[mask == 255].mean() > 0.8


def test_a_mask_lies_on_its_region():
    _, mask = swap(region="mouth")
    y, x = np.nonzero(mask)
    assert np.hypot(x.mean() - COLLINS[3:, 0].mean(), y.mean() - COLLINS[3:, 1].mean()) < 3
    assert mask[int(COLLINS[0, 1]), int(COLLINS[0, 0])] == 0  # not the eye


def test_the_own_face_put_back_in_place_changes_nearly_nothing():
    picture = portrait("collins")
    after, mask = m.replace_region(picture, COLLINS, picture, COLLINS, colour=0)
    assert mask.max() == 255
    assert np.abs(after.astype(int) - picture).max() <= 4  # Lab and back


def test_less_detail_is_less_detail():
    def sharpness(detail):
        after, mask = swap(detail=detail)
        return np.abs(np.diff(after.astype(float), axis=1))[mask[:, 1:] == 255].mean()

    assert sharpness(1.0) > sharpness(0.5) > sharpness(0.2)


def test_colour_transfer_meets_the_reference():
    where = np.ones((100, 100), bool)
    picture, reference = portrait("collins")[50:150, 180:280], portrait("hopper")[150:250, 200:300]
    moved = m.transfer_colour(picture, reference, where)
    assert (
        np.abs(moved.mean((0, 1)) - reference.mean((0, 1))).max()
        < np.abs(picture.mean((0, 1)) - reference.mean((0, 1))).max() / 3
    )
    assert np.array_equal(m.transfer_colour(picture, reference, ~where), picture)


@given(st.floats(0, 360), st.floats(0.5, 3))
def test_the_ellipse_turns_and_grows_with_the_face(degrees, scale):
    angle = np.radians(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centred = (COLLINS - COLLINS.mean(axis=0)) @ turn.T + 200
    area = (m.region_mask(centred, 400, 400) > 0).sum()
    upright = (m.region_mask(COLLINS, 512, 512) > 0).sum()
    assert area == pytest.approx(upright * scale**2, rel=0.1)


def test_a_face_outside_the_picture_changes_nothing():
    picture = portrait("collins")
    after, mask = m.replace_region(picture, COLLINS + 5000, portrait("hopper"), HOPPER)
    assert np.array_equal(after, picture)
    assert not mask.any()


def test_points_that_are_no_face_are_errors():
    with pytest.raises(ValueError, match="coincide"):
        m.region_mask(np.full((5, 2), 30.0), 60, 60)
    with pytest.raises(ValueError, match="unknown region 'nose'"):
        m.region_mask(COLLINS, 60, 60, region="nose")
    with pytest.raises(ValueError, match="detail"):
        m.lose_detail(portrait("collins"), 0)


def test_displace_moves_landmarks_with_the_picture():
    picture = np.zeros((200, 200, 3), np.uint8)
    picture[98:103, 98:103] = 255
    after, moved = m.displace(picture, np.array([[100.0, 100]]), (100, 100), 60, (8, -5))
    y, x = np.nonzero(after[..., 0] > 100)
    assert moved[0] == pytest.approx((108, 95))
    assert (x.mean(), y.mean()) == pytest.approx((108, 95), abs=1.5)


def test_fit_to_puts_landmarks_on_landmarks():
    """A white dot on the donor's nose lands on the target's nose, also when the donor is much larger."""
    donor = np.zeros((600, 512, 3), np.uint8)
    nose = HOPPER[2].round().astype(int)
    donor[nose[1] - 20 : nose[1] + 21, nose[0] - 20 : nose[0] + 21] = 255
    for scale in (0.25, 1.0):
        target = move_points(COLLINS, np.array([[scale, 0, 3], [0, scale, 2]]))
        warped = m.fit_to(donor, HOPPER, target, 512, 512)
        x, y = move_points(HOPPER[2:3], m.affine_between(HOPPER, target))[0].round().astype(int)
        rows, columns = np.nonzero(warped[y - 20 : y + 21, x - 20 : x + 21, 0] > 127)
        assert (columns.mean(), rows.mean()) == pytest.approx((20, 20), abs=1)
