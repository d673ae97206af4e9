import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from facenet_pytorch import MTCNN
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dfdc_lib.config import TRAIN_THRESHOLDS
from dfdc_lib.faces import FaceDetector, FaceLinker, Faces, box_overlap, resize_for_detection
from dfdc_lib.geometry import detector_scale
from dfdc_lib.rehearsal import sample
from dfdc_lib.rehearsal.people import LANDMARKS, portrait


@pytest.fixture(scope="module")
def detector():
    return FaceDetector()


@pytest.fixture(scope="module")
def peer():
    return MTCNN(keep_all=True, thresholds=list(TRAIN_THRESHOLDS))


def test_the_plain_detector_needs_nothing_of_the_wing():
    code = (
        "import numpy, sys; sys.modules['dfdc_lib.fast'] = None; from dfdc_lib import faces;"
        "found = faces.FaceDetector(backend='plain').detect([numpy.zeros((40, 40, 3), 'uint8')]);"
        "assert len(found[0].boxes) == 0 and 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("width", [200, 512, 1400, 2000])
def test_resized_detection_answers_in_the_frames_own_pixels(detector, peer, width):
    """What the peer finds in the resized frame, put back by hand."""
    frame = cv2.resize(portrait("hopper"), (width, round(600 * width / 512)))
    (faces,) = detector.detect_resized([frame])
    scale = detector_scale(*frame.shape[1::-1])
    boxes, _, landmarks = peer.detect(resize_for_detection(frame), landmarks=True)
    assert faces.boxes == pytest.approx(boxes.astype(float) / scale, abs=0.02)
    assert faces.landmarks == pytest.approx(landmarks.astype(float) / scale, abs=0.02)
    assert np.abs(faces.landmarks[0] * 512 / width - LANDMARKS["hopper"]).max() < 12


def test_overlap_by_hand():
    boxes = np.array([[0, 0, 10, 10]], float)
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], float)
    assert box_overlap(boxes, others)[0] == pytest.approx([1, 1 / 3, 0])


def faces_at(*lefts: float) -> Faces:
    boxes = np.array([[x, 0, x + 50, 50] for x in lefts], np.float32).reshape(-1, 4)
    return Faces(boxes, np.ones(len(lefts), np.float32), np.zeros((len(lefts), 5, 2), np.float32))


def link(*frames: Faces) -> list[list[int]]:
    """The numbers of the faces in frames 0, 10, 20, …"""
    linker = FaceLinker()
    return [linker.link(faces, 10 * i).tolist() for i, faces in enumerate(frames)]


CROSSING = [(20 * i, 300 - 20 * i)[: 1 if 6 <= i < 10 else 2] for i in range(16)]


@pytest.mark.parametrize(
    ("lefts", "numbers"),
    [
        ([(0, 100), (105, 4), (), (8,), (110, 10, 300)], [[0, 1], [1, 0], [], [0], [1, 0, 2]]),
        (CROSSING, [[0] if 6 <= i < 10 else [0, 1] for i in range(16)]),
        ([(40,), *[()] * 10, (40,)], [[0], *[[]] * 10, [0]]),
        ([(40,), *[()] * 11, (40,)], [[0], *[[]] * 11, [1]]),
    ],
    ids=["in any order", "two cross, and one hides the other", "missed", "gone for long"],
)
def test_a_person_keeps_the_number(lefts, numbers):
    assert link(*(faces_at(*places) for places in lefts)) == numbers


@given(st.permutations(range(3)), st.floats(-8, 8), st.floats(-8, 8))
def test_the_order_in_which_faces_are_found_does_not_matter(order, dx, dy):
    lefts = np.array([0.0, 120.0, 240.0])
    path = [faces_at(*(lefts + i * np.array([dx, dy, 0]))) for i in range(6)]
    mixed = [Faces(*(values[list(order)] for values in faces)) for faces in path[1:]]
    for plain, shuffled in zip(link(*path)[1:], link(path[0], *mixed)[1:], strict=True):
        assert [plain[k] for k in order] == shuffled


@given(st.lists(st.lists(st.floats(0, 500), max_size=4), max_size=6))
def test_no_two_faces_of_a_frame_share_a_number(frames):
    for numbers in link(*[faces_at(*lefts) for lefts in frames]):
        assert len(set(numbers)) == len(numbers)


SHOTS = [shot for _, shot, _ in sample.plan(4, 16, 48, 0)]
SHOTS = [shot for shot in SHOTS if len(shot.identities) == 2 or shot.leaves_frame]
SHOTS = [replace(shot, n_frames=shot.n_frames // 2) for shot in SHOTS]  # all goes twice as fast


@pytest.mark.parametrize("shot", SHOTS, ids=["two people", "leaves the frame", "two people cross"])
def test_people_in_the_sample_keep_their_face_idx(detector, shot):
    """Each number belongs to one person, and each person has one, at every 5th frame."""
    filmed = list(sample.film(shot))
    numbers = range(0, len(filmed), 5)
    found = detector.detect_resized([filmed[i][0] for i in numbers])
    owners: list[set] = [set() for _ in shot.identities]
    for frame_idx, faces, face_idx in zip(numbers, found, link(*found), strict=True):
        people = filmed[frame_idx][1]
        places = np.array([landmarks.mean(axis=0) for landmarks in people])
        apart = np.hypot(*(places[0] - places[-1])) if len(people) > 1 else np.inf
        for box, number in zip(faces.boxes, face_idx, strict=True):
            if apart > box[2] - box[0]:  # otherwise nobody can say whose box it is
                nearest = np.hypot(*(places - (box[:2] + box[2:]) / 2).T).argmin()
                owners[nearest].add(number)
    assert sorted(map(sorted, owners)) == [[i] for i in range(len(people))]


@pytest.mark.parametrize("size", [(640, 481), (1281, 721)])
def test_the_detectors_input_follows_a_named_procedure(size):
    """Upstream: half of the frame by Pillow, cut to whole pixels. The slides: by the wider side."""
    frame = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    half_size = size[0] // 2, size[1] // 2
    half = Image.fromarray(frame).resize(half_size, Image.Resampling.BICUBIC)
    assert np.array_equal(resize_for_detection(frame, "upstream"), np.asarray(half))
    scale = detector_scale(*size)
    assert resize_for_detection(frame).shape[:2] == (round(size[1] * scale), round(size[0] * scale))
    with pytest.raises(KeyError):
        resize_for_detection(frame, "half")
