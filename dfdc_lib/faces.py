"""Find faces: MTCNN at the size that the slides' rule asks for, and who is who from frame to frame."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from dfdc_lib.config import TRAIN_THRESHOLDS
from dfdc_lib.geometry import detector_scale
from dfdc_lib.tasks import count_cores


class Faces(NamedTuple):
    """The faces of one frame, most certain first, in pixels of that frame."""

    boxes: np.ndarray  # (n, 4) float32: x0, y0, x1, y1
    scores: np.ndarray  # (n,) float32 in [0, 1]
    landmarks: np.ndarray  # (n, 5, 2) float32: left eye, right eye, nose, left and right mouth corner

    def scaled(self, factor: float) -> "Faces":
        """The same faces in a frame that is `factor` times as large."""
        return Faces(self.boxes * factor, self.scores, self.landmarks * factor)


DETECT_AT_ONCE = 8  # frames to give a detector together: two threads' worth, and still not much memory


class FaceDetector:
    """MTCNN (Zhang et al. 2016), with facenet-pytorch's networks: its wheel carries the weights, no download.

    thresholds: one a stage (P-, R-, O-Net). device: "auto" takes a GPU where there is one. backend: "torch";
    "openvino" for a CPU (the extra `cpu`); "auto" takes the faster one that is there. threads: of OpenVINO's, 0 for
    one a core. All of them find the boxes that facenet-pytorch's own `detect` finds.
    """

    def __init__(self, thresholds=TRAIN_THRESHOLDS, device: str = "auto", backend: str = "auto", threads: int = 0):
        import torch

        from dfdc_lib.mtcnn import Cascade

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._cascade = Cascade(thresholds, device, backend, threads or count_cores())

    def detect(self, frames) -> list[Faces]:
        """Find the faces in each frame, at the frame's own size. frames: (N, H, W, 3) uint8 RGB, or a list of such.

        Frames of equal size that follow each other are looked at together, and 4 or more at once are faster than one.
        """
        return [Faces(*found) for _, equal in groupby(frames, np.shape) for found in self._cascade.detect(list(equal))]

    def detect_resized(self, frames, procedure: str = "slides") -> list[Faces]:
        """Find faces at the size that `resize_for_detection` gives; boxes and landmarks in pixels of the frames.

        A face that lies outside the frame (the detector may guess so at its edge) is left out: nothing of it is seen.
        """
        sizes = [frame.shape[1::-1] for frame in frames]
        scales = [_scale(size, procedure) for size in sizes]
        found = self.detect([resize_for_detection(frame, procedure) for frame in frames])
        return [
            _inside(faces.scaled(1 / scale), *size) for faces, scale, size in zip(found, scales, sizes, strict=True)
        ]


@cache
def shared_detector(thresholds: tuple[float, float, float], threads: int) -> FaceDetector:
    """A detector that is made once a process, since that takes seconds. The arguments: as FaceDetector's."""
    return FaceDetector(thresholds, threads=threads)


def _scale(size: tuple[int, int], procedure: str) -> float:
    return {"slides": detector_scale(*size), "upstream": 0.5}[procedure]


