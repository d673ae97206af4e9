"""Find faces: MTCNN at the size that the slides' rule asks for, and who is who from frame to frame."""

from typing import NamedTuple

import cv2
import numpy as np

from dfdc_lib.config import TRAIN_THRESHOLDS
from dfdc_lib.geometry import detector_scale


class Faces(NamedTuple):
    """The faces of one frame, most certain first, in pixels of that frame."""

    boxes: np.ndarray  # (n, 4) float32: x0, y0, x1, y1
    scores: np.ndarray  # (n,) float32 in [0, 1]
    landmarks: np.ndarray  # (n, 5, 2) float32: left eye, right eye, nose, left and right mouth corner

    def scaled(self, factor: float) -> "Faces":
        """The same faces in a frame that is `factor` times as large."""
        return Faces(self.boxes * factor, self.scores, self.landmarks * factor)


class FaceDetector:
    """MTCNN (Zhang et al. 2016) by facenet-pytorch, whose wheel carries the weights: no download.

    thresholds: one a stage (P-, R-, O-Net). device: "auto" takes a GPU where there is one. backend: "torch".
    """

    def __init__(self, thresholds=TRAIN_THRESHOLDS, device: str = "auto", backend: str = "auto"):
        import torch
        from facenet_pytorch import MTCNN

        if backend not in ("auto", "torch"):
            raise ValueError(f"backend must be auto or torch, got {backend!r}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._mtcnn = MTCNN(keep_all=True, thresholds=list(thresholds), device=device)

    def detect(self, frames) -> list[Faces]:
        """Find the faces in each frame, at the frame's own size. frames: (N, H, W, 3) uint8 RGB, or a list of such."""
        return [self._detect_one(frame) for frame in frames]

    def _detect_one(self, frame: np.ndarray) -> Faces:
        boxes, scores, landmarks = self._mtcnn.detect(frame, landmarks=True)
        if boxes is None:
            return Faces(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))
        order = np.argsort(-scores.astype(np.float32), kind="stable")
        return Faces(*(np.asarray(a, np.float32)[order] for a in (boxes, scores, landmarks)))

    def detect_resized(self, frames) -> list[Faces]:
        """Find faces at the size of the slides' rule; boxes and landmarks come back in pixels of the frames given."""
        found = []
        for frame in frames:
            height, width = frame.shape[:2]
            scale = detector_scale(width, height)
            size = (round(width * scale), round(height * scale))
            resized = (
                frame
                if scale == 1
                else cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
            )
            found.append(self.detect([resized])[0].scaled(1 / scale))
        return found


def box_overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of every box (n, 4) with every other (m, 4): (n, m) in [0, 1]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    area = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)
    other_area = np.clip(others[:, 2:] - others[:, :2], 0, None).prod(axis=1)
    return shared / np.maximum(area[:, None] + other_area[None] - shared, 1e-9)


def link_faces(frames: list[Faces], least_overlap: float = 0.1) -> list[np.ndarray]:
    """Say who is who: for each frame the face_idx (n,) int of its faces, the same number for the same person.

    A face takes the number of the person whose last box it overlaps most; a face that overlaps nobody is somebody new.
    """
    last_boxes: list[np.ndarray] = []
    linked = []
    for faces in frames:
        numbers = np.full(len(faces.boxes), -1)
        if last_boxes and len(faces.boxes):
            overlap = box_overlap(faces.boxes, np.array(last_boxes))
            while overlap.max() >= least_overlap:
                face, person = np.unravel_index(overlap.argmax(), overlap.shape)
                numbers[face] = person
                overlap[face], overlap[:, person] = -1, -1
        for face in np.flatnonzero(numbers < 0):
            numbers[face] = len(last_boxes)
            last_boxes.append(faces.boxes[face])
        for face, person in enumerate(numbers):
            last_boxes[person] = faces.boxes[face]
        linked.append(numbers)
    return linked
