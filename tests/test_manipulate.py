import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfdc_lib.blending import NotAFace, self_blend
from dfdc_lib.geometry import affine_between, move_points
from dfdc_lib.rehearsal import manipulate as m
from dfdc_lib.rehearsal.forensics import block_grid, high_pass, recompress
from dfdc_lib.rehearsal.people import LANDMARKS, portrait

COLLINS, HOPPER = (np.array(LANDMARKS[name]) for name in ("collins", "hopper"))
CROP, FACE_IN_CROP = portrait("hopper")[60:390, 150:380].copy(), HOPPER - (150, 60)


def fixed(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def detail_in(picture: np.ndarray, where: np.ndarray) -> float:
    return np.abs(high_pass(picture)[where]).mean()


@pytest.mark.parametrize("region", m.REGIONS)
def test_outside_the_mask_nothing_changes(region):
    before = portrait("collins")
    after, mask = m.replace_region(before, COLLINS, portrait("hopper"), HOPPER, region)
    assert np.array_equal(before[mask == 0], after[mask == 0])
    assert (before != after).any(axis=2)[mask == 255].mean() > 0.8
    where = {"eyes": COLLINS[:2], "mouth": COLLINS[3:]}.get(region, COLLINS).mean(axis=0)
    y, x = np.nonzero(mask)
    assert np.hypot(*((x.mean(), y.mean()) - where)) < (3 if region in ("eyes", "mouth") else 15)


def test_the_own_face_put_back_in_place_changes_nearly_nothing():
    picture = portrait("collins")
    after, mask = m.replace_region(picture, COLLINS, picture, COLLINS, colour=0)
    assert mask.max() == 255
    assert np.abs(after.astype(int) - picture).max() <= 4  # Lab and back


def test_colour_transfer_meets_the_reference():
    where = np.ones((100, 100), bool)
    picture, reference = portrait("collins")[50:150, 180:280], portrait("hopper")[150:250, 200:300]
    moved = m.transfer_colour(picture, reference, where)
    before, after = (p.mean((0, 1)) - reference.mean((0, 1)) for p in (picture, moved))
    assert np.abs(after).max() < np.abs(before).max() / 3
    assert np.array_equal(m.transfer_colour(picture, reference, ~where), picture)


@given(st.floats(0, 360), st.floats(0.5, 1.5))
def test_masks_turn_and_grow_with_the_face(degrees, scale):
    """The face's mask, turned, is the turned face's, but for pixels on its edge."""
    angle = np.radians(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine = np.column_stack([turn, 200 - turn @ COLLINS.mean(axis=0)])
    for mask in (m.region_mask, m.hull_mask):
        upright = mask(COLLINS, 400, 400, feather=0)
        turned = mask(move_points(COLLINS, affine), 400, 400, feather=0)
        expected = (cv2.warpAffine(upright, affine, (400, 400)) > 0.5).astype(np.uint8)
        edge = cv2.morphologyEx(expected, cv2.MORPH_GRADIENT, np.ones((3, 3)))
        assert edge[(turned > 0.5) != expected].all()


@pytest.mark.parametrize("away", [(5000, 0), (0, 5000), (-5000, 0), (0, -5000)])
def test_a_face_outside_the_picture_changes_nothing(away):
    picture = portrait("collins")
    after, mask = m.replace_region(picture, COLLINS + away, portrait("hopper"), HOPPER)
    assert np.array_equal(after, picture)
    assert not mask.any()


def test_displace_moves_landmarks_with_the_picture():
    picture = np.pad(np.full((5, 5, 3), 255, np.uint8), ((98, 97), (98, 97), (0, 0)))
    after, moved = m.displace(picture, np.array([[100.0, 100]]), (100, 100), 60, (8, -5))
    y, x = np.nonzero(after[..., 0] > 100)
    assert moved[0] == pytest.approx((108, 95))
    assert (x.mean(), y.mean()) == pytest.approx((108, 95), abs=1.5)
    assert np.array_equal(m.displace(picture, moved, (900, -400), 60, (8, -5))[0], picture)


@pytest.mark.parametrize("scale", [0.21, 0.5, 0.79, 0.81, 1.3])
def test_fit_to_puts_each_pixel_where_the_landmarks_say(scale):
    """Red tells the donor's x and green its y, also where a large donor is shrunk first."""
    y, x = np.mgrid[:240, :240]
    donor = np.stack([x, y, x], axis=2).astype(np.float32)  # no rounding
    face = 60 + 100 * (HOPPER - HOPPER.min(axis=0)) / np.ptp(HOPPER, axis=0).max()
    target = face * scale + (3.3, 2.6)
    warped = m.fit_to(donor, face, target, 320, 320)
    y, x = np.mgrid[70:180:3, 70:180:3].reshape(2, -1)
    column, row = move_points(np.stack([x, y], axis=1), affine_between(face, target)).T
    seen = cv2.remap(warped, np.float32(column[None]), np.float32(row[None]), cv2.INTER_LINEAR)[0]
    assert np.abs(seen[:, :2] - np.stack([x, y], axis=1)).max() < 0.05


def test_grain_is_matched_to_the_reference():
    rng, where = fixed(), np.zeros((200, 200), bool)
    where[20:180, 20:180] = True
    smooth = cv2.GaussianBlur(rng.integers(60, 200, (200, 200, 3)).astype(np.uint8), (0, 0), 12)
    rough = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).round().astype(np.uint8)
    matched = m.match_grain(smooth, rough, where, 1.0, fixed(1))
    assert detail_in(matched, where) == pytest.approx(detail_in(rough, where), rel=0.08)
    assert detail_in(smooth, where) < 0.2 * detail_in(rough, where)
    assert np.array_equal(m.match_grain(smooth, rough, where, 0.0, fixed(1)), smooth)
    assert np.abs(m.match_grain(rough, smooth, where, 1.0, fixed(1)).astype(int) - rough).max() == 0


# The four families of artifacts, and self-blended images.

FAMILIES = {
    "visual": m.visual_defect,
    "encoding": m.encoding_difference,
    "warping": m.warping_artifact,
    "blending": lambda crop, face, *rest: m.blending_artifact(
        crop, face, portrait("collins"), COLLINS, *rest
    ),
    "self_blend": lambda crop, face, rng, strength: self_blend(crop, face, rng),
}


def falsify(family, seed=0, strength=1.0):
    return FAMILIES[family](CROP, FACE_IN_CROP, fixed(seed), strength)


@pytest.mark.parametrize("family", FAMILIES)
@given(seed=st.integers(0, 10**6), strength=st.floats(0.05, 1))
@settings(max_examples=15)
def test_a_family_changes_only_what_its_mask_says(family, seed, strength):
    before = CROP.copy()
    after, mask = falsify(family, seed, strength)
    assert np.array_equal(CROP, before)  # the given picture is not written to
    assert np.array_equal(after[mask == 0], CROP[mask == 0])
    assert (after != CROP).any()
    assert (mask.dtype, mask.shape, after.dtype) == (np.uint8, CROP.shape[:2], np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_gives_the_same_bytes(family):
    once, again, other = (falsify(family, seed) for seed in (5, 5, 6))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(once, again, strict=True))
    assert once[0].tobytes() != other[0].tobytes()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "self_blend"])
