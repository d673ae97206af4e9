"""Find faces with MTCNN, at the size the slides ask for, and say who is who from frame to frame."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from dfdc_lib.config import SMALLEST_FACE, TRAIN_THRESHOLDS
from dfdc_lib.geometry import detector_scale
from dfdc_lib.jobs import count_cores

DETECT_AT_ONCE = 8  # frames per call: enough for two threads, in little memory
PATIENCE = 10  # frames in a row that a person can be out of sight without losing the number
# Bhattacharyya distance of two frames' colours that counts as a cut. Of 16 frames of a video of the
# sample, neighbours differ by less than 0.3; 9 in 10 pairs of its videos differ by more than 0.4.
# A false cut gives a person two numbers; a missed one mixes people up.
CUT = 0.4


class Faces(NamedTuple):
    """The faces of one frame, in its pixels, the most certain first."""

    boxes: np.ndarray  # (n, 4) float32: x0, y0, x1, y1
    scores: np.ndarray  # (n,) float32 in [0, 1]
    landmarks: np.ndarray  # (n, 5, 2) float32: eyes, nose, mouth corners; each left, then right

    def scaled(self, factor: float) -> "Faces":
        """Scale the faces to a frame `factor` times as large."""
        return Faces(self.boxes * factor, self.scores, self.landmarks * factor)


NOBODY = Faces(*(np.zeros((0, *shape), np.float32) for shape in ((4,), (), (5, 2))))


class FaceDetector:
    """MTCNN (Zhang et al. 2016) with facenet-pytorch's weights.

    thresholds: for P-, R- and O-Net. threads: OpenVINO's; 0 for all. device: "auto" takes a GPU if
    there is one. backend: "plain" is facenet-pytorch's own `detect`; "torch" and "openvino" (a CPU
    and the extra `cpu`) find the same faces faster; "auto" takes the faster.
    """

    def __init__(
        self,
        thresholds: Sequence[float] = TRAIN_THRESHOLDS,
        device: str = "auto",
        backend: str = "auto",
        threads: int = 0,
    ):
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._cascade: Any
        if backend == "plain":
            self._cascade = _PlainCascade(thresholds, device)
        else:
            from dfdc_lib.fast.mtcnn import Cascade

            self._cascade = Cascade(thresholds, device, backend, threads or count_cores())

    def detect(self, frames: Sequence[np.ndarray]) -> list[Faces]:
        """Find faces in frames (H, W, 3) uint8 RGB as they are; runs of equal size are faster."""
        found: list[Faces] = []
        for shape, equal in groupby(frames, np.shape):
            several = list(equal)
            large = min(shape[:2]) >= SMALLEST_FACE
            some = self._cascade.detect(several) if large else [NOBODY] * len(several)
            found += [Faces(*faces) for faces in some]
        return found

    def detect_resized(
        self, frames: Sequence[np.ndarray], procedure: str = "slides"
    ) -> list[Faces]:
        """Find faces after `resize_for_detection`; return them in pixels of the frames given."""
        found = self.detect([resize_for_detection(frame, procedure) for frame in frames])
        result = []
        for faces, frame in zip(found, frames, strict=True):
            size = frame.shape[1::-1]
            faces = faces.scaled(1 / _scale(size, procedure))
            # At an edge the detector may find a face that lies outside the frame.
            seen = (faces.boxes[:, :2] < np.subtract(size, 1)) & (faces.boxes[:, 2:] > 1)
            result.append(Faces(*(values[seen.all(axis=1)] for values in faces)))
        return result


class _PlainCascade:
    """Run facenet-pytorch's own `detect`, frame by frame."""

    def __init__(self, thresholds: Sequence[float], device: str):
        from facenet_pytorch import MTCNN

        chosen = {"keep_all": True, "select_largest": False}
        self._mtcnn = MTCNN(thresholds=list(thresholds), device=device, **chosen)

    def detect(self, frames: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, ...]]:
        for frame in frames:
            boxes, *more = self._mtcnn.detect(frame, landmarks=True)
            found = NOBODY if boxes is None else [boxes, *more]
            yield tuple(values.astype(np.float32) for values in found)


@cache
def shared_detector(thresholds: tuple[float, float, float], threads: int) -> FaceDetector:
    """Make a FaceDetector once per process, since that takes seconds."""
    return FaceDetector(thresholds, threads=threads)


def _scale(size: tuple[int, int], procedure: str) -> float:
    return {"slides": detector_scale(*size), "upstream": 0.5}[procedure]


