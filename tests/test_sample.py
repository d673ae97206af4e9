import json
from collections import Counter

import av
import numpy as np
import pytest

from dfdc_lib import sample
from dfdc_lib.faces import FaceDetector
from dfdc_lib.geometry import detector_scale
from dfdc_lib.metadata import read_metadata
from dfdc_lib.video import iterate_frames, probe

PLAN = sample.plan(4, 16, 48, 0)


def test_the_plan_has_the_promised_variety():
    shots = [shot for _, shot, _ in PLAN]
    assert len(PLAN) == 64
    assert sum(len(fakes) for *_, fakes in PLAN) == 128
    assert {part for part, *_ in PLAN} == {0, 1, 2, 3}
    assert {detector_scale(s.width, s.height) for s in shots} == {2.0, 1.0, 0.5, 0.33}
    assert sum(len(s.identities) == 2 for s in shots) == 2
    assert sum(s.leaves_frame for s in shots) == 1
    assert {f.method for *_, fakes in PLAN for f in fakes} == {"swap", "mouth", "rewarp"}
    strengths = [f.strength for *_, fakes in PLAN for f in fakes]
    assert min(strengths) == 0
    assert max(strengths) == 1


@pytest.mark.parametrize("part", range(4))
def test_within_each_part_no_face_is_more_often_fake(part):
    seen = Counter()
    for p, shot, fakes in PLAN:
        if p == part:
            for recipe in ({"shot": vars(shot)}, *({"shot": vars(shot), "fake": vars(f)} for f in fakes)):
                seen["fake" in recipe, sample.identity_seen(recipe)] += 1
    assert seen[False, "collins"] == seen[False, "hopper"]
    assert seen[True, "collins"] == seen[True, "hopper"]


def test_quality_is_drawn_without_regard_to_the_label():
    real = [shot.crf for _, shot, _ in PLAN]
    fake = [f.crf for *_, fakes in PLAN for f in fakes]
    assert abs(np.mean(real) - np.mean(fake)) < 3 * np.std(real) / np.sqrt(len(real))


def test_layout_is_the_data_sets_own(small_sample):
    entries = json.loads((small_sample / "dfdc_train_part_1" / "metadata.json").read_text())
    assert all(set(e) == {"label", "split", "original"} for e in entries.values())
    table = read_metadata(small_sample)
    assert len(table) == 12
    assert table.label.sum() == 8
    assert all((small_sample / file).exists() for file in table.file)
    with av.open(str(small_sample / table.file[0])) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_pairs_are_aligned_and_differ_where_the_mask_says():
    _, shot, fakes = next(g for g in PLAN if g[1].width == 400)
    filmed = list(sample.film(sample.replace(shot, n_frames=3)))
    for fake in fakes:
        for (frame, _), (picture, mask) in zip(filmed, sample.falsify(filmed, fake), strict=True):
            assert picture.shape == frame.shape
            assert np.array_equal(picture[mask == 0], frame[mask == 0])
            assert 0.005 < (mask > 0).mean() < 0.4


def test_the_same_seed_gives_the_same_frames():
    _, shot, _ = PLAN[5]
    shot = sample.replace(shot, n_frames=2)
    first, second = ([frame for frame, _ in sample.film(shot)] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    other = next(sample.film(sample.replace(shot, seed=shot.seed + 1)))[0]
    assert not np.array_equal(first[0], other)


def test_landmarks_follow_the_face():
    """The places that the sample claims are those that the detector finds, frame after frame."""
    _, shot, _ = next(g for g in PLAN if g[1].width == 640 and len(g[1].identities) == 1)
    filmed = list(sample.film(shot))[::16]
    found = FaceDetector().detect([frame for frame, _ in filmed])
    for (_, people), faces in zip(filmed, found, strict=True):
        size = sample.eyes_to_mouth(people[0].landmarks)
        assert np.abs(people[0].landmarks - faces.landmarks[0]).max() < 0.3 * size


def test_the_face_that_leaves_really_leaves():
    _, shot, _ = next(g for g in PLAN if g[1].leaves_frame)
    nose_x = [people[0].landmarks[2, 0] for _, people in sample.film(shot)]
    assert max(nose_x) > shot.width + 10
    assert min(nose_x) < shot.width


def test_a_sample_that_stands_is_kept(small_sample):
    before = (small_sample / "sample.json").stat().st_mtime_ns
    sample.make_sample(small_sample, n_parts=2, originals_per_part=2, n_frames=12)
    assert (small_sample / "sample.json").stat().st_mtime_ns == before


def test_somebody_elses_folder_is_never_replaced(tmp_path):
    (tmp_path / "holiday.mp4").write_text("precious")
    with pytest.raises(FileExistsError, match="something else"):
        sample.make_sample(tmp_path)
    assert (tmp_path / "holiday.mp4").read_text() == "precious"


def test_frames_of_a_pair_share_size_and_number(small_sample):
    table = read_metadata(small_sample)
    infos = {row.video_id: probe(small_sample / row.file) for row in table.itertuples()}
    assert all(infos[row.video_id] == infos[row.original_id] for row in table.itertuples())
    file = table.file[0]
    assert len(list(iterate_frames(small_sample / file, range(100)))) == 12
