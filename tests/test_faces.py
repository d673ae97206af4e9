import numpy as np
import pytest
from facenet_pytorch import MTCNN
from hypothesis import given
from hypothesis import strategies as st

from dfdc_lib.config import TRAIN_THRESHOLDS
from dfdc_lib.faces import FaceDetector, Faces, box_overlap, link_faces
from dfdc_lib.sample import LANDMARKS, portrait


@pytest.fixture(scope="module")
def detector():
    return FaceDetector()


def test_boxes_and_landmarks_are_the_peers(detector):
    peer = MTCNN(keep_all=True, thresholds=list(TRAIN_THRESHOLDS))
    for name in ("collins", "hopper"):
        faces = detector.detect([portrait(name)])[0]
        boxes, scores, landmarks = peer.detect(portrait(name), landmarks=True)
        assert faces.boxes == pytest.approx(boxes.astype(np.float32))
        assert faces.scores == pytest.approx(scores.astype(np.float32))
        assert faces.landmarks == pytest.approx(landmarks.astype(np.float32))
        assert np.abs(faces.landmarks[0] - LANDMARKS[name]).max() < 1


@pytest.mark.parametrize("width", [200, 512, 1400, 2000])
def test_resized_detection_answers_in_the_frames_own_pixels(detector, width):
    import cv2

    frame = cv2.resize(portrait("hopper"), (width, round(600 * width / 512)))
    faces = detector.detect_resized([frame])[0]
    assert len(faces.boxes) == 1
    assert np.abs(faces.landmarks[0] * 512 / width - LANDMARKS["hopper"]).max() < 12


def test_no_face_is_an_empty_answer(detector):
    faces = detector.detect([np.full((120, 160, 3), 127, np.uint8)])[0]
    assert faces.boxes.shape == (0, 4)
    assert faces.landmarks.shape == (0, 5, 2)


def test_overlap_by_hand():
    boxes = np.array([[0, 0, 10, 10]], float)
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], float)
    assert box_overlap(boxes, others)[0] == pytest.approx([1, 1 / 3, 0])


def faces_at(*lefts: float) -> Faces:
    boxes = np.array([[x, 0, x + 50, 50] for x in lefts], np.float32).reshape(-1, 4)
    return Faces(boxes, np.ones(len(lefts), np.float32), np.zeros((len(lefts), 5, 2), np.float32))


def test_a_person_keeps_the_number_whatever_the_order():
    linked = link_faces([faces_at(0, 100), faces_at(105, 4), faces_at(), faces_at(8), faces_at(110, 10, 300)])
    assert [numbers.tolist() for numbers in linked] == [[0, 1], [1, 0], [], [0], [1, 0, 2]]


@given(st.lists(st.lists(st.floats(0, 500), max_size=4), max_size=6))
def test_no_two_faces_of_a_frame_share_a_number(frames):
    for numbers in link_faces([faces_at(*lefts) for lefts in frames]):
        assert len(set(numbers.tolist())) == len(numbers)
        assert (numbers >= 0).all()
