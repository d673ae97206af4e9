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
from dfdc_lib.fast.mtcnn import Cascade, SumTable, TorchTable, keep_outermost, pyramid_scales
from dfdc_lib.rehearsal.sample import portrait
from dfdc_lib.video import iterate_frames, probe

CPU = torch.device("cpu")
BACKENDS = ["plain", "torch", "openvino", *(["on a GPU"] if torch.cuda.is_available() else [])]


@cache
def detector(thresholds, backend: str) -> FaceDetector:
    if backend == "on a GPU":
        return FaceDetector(thresholds, device="cuda")
    return FaceDetector(thresholds, device="cpu", backend=backend)


@cache
def peer(thresholds) -> MTCNN:
    return MTCNN(keep_all=True, thresholds=list(thresholds))


def find(frames, backend: str, thresholds=TRAIN_THRESHOLDS):
    return detector(thresholds, backend).detect(frames)


def pool(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The peer's resize: (h, w, 3) uint8 → (3, *size) float32 in [-1, 1]."""
    chosen = torch.as_tensor(picture.copy()).permute(2, 0, 1)[None].double()
    resized = torch.nn.functional.interpolate(chosen, size=size, mode="area")
    return ((resized - 127.5) / 128)[0].numpy()


SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70))


@given(seed=st.integers(0, 2**31), size=SIZES, wanted=SIZES)
@settings(max_examples=60)
def test_levels_and_windows_are_the_peers_resize(seed, size, wanted):
    """Shrunk or enlarged, dividing evenly or not, on a CPU and in a GPU's operations."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    y0, x0 = (int(rng.integers(length)) for length in size)
    y1, x1 = int(rng.integers(y0, size[0])) + 1, int(rng.integers(x0, size[1])) + 1
    corners = torch.tensor([[x0, y0, x1, y1], [0, 0, size[1], size[0]]])
    for table in (SumTable(frames), TorchTable(frames, CPU)):
        for frame, level in zip(frames, table.shrink([wanted])[0].numpy(), strict=True):
            assert level == pytest.approx(pool(frame, wanted), abs=2e-6)
        part, whole = table.cut(torch.tensor([1, 0]), corners, 24).numpy()
        assert part == pytest.approx(pool(frames[1][y0:y1, x0:x1], (24, 24)), abs=2e-6)
        assert whole == pytest.approx(pool(frames[0], (24, 24)), abs=2e-6)


def test_sums_that_wrap_around_still_give_the_right_means():
    frame = np.full((4200, 4200, 3), 255, np.uint8)  # 4.5e9 in all, more than 32 bits hold
    frame[-30:, -30:] = np.random.default_rng(0).integers(0, 256, (30, 30, 3))
    corner = torch.tensor([[4170, 4170, 4200, 4200]])
    (window,) = SumTable([frame]).cut(torch.tensor([0]), corner, 24).numpy()
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
    pairs = zip(frames, find(frames, backend, thresholds), strict=True)
    assert sum(agree_with_peer(frame, faces, thresholds) for frame, faces in pairs) >= 11


def agree_with_peer(frame, faces, thresholds) -> int:
    boxes, scores, landmarks = peer(thresholds).detect(frame, landmarks=True)
    assert len(faces.boxes) == (0 if boxes is None else len(boxes))
    if boxes is None:
        return 0
    nearest = box_overlap(faces.boxes, boxes.astype(float)).argmax(axis=1)
    assert sorted(nearest) == list(range(len(boxes)))
    assert faces.boxes == pytest.approx(boxes[nearest].astype(float), abs=0.01)
    assert faces.scores == pytest.approx(scores[nearest].astype(float), abs=1e-4)
    assert faces.landmarks == pytest.approx(landmarks[nearest].astype(float), abs=0.01)
    assert (np.diff(faces.scores) <= 0).all()
    return len(boxes)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_peers_faces_in_the_sample_and_in_real_videos(small_sample, backend):
    """99.5 % of the peer's faces or more at IoU 0.95, landmarks within 2 pixels, and no others."""
    videos = sorted(small_sample.rglob("*.mp4"))
    if "DFDC_TEST_VIDEOS" in os.environ:
        videos += sorted(Path(os.environ["DFDC_TEST_VIDEOS"]).rglob("*.mp4"))
    n_peers = n_found = 0
    for video in videos:
        wanted = np.linspace(0, probe(video).n_frames - 1, 6, dtype=int)
        frames = [resize_for_detection(frame) for _, frame in iterate_frames(video, wanted)]
        ours = find(frames, backend, INFERENCE_THRESHOLDS)
        for frame, faces in zip(frames, ours, strict=True):
            boxes, _, landmarks = peer(INFERENCE_THRESHOLDS).detect(frame, landmarks=True)
            count = 0 if boxes is None else len(boxes)
            assert len(faces.boxes) <= count
            n_peers += count
            if len(faces.boxes):
                overlap = box_overlap(boxes.astype(float), faces.boxes)
                same, near = overlap.argmax(axis=1), overlap.max(axis=1) >= 0.95
                off = np.abs(landmarks.astype(float) - faces.landmarks[same]).max(axis=(1, 2))
                n_found += int((near & (off < 2)).sum())
    assert n_peers > 50
    assert n_found >= 0.995 * n_peers


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_face_depends_neither_on_its_neighbours_nor_on_other_threads(backend):
    frames = [np.ascontiguousarray(np.roll(portrait("hopper"), 7 * i, axis=1)) for i in range(9)]
    frames[4] = np.zeros_like(frames[4])
    together, alone = find(frames, backend), [find([frame], backend)[0] for frame in frames]
    with ThreadPoolExecutor(6) as threads:
        shared = list(threads.map(lambda frame: find([frame], backend)[0], frames))
    for faces, one, other in zip(together, alone, shared, strict=True):
        assert faces.boxes == pytest.approx(one.boxes, abs=0.01)
        assert faces.boxes == pytest.approx(other.boxes, abs=0.01)
    assert [len(faces.boxes) for faces in together] == [1, 1, 1, 1, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 1), (19, 400), (20, 20), (400, 21), (12, 12), (120, 160)])