def resize_for_detection(frame: np.ndarray, procedure: str = "slides") -> np.ndarray:
    """Resize a frame by the slides' rule, or halve it with Pillow, as upstream's code does."""
    if procedure == "upstream":
        half = [max(length // 2, 1) for length in frame.shape[1::-1]]
        return np.asarray(Image.fromarray(frame).resize(half))  # bicubic and antialiased
    scale = _scale(frame.shape[1::-1], procedure)
    if scale == 1:
        return frame
    size = [max(round(length * scale), 1) for length in frame.shape[1::-1]]
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def box_overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union (n, m) of boxes (n, 4) with others (m, 4)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    area = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    other_area = np.clip(others[:, 2:] - others[:, :2], 0, None).prod(axis=1)
    return shared / np.maximum(area[:, None] + other_area[None] - shared, 1e-9)


@dataclass
class _Person:
    """Where a person was last seen, and how fast the box moved."""

    face_idx: int
    box: np.ndarray  # (4,)
    seen_at: int
    # (4,), in the unit of boxes, per frame
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(4))

    def see(self, box: np.ndarray, frame_idx: int) -> None:
        shift = (box[:2] + box[2:] - self.box[:2] - self.box[2:]) / 2
        speed = np.tile(shift / (frame_idx - self.seen_at), 2)
        # Boxes jitter and cameras shake: keep most of the old velocity.
        self.velocity = 0.7 * self.velocity + 0.3 * speed if self.velocity.any() else speed
        self.box, self.seen_at = box, frame_idx


class FaceLinker:
    """Gives the same person the same number from frame to frame.

    It expects each person where the last movement leads, and pairs people and faces by the largest
    total overlap (Hungarian method). People who cross, or are unseen for up to PATIENCE frames,
    keep their numbers. Only boxes count: two who meet and turn back swap numbers, and whoever is in
    the same place after a cut is taken for the same person, unless `notice_cut` sees every frame.
    """

    def __init__(self) -> None:
        self._people: list[_Person] = []
        self._recent: deque[int] = deque(maxlen=PATIENCE + 1)
        self._colours: np.ndarray | None = None  # of the last frame

    def notice_cut(self, frame: np.ndarray) -> None:
        """Forget everyone if this frame, the next one, has quite different colours: a cut."""
        small = cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA)
        colours = cv2.calcHist([small], [0, 1, 2], None, [8, 8, 8], [0, 256] * 3)
        last, self._colours = self._colours, colours
        if last is not None and cv2.compareHist(last, colours, cv2.HISTCMP_BHATTACHARYYA) > CUT:
            self._recent.clear()

    def link(self, faces: Faces, frame_idx: int) -> np.ndarray:
        """Return face_idx (n,) int for the faces of the next frame; frames must come in order."""
        oldest = self._recent[0] if self._recent else frame_idx
        known = [person for person in self._people if person.seen_at >= oldest]
        pairs = _match(faces.boxes, known, frame_idx)
        seen = []
        for face, box in enumerate(faces.boxes):
            if face in pairs:
                person = known[pairs[face]]
                person.see(box, frame_idx)
            else:
                person = _Person(len(self._people), box, frame_idx)
                self._people.append(person)
            seen.append(person.face_idx)
        self._recent.append(frame_idx)
        return np.array(seen, dtype=int)


def _match(boxes: np.ndarray, people: list[_Person], frame_idx: int) -> dict[int, int]:
    """Pair faces with people who overlap: face → person."""
    if not people:
        return {}
    expected = np.array([p.box + p.velocity * (frame_idx - p.seen_at) for p in people])
    last = np.array([person.box for person in people])
    near, wide = _grown(boxes, 0.25), _grown(boxes, 1)
    overlaps = [
        box_overlap(boxes, expected),
        box_overlap(near, _grown(expected, 0.25)),  # the guess was a little off
        box_overlap(near, _grown(last, 0.25)),  # the person stopped or turned
        box_overlap(wide, _grown(last, 1)),  # the camera jerked: at most about two boxes away
    ]
    likely = np.tensordot((1, 0.2, 0.1, 0.05), overlaps, 1)  # (n, m)
    likely[np.max(overlaps, axis=0) < 0.1] = 0
    pairs = zip(*linear_sum_assignment(-likely), strict=True)
    return {face: person for face, person in pairs if likely[face, person]}


def _grown(boxes: np.ndarray, share: float) -> np.ndarray:
    """Grow boxes (n, 4) by a share of their size on each side."""
    pad = (boxes[:, 2:] - boxes[:, :2]) * share
    return np.concatenate([boxes[:, :2] - pad, boxes[:, 2:] + pad], axis=1)