def resize_for_detection(frame: np.ndarray, procedure: str = "slides") -> np.ndarray:
    """A frame at the size of the slides' rule, or halved by Pillow as upstream's code does (see config.PROCEDURES)."""
    if procedure == "upstream":
        half = [max(length // 2, 1) for length in frame.shape[1::-1]]
        return np.asarray(Image.fromarray(frame).resize(half))  # bicubic and antialiased
    scale = _scale(frame.shape[1::-1], procedure)
    if scale == 1:
        return frame
    size = [max(round(length * scale), 1) for length in frame.shape[1::-1]]
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _inside(faces: Faces, width: int, height: int) -> Faces:
    seen = (faces.boxes[:, :2] < (width - 1, height - 1)).all(1) & (faces.boxes[:, 2:] > 1).all(1)
    return Faces(*(values[seen] for values in faces))


def box_overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of every box (n, 4) with every other (m, 4): (n, m) in [0, 1]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    area = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    other_area = np.clip(others[:, 2:] - others[:, :2], 0, None).prod(axis=1)
    return shared / np.maximum(area[:, None] + other_area[None] - shared, 1e-9)


@dataclass
class _Person:
    """Where somebody was last seen, and how fast the box moved then (pixels a frame)."""

    box: np.ndarray  # (4,)
    seen_at: int
    velocity: np.ndarray  # (4,): one shift for all four sides

    def expect(self, frame_idx: int) -> np.ndarray:
        """The box, had the person gone on as before."""
        return self.box + self.velocity * (frame_idx - self.seen_at)

    def see(self, box: np.ndarray, frame_idx: int) -> None:
        shift = (box[:2] + box[2:] - self.box[:2] - self.box[2:]) / 2
        speed = np.tile(shift / (frame_idx - self.seen_at), 2)
        # A detector's boxes tremble, and so does a hand with a camera: most of what was known is kept.
        self.velocity = 0.7 * self.velocity + 0.3 * speed if self.velocity.any() else speed
        self.box, self.seen_at = box, frame_idx


class FaceLinker:
    """Says who is who from frame to frame: the same number for the same person.

    Each person is expected where the last movement leads; the pairing of people and faces with the largest total
    overlap wins (the Hungarian method). So two people who cross keep their numbers, and one who is not found for up
    to `patience` frames does too. Whom nobody overlaps is somebody new. Only boxes are compared: two who meet behind
    each other and turn back are taken to have crossed, and after a cut the next person in the same place is taken for
    the same.
    """

    def __init__(self, patience: int = 10):
        self._people: list[_Person] = []
        self._recent: deque[int] = deque(maxlen=patience + 1)

    def link(self, faces: Faces, frame_idx: int) -> np.ndarray:
        """The face_idx (n,) int of the faces of the next frame; frames come in rising order."""
        people = self._people
        oldest = self._recent[0] if self._recent else frame_idx
        known = [number for number, person in enumerate(people) if person.seen_at >= oldest]
        face_idx = np.full(len(faces.boxes), -1)
        for face, number in _match(faces.boxes, [people[number] for number in known], frame_idx):
            face_idx[face] = known[number]
            people[known[number]].see(faces.boxes[face], frame_idx)
        for face in np.flatnonzero(face_idx < 0):
            face_idx[face] = len(people)
            people.append(_Person(faces.boxes[face], frame_idx, np.zeros(4)))
        self._recent.append(frame_idx)
        return face_idx


def link_faces(frames: Sequence[Faces], numbers: Sequence[int], patience: int = 10) -> list[np.ndarray]:
    """The face_idx (n,) of the faces of each frame, by a `FaceLinker`. numbers: the frame_idx of each, rising."""
    linker = FaceLinker(patience)
    return [linker.link(faces, frame_idx) for faces, frame_idx in zip(frames, numbers, strict=True)]


def _match(boxes: np.ndarray, people: list[_Person], frame_idx: int, least: float = 0.1) -> list[tuple[int, int]]:
    """Pairs (face, person) of the best assignment, each with some overlap."""
    if not people or not len(boxes):
        return []
    expected = np.array([person.expect(frame_idx) for person in people])
    last = np.array([person.box for person in people])
    overlaps = np.stack(
        [
            box_overlap(boxes, expected),
            box_overlap(_grown(boxes, 0.25), _grown(expected, 0.25)),  # the guess was a little off
            box_overlap(_grown(boxes, 0.25), _grown(last, 0.25)),  # the person stopped or turned
            box_overlap(_grown(boxes, 1), _grown(last, 1)),  # the camera jerked: at most about two boxes away
        ]
    )  # (4, n, m)
    likely = np.where(overlaps.max(axis=0) >= least, np.tensordot((1, 0.2, 0.1, 0.05), overlaps, 1), 0)
    return [
        (face, person) for face, person in zip(*linear_sum_assignment(-likely), strict=True) if likely[face, person]
    ]


def _grown(boxes: np.ndarray, share: float) -> np.ndarray:
    """Boxes (n, 4) grown by a share of their size on each side."""
    pad = (boxes[:, 2:] - boxes[:, :2]) * share
    return np.concatenate([boxes[:, :2] - pad, boxes[:, 2:] + pad], axis=1)
