import json
from collections import Counter

import av
import numpy as np
import pytest

from dfdc_lib.faces import FaceDetector
from dfdc_lib.geometry import detector_scale
from dfdc_lib.metadata import read_metadata
from dfdc_lib.rehearsal import sample
from dfdc_lib.rehearsal.film import CODECS, Shot, film, stage
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
    assert abs(np.mean(real) - np.mean(false)) < 3 * np.std(real) / np.sqrt(len(real))


@pytest.mark.parametrize("part", range(4))
def test_within_each_part_no_face_is_more_often_fake(part):
    seen = Counter()
    for _, shot, fakes in (group for group in PLAN if group[0] == part):
        for recipe in ({}, *({"fake": vars(fake)} for fake in fakes)):
            seen["fake" in recipe, identity_seen(recipe | {"shot": vars(shot)})] += 1
    for is_fake in (False, True):
        assert len({seen[is_fake, identity] for identity in PEOPLE}) == 1


def test_layout_is_the_data_sets_own(small_sample):
    entries = json.loads((small_sample / "dfdc_train_part_1" / "metadata.json").read_text())
    assert all(set(e) == {"label", "split", "original"} for e in entries.values())
    table = read_metadata(small_sample)
    assert table.label.value_counts().to_dict() == {0: 4, 1: 8}
    infos = {row.video_id: probe(small_sample / row.file) for row in table.itertuples()}
    assert all(infos[row.video_id] == infos[row.original_id] for row in table.itertuples())
    assert len(list(iterate_frames(small_sample / table.file[0], range(100)))) == 12
    with av.open(str(small_sample / table.file[0])) as container:
        assert container.streams.video[0].codec_context.name in CODECS


def test_landmarks_follow_the_face():
    """The sample's landmarks are where the detector finds them, frame after frame."""
    shot = next(s for s in SHOTS if s.width == 640 and len(s.identities) == 1)
    frames, people = zip(*list(film(shot))[::16], strict=True)
    for (landmarks,), faces in zip(people, FaceDetector().detect(list(frames)), strict=True):
        size = sample.eyes_to_mouth(landmarks)
        assert np.abs(landmarks - faces.landmarks[0]).max() < 0.3 * size


def test_the_face_that_leaves_really_leaves():
    shot = next(s for s in SHOTS if s.leaves_frame)
    nose_x = [landmarks[2, 0] for _, (landmarks,) in stage(shot)]
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
        assert np.abs(found.landmarks[0] - landmarks).max() < 0.2 * sample.eyes_to_mouth(landmarks)
        if head != face:
            changed = (picture != person(head)[0]).any(axis=2)
            x, y = landmarks.astype(int).T
            assert changed[y, x].all()
            assert changed.mean() < 0.25


def test_the_camera_compresses_what_it_sees():
    shot = Shot(3, ("hopper",), 128, 128, 3, crf=23, camera_crf=30)
    raw, recorded = (np.stack([frame for frame, _ in f(shot)]) for f in (stage, film))
    assert 0 < np.abs(raw.astype(int) - recorded).mean() < 10
    assert all(
        np.array_equal(*pair) for pair in zip(recorded, (f for f, _ in film(shot)), strict=True)
    )


@pytest.mark.parametrize("method", sample.METHODS)
def test_only_the_face_is_falsified_and_the_cruder_the_more(method):
    shot = Shot(3, ("collins-hopper", "hopper"), 320, 240, 2, crf=23)
    filmed, changes = list(film(shot)), []
    for strength in (0, 1):
        made = list(sample.falsify(shot, filmed, sample.Fake(5, method, strength, 23)))
        for (frame, people), (fake, mask) in zip(filmed, made, strict=True):
            assert np.array_equal(frame[mask == 0], fake[mask == 0])
            y, x = np.nonzero(mask)
            size = sample.eyes_to_mouth(people[0])
            assert np.hypot(*(people[0].mean(axis=0) - (x.mean(), y.mean()))) < size
        changes.append(np.abs(frame[mask > 0].astype(int) - fake[mask > 0]).mean())
    assert changes[0] > 0.5
    assert changes[1] > changes[0] or method in ("swap", "autoencoder")