def test_strength_runs_from_nothing_to_one(family):
    after, mask = falsify(family, strength=0)
    assert np.array_equal(after, CROP)
    assert not mask.any()
    for strength in (-0.1, 1.1):
        with pytest.raises(ValueError, match="strength"):
            falsify(family, strength=strength)


NO_FACES = {
    "in one place": 40 + 0.5 * m.FACE,
    "on a line": np.array([[50.0, 50], [60, 60], [70, 70], [80, 80], [90, 90]]),
    "outside": FACE_IN_CROP + np.array([0, 200]),
    "finite": FACE_IN_CROP * np.nan,
    "five": FACE_IN_CROP[:4],
}


@pytest.mark.parametrize("why", NO_FACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_landmarks_of_no_face_are_a_clear_error(family, why):
    with pytest.raises(NotAFace, match=why):
        FAMILIES[family](CROP, NO_FACES[why], fixed(), 1.0)


def test_other_mistakes_are_clear_errors_too():
    with pytest.raises(NotAFace, match="outside"):
        m.blending_artifact(CROP, FACE_IN_CROP, CROP, FACE_IN_CROP + 900, fixed())
    with pytest.raises(ValueError, match="nose"):
        m.visual_defect(CROP, FACE_IN_CROP, fixed(), kind="nose")
    with pytest.raises(ValueError, match="detail"):
        m.lose_detail(CROP, 0)


@pytest.mark.parametrize("kind", m.VISUAL_KINDS)
def test_each_visual_defect_is_one(kind):
    after, mask = m.visual_defect(CROP, FACE_IN_CROP, fixed(), 1.0, kind)
    inside = mask == 255
    if kind == "colour":
        assert np.abs(after[inside].mean(axis=0) - CROP[inside].mean(axis=0)).min() > 10
    else:
        assert detail_in(after, inside) < 0.5 * detail_in(CROP, inside)


def test_the_inner_face_has_other_blocks_than_its_surroundings():
    """The whole crop is a JPEG, whose grid shows at phase 7; what was pasted in has its own."""
    after, mask = m.encoding_difference(recompress(CROP, 50), FACE_IN_CROP, fixed(2))
    outside, inside = (block_grid(after, mask == level).argmax(axis=1) for level in (0, 255))
    assert outside.tolist() == [7, 7]
    assert inside.tolist() == ((7 - fixed(2).integers(1, 8, 2)) % 8).tolist()


def test_a_warp_puts_a_coarser_face_back_where_it_was():
    """A bright dot comes back blurred, in the same place; and a weak warp changes little."""
    dot = np.zeros_like(CROP)
    x, y = FACE_IN_CROP[2].round().astype(int)
    dot[y - 2 : y + 3, x - 2 : x + 3] = 255
    (rows, columns), detail = np.indices(dot.shape[:2]), [np.abs(high_pass(CROP)).mean()]
    for strength in (0.1, 0.5, 1.0):
        after, _ = m.warping_artifact(dot, FACE_IN_CROP, fixed(), strength)
        centre = [np.average(place, weights=after[..., 0]) for place in (columns, rows)]
        assert centre == pytest.approx((x, y), abs=0.25)
        fake, mask = falsify("warping", strength=strength)
        detail.append(detail_in(fake, mask == 255))
    assert detail == sorted(set(detail), reverse=True)
    weak, mask = falsify("warping", strength=0.01)
    assert np.abs(weak.astype(int) - CROP)[mask == 255].mean() < 0.3


def test_a_blended_face_is_the_donors_and_its_seam_shows_more_and_more():
    widths, warped = [], m.fit_to(portrait("collins"), COLLINS, FACE_IN_CROP, *CROP.shape[:2])
    for strength in (0.1, 0.5, 1.0):
        after, mask = falsify("blending", strength=strength)
        pair = [picture[mask == 255].mean(axis=1) for picture in (after, warped)]
        assert np.corrcoef(pair)[0, 1] > 0.95
        widths.append(np.count_nonzero((mask > 37) & (mask < 218)))
    assert widths[0] > widths[1] > 2 * widths[2]


def test_self_blending_stays_close_to_the_face():
    fakes = [falsify("self_blend", seed)[0].astype(int) for seed in range(30)]
    assert 0.2 < np.median([np.abs(fake - CROP).mean() for fake in fakes]) < 15