def test_a_grey_frame_or_a_sliver_has_no_face_and_no_error(shape, backend):
    (faces,) = find([np.full((*shape, 3), 127, np.uint8)], backend)
    assert [values.shape for values in faces] == [(0, 4), (0,), (0, 5, 2)]
    assert {values.dtype for values in faces} == {np.dtype(np.float32)}


def test_what_a_gpu_runs_finds_the_same_faces(monkeypatch):
    """Its table of sums in torch's operations, here on the CPU."""
    frames = [portrait("hopper"), np.ascontiguousarray(portrait("hopper")[:, ::-1])]
    plain = Cascade(TRAIN_THRESHOLDS, "cpu", "torch", 1)
    found = plain.detect(frames)
    monkeypatch.setattr("dfdc_lib.fast.mtcnn.SumTable", lambda frames: TorchTable(frames, CPU))
    for (boxes, _, landmarks), (others, _, points) in zip(found, plain.detect(frames), strict=True):
        assert boxes == pytest.approx(others, abs=0.01)
        assert landmarks == pytest.approx(points, abs=0.01)
    assert len(plain.detect([np.zeros((12, 40, 3), np.uint8)])[0][0]) == 0  # without any level


def test_the_pyramid_reaches_from_the_smallest_face_to_the_whole_frame():
    scales = pyramid_scales(356, 634)
    assert 12 / scales[0] == 20
    assert 12 / scales[-1] <= 356 < 12 / (scales[-1] * 0.709)
    assert pyramid_scales(19, 500) == []


def test_a_box_inside_a_better_one_goes_whatever_their_sizes():
    boxes = np.array([[0, 0, 100, 100], [10, 10, 40, 40], [95, 0, 200, 100], [300, 0, 340, 40]])
    assert keep_outermost(boxes, np.array([0.9, 0.8, 0.95, 0.7])).tolist() == [2, 0, 3]
    assert keep_outermost(boxes, np.array([0.8, 0.9, 0.95, 0.7])).tolist() == [2, 1, 3]
    assert keep_outermost(np.zeros((0, 4)), np.zeros(0)).tolist() == []


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="'onnx'"):
        Cascade(TRAIN_THRESHOLDS, "cpu", "onnx", 1)
