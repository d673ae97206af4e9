import json
from collections import Counter

import av
import numpy as np
import pytest

from dfdc_lib.blending import eyes_to_mouth
from dfdc_lib.faces import FaceDetector
from dfdc_lib.geometry import detector_scale
from dfdc_lib.metadata import read_metadata
from dfdc_lib.rehearsal import sample
from dfdc_lib.rehearsal.film import CODECS, Shot, draw_portrait, expose, film, perform, write_video
from dfdc_lib.rehearsal.forensics import high_pass
from dfdc_lib.rehearsal.people import PEOPLE, person
from dfdc_lib.video import iterate_frames, probe
from experiments.sample_audit import identity_seen

PLAN = sample.plan(4, 16, 48, 0)
SHOTS = [shot for _, shot, _ in PLAN]


def test_the_plan_has_the_promised_variety():
    fakes = [fake for *_, several in PLAN for fake in several]
    assert (len(PLAN), len(fakes)) == (64, 128)
    assert {part for part, *_ in PLAN} == {0, 1, 2, 3}
    assert {detector_scale(s.width, s.height) for s in SHOTS} == {2.0, 1.0, 0.5, 0.33}
    assert sum(len(s.identities) == 2 for s in SHOTS) == 2
    assert sum(s.leaves_frame for s in SHOTS) == 1
    assert set(Counter(fake.method for fake in fakes).values()) == {32}
    assert {fake.method for fake in fakes} == set(sample.METHODS)
    assert {shot.codec for shot in SHOTS} == set(CODECS)
    assert {shot.fps for shot in SHOTS} == {24, 25, 30}
    assert 20 < sum(shot.noise > 0 for shot in SHOTS) < 44
    strengths = [fake.strength for fake in fakes]
    assert (min(strengths), max(strengths)) == (0, 1)
    real, false = [shot.crf for shot in SHOTS], [fake.crf for fake in fakes]
    assert (min(real), max(real)) == (min(false), max(false)) == sample.QUALITIES
    assert abs(np.mean(real) - np.mean(false)) < 0.1


@pytest.mark.parametrize("part", range(4))
def test_within_each_part_no_face_is_more_often_fake(part):
    seen = Counter()
    for _, shot, fakes in (group for group in PLAN if group[0] == part):
        for recipe in ({}, *({"fake": vars(fake)} for fake in fakes)):
            seen["fake" in recipe, identity_seen(recipe | {"shot": vars(shot)})] += 1
    for is_fake in (False, True):
        (times,) = {seen[is_fake, identity] for identity in PEOPLE}
        assert times > 0


