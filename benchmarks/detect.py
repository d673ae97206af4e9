"""Face detection: against facenet-pytorch's own `detect`, and against the networks alone."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from facenet_pytorch import MTCNN

from benchmarks.clips import detector_frames, make_clip
from benchmarks.measure import alternate, compare, exact_arithmetic
from dfdc_lib.config import INFERENCE_THRESHOLDS, TRAIN_THRESHOLDS
from dfdc_lib.faces import FaceDetector, box_overlap

PACKAGES = ("facenet-pytorch", "openvino", "numba", "opencv-python-headless")


def run(repetitions: int = 5, frames: Sequence[np.ndarray] = ()) -> list[dict]:
    """Seconds for the frames (30 of 634 x 356), with either set of thresholds."""
    frames, lines = frames or detector_frames(make_clip()), []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, thresholds in (("training", TRAIN_THRESHOLDS), ("inference", INFERENCE_THRESHOLDS)):
        peer = MTCNN(keep_all=True, thresholds=list(thresholds), device=device)
        compiled = device == "cpu" and find_spec("openvino")
        backends = ("openvino", "torch") if compiled else ("torch",)
        ours = {backend: FaceDetector(thresholds, backend=backend) for backend in backends}
        with exact_arithmetic():
            check_same_faces(frames, peer, ours)
        one_by_one = partial(detect_one_by_one, peer, frames)
        batched = partial(peer.detect, np.stack(frames), landmarks=True)
        rivals: dict[str, Callable] = {
            "facenet-pytorch, one by one": one_by_one,
            "facenet-pytorch, batched": batched,
        }
        for backend, detector in ours.items():
            rivals[backend] = partial(detector.detect, frames)
            rivals[f"{backend}, networks alone"] = networks_alone(detector, frames)
        seconds = alternate(rivals, repetitions)
        better = min(list(rivals)[:2], key=lambda rival: seconds[rival].median())
        for backend in ours:
            line = {"benchmark": "detect", "ours": f"{backend}, {name} thresholds"}
            line["frames"] = len(frames)
            for against in (better, f"{backend}, networks alone"):
                lines.append(line | {"peer": against} | compare(seconds, backend, against))
    return lines


def detect_one_by_one(peer: MTCNN, frames: Sequence[np.ndarray]) -> None:
    for frame in frames:
        peer.detect(frame, landmarks=True)


def check_same_faces(
    frames: Sequence[np.ndarray], peer: MTCNN, ours: dict[str, FaceDetector]
) -> None:
    """A speed counts only if the boxes are the same."""
    for frame in frames:
        boxes, _ = peer.detect(frame)
        for detector in ours.values():
            found = detector.detect([frame])[0].boxes
            assert len(found) == (0 if boxes is None else len(boxes))
            assert boxes is None or box_overlap(boxes.astype(float), found).max(axis=1).min() > 0.95


def networks_alone(detector: FaceDetector, frames: Sequence[np.ndarray]) -> Callable[[], object]:
    """The floor: only the networks, on what they were given for these frames."""
    cascade, chunks = detector._cascade, []
    networks = [cascade._idle.get() for _ in range(cascade.threads)]

    def record(number: int):
        def call(pictures):
            if number == 0 and (not chunks or chunks[-1][-1][0] > 0):
                chunks.append([])
            chunks[-1].append((number, pictures.clone()))
            return networks[0][number](pictures)

        return call

    cascade._idle.put([record(number) for number in range(3)])
    for i in range(0, len(frames), cascade.chunk):
        cascade.detect(frames[i : i + cascade.chunk])
    cascade._idle.get()
    for several in networks:
        cascade._idle.put(several)

    @torch.inference_mode()
    def replay(chunk: list) -> None:
        several = cascade._idle.get()
        with exact_arithmetic():  # as the cascade's own
            for number, pictures in chunk:
                several[number](pictures)
        cascade._idle.put(several)

    def replay_all() -> None:
        with ThreadPoolExecutor(cascade.threads) as pool:
            list(pool.map(replay, chunks))

    return replay_all if cascade.threads > 1 else lambda: [replay(chunk) for chunk in chunks]
