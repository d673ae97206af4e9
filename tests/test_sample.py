import json
from collections import Counter
from dataclasses import replace

import av
import numpy as np
import pytest

from dfdc_lib.faces import FaceDetector
from dfdc_lib.geometry import detector_scale
from dfdc_lib.metadata import read_metadata
from dfdc_lib.rehearsal import sample
from dfdc_lib.video import iterate_frames, probe

PLAN = sample.plan(4, 16, 48, 0)
SHOTS = [shot for _, shot, _ in PLAN]


def test_the_plan_has_the_promised_variety():
    fakes = [fake for *_, several in PLAN for fake in several]
    assert (len(PLAN), len(fakes)) == (64, 128)
    assert {part for part, *_ in PLAN} == {0, 1, 2, 3}
    assert {detector_scale(s.width, s.height) for s in SHOTS} == {2.0, 1.0, 0.5, 0.33}
    assert sum(len(s.identities) == 2 for s in SHOTS) == 2
    assert sum(s.leaves_frame for s in SHOTS) == 1
    assert {fake.method for fake in fakes} == {"swap", "mouth", "rewarp"}
    strengths = [fake.strength for fake in fakes]
    assert (min(strengths), max(strengths)) == (0, 1)
    real, false = [shot.crf for shot in SHOTS], [fake.crf for fake in fakes]
    assert abs(np.mean(real) - np.mean(false)) < 3 * np.std(real) / np.sqrt(len(real))


@pytest.mark.parametrize("part", range(4))
def test_within_each_part_no_face_is_more_often_fake(part):
    seen = Counter()
    for _, shot, fakes in (group for group in PLAN if group[0] == part):
        seen[False, sample.identity_seen({"shot": vars(shot)})] += 1
        for fake in fakes:
            seen[True, sample.identity_seen({"shot": vars(shot), "fake": vars(fake)})] += 1
    assert seen[False, "collins"] == seen[False, "hopper"]
    assert seen[True, "collins"] == seen[True, "hopper"]


def test_layout_is_the_data_sets_own(small_sample):
    entries = json.loads((small_sample / "dfdc_train_part_1" / "metadata.json").read_text())
    assert all(set(e) == {"label", "split", "original"} for e in entries.values())
    table = read_metadata(small_sample)
    assert table.label.value_counts().to_dict() == {0: 4, 1: 8}
    infos = {row.video_id: probe(small_sample / row.file) for row in table.itertuples()}
    assert all(infos[row.video_id] == infos[row.original_id] for row in table.itertuples())
    assert len(list(iterate_frames(small_sample / table.file[0], range(100)))) == 12
    with av.open(str(small_sample / table.file[0])) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_pairs_are_aligned_and_differ_where_the_mask_says():
    _, shot, fakes = next(g for g in PLAN if g[1].width == 400)
    filmed = list(sample.film(replace(shot, n_frames=3)))
    for fake in fakes:
        for (frame, _), (picture, mask) in zip(filmed, sample.falsify(filmed, fake), strict=True):
            assert picture.shape == frame.shape
            assert np.array_equal(picture[mask == 0], frame[mask == 0])
            assert 0.005 < (mask > 0).mean() < 0.4


def test_the_same_seed_gives_the_same_frames():
    shot = replace(SHOTS[5], n_frames=2)
    first, second = ([frame for frame, _ in sample.film(shot)] for _ in range(2))
    assert np.array_equal(first, second)
    other = next(sample.film(replace(shot, seed=shot.seed + 1)))[0]
    assert not np.array_equal(first[0], other)


def test_landmarks_follow_the_face():
    """The sample's landmarks are where the detector finds them, frame after frame."""
    shot = next(s for s in SHOTS if s.width == 640 and len(s.identities) == 1)
    filmed = list(sample.film(shot))[::16]
    found = FaceDetector().detect([frame for frame, _ in filmed])
    for (_, people), faces in zip(filmed, found, strict=True):
        size = sample.eyes_to_mouth(people[0].landmarks)
        assert np.abs(people[0].landmarks - faces.landmarks[0]).max() < 0.3 * size


def test_the_face_that_leaves_really_leaves():
    shot = next(s for s in SHOTS if s.leaves_frame)
    nose_x = [people[0].landmarks[2, 0] for _, people in sample.film(shot)]
    assert min(nose_x) < shot.width < max(nose_x) - 10


def test_a_sample_that_stands_is_kept_and_anything_else_is_never_replaced(small_sample, tmp_path):
    before = (small_sample / "sample.json").stat().st_mtime_ns
    sample.make_sample(small_sample, n_parts=2, originals_per_part=2, n_frames=12)
    assert (small_sample / "sample.json").stat().st_mtime_ns == before
    (tmp_path / "holiday.mp4").write_text("precious")
    with pytest.raises(FileExistsError, match="something else"):
        sample.make_sample(tmp_path)
    assert (tmp_path / "holiday.mp4").read_text() == "precious"