def test_layout_is_the_data_sets_own(small_sample):
    entries = json.loads((small_sample / "dfdc_train_part_1" / "metadata.json").read_text())
    assert all(set(e) == {"label", "split", "original"} for e in entries.values())
    table = read_metadata(small_sample)
    assert table.label.value_counts().to_dict() == {0: 4, 1: 8}
    infos = {row.video_id: probe(small_sample / row.file) for row in table.itertuples()}
    assert all(infos[row.video_id] == infos[row.original_id] for row in table.itertuples())
    assert len(list(iterate_frames(small_sample / table.file[0], range(100)))) == 12
    recipes = sample.read_recipes(small_sample)
    for row in table.itertuples():
        shot = recipes[row.video_id]["shot"]
        with av.open(str(small_sample / row.file)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name.removeprefix("libvpx-") == shot["codec"]
            assert stream.average_rate == shot["fps"]


def test_landmarks_follow_the_face():
    """The sample's landmarks are where the detector finds them, frame after frame."""
    shot = next(s for s in SHOTS if s.width == 640 and len(s.identities) == 1)
    frames, people = zip(*list(film(shot))[::16], strict=True)
    for (landmarks,), faces in zip(people, FaceDetector().detect(list(frames)), strict=True):
        size = eyes_to_mouth(landmarks)
        assert np.abs(landmarks - faces.landmarks[0]).max() < 0.3 * size


def test_the_face_that_leaves_really_leaves():
    shot = next(s for s in SHOTS if s.leaves_frame)
    nose_x = [landmarks[2, 0] for _, (landmarks,) in perform(shot)]
    assert min(nose_x) < shot.width < max(nose_x) - 10


def test_a_sample_that_stands_is_kept_and_anything_else_is_never_replaced(small_sample, tmp_path):
    before = (small_sample / "sample.json").stat().st_mtime_ns
    sample.make_sample(small_sample, n_parts=2, originals_per_part=2, n_frames=12)
    (holiday := tmp_path / "holiday.mp4").write_text("precious")
    for others in (small_sample, tmp_path, holiday):
        with pytest.raises(FileExistsError, match="something else"):
            sample.make_sample(others, n_frames=1)
    assert (small_sample / "sample.json").stat().st_mtime_ns == before
    assert holiday.read_text() == "precious"


def test_the_people_who_never_lived_have_one_head_and_the_other_face():
    detector = FaceDetector()
    for identity, (head, face) in PEOPLE.items():
        picture, landmarks = person(identity)
        (found,) = detector.detect([picture])
        assert np.abs(found.landmarks[0] - landmarks).max() < 0.2 * eyes_to_mouth(landmarks)
        if head != face:
            changed = (picture != person(head)[0]).any(axis=2)
            x, y = landmarks.astype(int).T
            assert changed[y, x].all()
            assert changed.mean() < 0.25


def test_the_camera_compresses_what_it_sees():
    shot = Shot(3, ("hopper",), 128, 128, 3, crf=23, camera_crf=30)
    raw, recorded = (np.stack([frame for frame, _ in f(shot)]) for f in (perform, film))
    assert 0 < np.abs(raw.astype(int) - recorded).mean() < 10
    assert np.array_equal(recorded, [frame for frame, _ in film(shot)])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("n_frames", [1, 2, 5])
def test_any_codec_writes_short_films_and_the_same_bytes_again(codec, n_frames, tmp_path):
    frames = [np.roll(person("hopper")[0][100:356, 100:356], 9 * n, 1) for n in range(n_frames)]
    one, two = (tmp_path / name for name in ("one.mp4", "two.mp4"))
    for path in (one, two):
        write_video(path, frames, codec=codec, fps=25)
    assert one.read_bytes() == two.read_bytes()
    read = [frame for _, frame in iterate_frames(one, range(9))]
    assert all(np.abs(a.astype(int) - b).mean() < 8 for a, b in zip(read, frames, strict=True))


def test_the_publisher_adds_the_noise_that_the_shot_names(tmp_path):
    grey = np.full((128, 128, 3), 128, np.uint8)
    spreads = []
    for noise in (0.0, 3.0):
        shot = Shot(1, ("hopper",), 128, 128, 1, crf=0, noise=noise)
        sample.publish(tmp_path / "v.mp4", [grey], shot, seed=2, crf=0)
        ((_, frame),) = iterate_frames(tmp_path / "v.mp4", [0])
        spreads.append(frame[..., 1].std())
    assert spreads[0] == 0
    assert 2 < spreads[1] < 3.5  # yuv420p takes a part of the colours' noise


def test_a_moving_camera_blurs_along_its_way_and_nothing_else():
    dot = np.zeros((40, 80, 3), np.uint8)
    dot[20, 20] = 255
    still = np.eye(2, 3)
    moved = np.array([[1.0, 0, 30], [0, 1, 0]])
    seen = expose(dot, still, moved, (80, 40))[..., 0]
    rows, columns = np.nonzero(seen > 1)
    assert set(rows) == {20}
    assert set(columns) == set(range(20, 51))
    assert seen.sum() == pytest.approx(255, rel=0.1)
    assert np.array_equal(expose(dot, still, still, (80, 40)), dot)


@pytest.mark.parametrize("scale", [0.3, 0.6, 1.0])
def test_a_portrait_is_drawn_where_its_map_says(scale):
    y, x = np.mgrid[:200, :200]
    ramp, canvas = np.stack([x, y, x], axis=2), np.zeros((240, 240, 3), np.float32)
    draw_portrait(canvas, ramp.astype(np.float32), np.array([[scale, 0, 7.0], [0, scale, 5.0]]))
    column, row = np.round(np.array((100, 90)) * scale + (7, 5)).astype(int)
    expected = (column - 7) / scale, (row - 5) / scale
    assert canvas[row, column, :2] == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("method", sample.METHODS)
def test_only_the_face_is_falsified_and_a_crude_fake_is_softer_than_a_careful_one(method):
    shot = Shot(3, ("hopper", "collins-hopper"), 320, 240, 2, crf=23)
    filmed, grains = list(film(shot)), []
    for strength in (0, 1):
        made = list(sample.falsify(shot, filmed, sample.Fake(5, method, strength, 23)))
        for (frame, people), (fake, mask) in zip(filmed, made, strict=True):
            assert np.array_equal(frame[mask == 0], fake[mask == 0])
            y, x = np.nonzero(mask)
            size = eyes_to_mouth(people[0])
            assert np.hypot(*(people[0].mean(axis=0) - (x.mean(), y.mean()))) < size
        assert np.abs(frame[mask > 0].astype(int) - fake[mask > 0]).mean() > 0.5
        grains.append(np.abs(high_pass(fake)[mask > 128]).mean())
    assert grains[1] < 0.8 * grains[0]
