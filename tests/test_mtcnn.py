"""The cascade against facenet-pytorch's own `detect`, and its sums against torch's pooling."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from hypothesis import given, settings
from hypothesis import strategies as st

from dfdc_lib.config import INFERENCE_THRESHOLDS, TRAIN_THRESHOLDS
from dfdc_lib.faces import FaceDetector, box_overlap, resize_for_detection
from dfdc_lib.fast.mtcnn import SumTable, TorchTable
from dfdc_lib.rehearsal.people import portrait
from dfdc_lib.video import iterate_frames, probe

CPU = torch.device("cpu")
BACKENDS = ["plain", "torch", "openvino", "a GPU's sums"]
BACKENDS += ["on a GPU"] * torch.cuda.is_available()


@cache
def detector(thresholds, backend: str) -> FaceDetector:
    if backend == "on a GPU":
        return FaceDetector(thresholds, device="cuda")
    return FaceDetector(thresholds, "cpu", "torch" if backend == "a GPU's sums" else backend)


@cache
def peer(thresholds) -> MTCNN:
    return MTCNN(keep_all=True, thresholds=list(thresholds))


def find(frames, backend: str, thresholds=TRAIN_THRESHOLDS):
    with pytest.MonkeyPatch.context() as patched:
        if backend == "a GPU's sums":  # torch's operations, here on the CPU
            patched.setattr("dfdc_lib.fast.mtcnn.SumTable", lambda frames: TorchTable(frames, CPU))
        return detector(thresholds, backend).detect(frames)


def pool(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The peer's resize: (h, w, 3) uint8 → (3, *size) float32 in [-1, 1]."""
    chosen = torch.as_tensor(picture.copy()).permute(2, 0, 1)[None].double()
    resized = torch.nn.functional.interpolate(chosen, size=size, mode="area")
    return ((resized - 127.5) / 128)[0].numpy()


SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70))


@given(seed=st.integers(0, 2**31), size=SIZES, wanted=SIZES)
@settings(max_examples=60)
def test_windows_are_the_peers_resize(seed, size, wanted):
    """Shrunk or enlarged, dividing evenly or not, on a CPU and in a GPU's operations."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    y0, x0 = (int(rng.integers(length)) for length in size)
    y1, x1 = int(rng.integers(y0, size[0])) + 1, int(rng.integers(x0, size[1])) + 1
    corners = torch.tensor([[x0, y0, x1, y1], [0, 0, size[1], size[0]]])
    for table in (SumTable(frames), TorchTable(frames, CPU)):
        part, whole = table.cut(torch.tensor([1, 0]), corners, *wanted).numpy()
        assert part == pytest.approx(pool(frames[1][y0:y1, x0:x1], wanted), abs=2e-6)
        assert whole == pytest.approx(pool(frames[0], wanted), abs=2e-6)


def test_sums_that_wrap_around_still_give_the_right_means():
    frame = np.full((4200, 4200, 3), 255, np.uint8)  # 4.5e9 in all, more than 32 bits hold
    frame[-30:, -30:] = np.random.default_rng(0).integers(0, 256, (30, 30, 3))
    corner = torch.tensor([[4170, 4170, 4200, 4200]])
    (window,) = SumTable([frame]).cut(torch.tensor([0]), corner, 24, 24).numpy()
    assert window == pytest.approx(pool(frame[-30:, -30:], (24, 24)), abs=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("thresholds", [TRAIN_THRESHOLDS, INFERENCE_THRESHOLDS])
def test_faces_are_the_peers(backend, thresholds):
    """Two people side by side, turned, cut off at the border, dark, in noise; of several sizes."""
    both = np.hstack([cv2.resize(portrait(name), (400, 400)) for name in ("collins", "hopper")])
    noise = np.random.default_rng(0).integers(0, 256, both.shape, dtype=np.uint8)
    noisy = cv2.addWeighted(both, 0.6, noise, 0.4, 0)
    frames = [both, both[:, ::-1], np.roll(both, 250, axis=1), both // 4, noise, noisy]
    frames += [frames[0][:, :400], frames[1][:300], frames[0][:, 400:]]
    frames = [np.ascontiguousarray(frame) for frame in frames]
    count, n_same = count_same(frames, find(frames, backend, thresholds), thresholds)
    assert n_same == count >= 11


def count_same(frames, ours, thresholds) -> tuple[int, int]:
    """How many faces the peer finds, and how many of them are among ours, which are no others."""
    count = n_same = 0
    for frame, faces in zip(frames, ours, strict=True):
        theirs = peer(thresholds).detect(frame, landmarks=True)
        boxes, scores, landmarks = (np.array([] if v is None else v, float) for v in theirs)
        assert len(faces.boxes) <= len(boxes)
        assert (np.diff(faces.scores) <= 0).all()
        count += len(boxes)
        if len(faces.boxes):
            nearest = box_overlap(boxes, faces.boxes).argmax(axis=1)
            near = np.isclose(faces.boxes[nearest], boxes, atol=0.01).all(axis=1)
            near &= np.isclose(faces.landmarks[nearest], landmarks, atol=0.01).all(axis=(1, 2))
            n_same += int((near & np.isclose(faces.scores[nearest], scores, atol=1e-4)).sum())
    return count, n_same


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_peers_faces_in_the_sample_and_in_real_videos(small_sample, backend):
    """99.5 % of the peer's faces or more: a box may be rounded to another pixel on the way."""
    videos = sorted(small_sample.rglob("*.mp4"))
    if "DFDC_TEST_VIDEOS" in os.environ:
        videos += sorted(Path(os.environ["DFDC_TEST_VIDEOS"]).rglob("*.mp4"))
    frames = []
    for video in videos:
        wanted = np.linspace(0, probe(video).n_frames - 1, 6, dtype=int)
        frames += [resize_for_detection(frame) for _, frame in iterate_frames(video, wanted)]
    found = find(frames, backend, INFERENCE_THRESHOLDS)
    count, n_same = count_same(frames, found, INFERENCE_THRESHOLDS)
    assert count > 50
    assert n_same >= 0.995 * count


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_face_depends_neither_on_its_neighbours_nor_on_other_threads(backend):
    frames = [np.ascontiguousarray(np.roll(portrait("hopper"), 7 * i, axis=1)) for i in range(9)]
    frames[4] = np.zeros_like(frames[4])
    together, alone = find(frames, backend), [find([frame], backend)[0] for frame in frames]
    with ThreadPoolExecutor(6) as threads:
        shared = list(threads.map(detector(TRAIN_THRESHOLDS, backend).detect, zip(frames)))
    for faces, one, other in zip(together, alone, shared, strict=True):
        assert faces.boxes == pytest.approx(one.boxes, abs=0.01)
        assert faces.boxes == pytest.approx(other[0].boxes, abs=0.01)
    assert [len(faces.boxes) for faces in together] == [1, 1, 1, 1, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 1), (19, 400), (20, 20), (400, 21), (12, 12), (120, 160)])
def test_a_grey_frame_or_a_sliver_has_no_face_and_no_error(shape, backend):
    (faces,) = find([np.full((*shape, 3), 127, np.uint8)], backend)
    assert [values.shape for values in faces] == [(0, 4), (0,), (0, 5, 2)]
    assert {values.dtype for values in faces} == {np.dtype(np.float32)}
