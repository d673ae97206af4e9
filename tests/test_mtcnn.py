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
from dfdc_lib.faces import FaceDetector, box_overlap
from dfdc_lib.geometry import detector_scale
from dfdc_lib.mtcnn import Cascade, SumTable, TorchTable, keep_outermost, pyramid_scales
from dfdc_lib.sample import portrait
from dfdc_lib.video import iterate_frames, probe

BACKENDS = ("torch", "openvino")


@cache
def detector(thresholds, backend: str) -> FaceDetector:
    return FaceDetector(thresholds, device="cpu", backend=backend)


@cache
def peer(thresholds) -> MTCNN:
    return MTCNN(keep_all=True, thresholds=list(thresholds))


def pool(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The peer's resize: (h, w, 3) uint8 → (3, *size) float32 in [-1, 1]."""
    chosen = torch.as_tensor(picture.copy()).permute(2, 0, 1)[None].double()
    return ((torch.nn.functional.interpolate(chosen, size=size, mode="area") - 127.5) / 128)[0].numpy()


@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    wanted=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
@settings(max_examples=60, deadline=None)
def test_levels_and_windows_are_the_peers_resize(seed, size, wanted):
    """Shrunk or enlarged, dividing evenly or not, on a CPU and in the operations that a GPU runs."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    y0, x0 = (int(rng.integers(length)) for length in size)
    y1, x1 = (int(rng.integers(low, length)) + 1 for low, length in zip((y0, x0), size, strict=True))
    corners = np.array([[x0, y0, x1, y1], [0, 0, size[1], size[0]]])
    which = np.array([1, 0])
    for table in (SumTable(frames), TorchTable(frames, torch.device("cpu"))):
        for frame, level in zip(frames, table.shrink([wanted])[0].numpy(), strict=True):
            assert level == pytest.approx(pool(frame, wanted), abs=2e-6)
        windows = table.cut(torch.from_numpy(which), torch.from_numpy(corners), 24).numpy()
        for number, (x0, y0, x1, y1), window in zip(which, corners, windows, strict=True):
            assert window == pytest.approx(pool(frames[number][y0:y1, x0:x1], (24, 24)), abs=2e-6)


def test_sums_that_wrap_around_still_give_the_right_means():
    frame = np.full((4200, 4200, 3), 255, np.uint8)  # 4.5e9 in all, more than 32 bits hold
    frame[-30:, -30:] = np.random.default_rng(0).integers(0, 256, (30, 30, 3))
    corner = torch.tensor([[4170, 4170, 4200, 4200]])
    assert SumTable([frame]).cut(torch.tensor([0]), corner, 24).numpy()[0] == pytest.approx(
        pool(frame[-30:, -30:], (24, 24)), abs=2e-6
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("thresholds", [TRAIN_THRESHOLDS, INFERENCE_THRESHOLDS], ids=["train", "inference"])
def test_faces_are_the_peers(backend, thresholds):
    """Two people side by side, turned, cut off at the border, dark, in noise: each as the peer finds it alone."""
    both = np.hstack([cv2.resize(portrait(name), (400, 400)) for name in ("collins", "hopper")])
    noise = np.random.default_rng(0).integers(0, 256, both.shape, dtype=np.uint8)
    frames = [
        both,
        both[:, ::-1],
        np.roll(both, 250, axis=1),
        both // 4,
        cv2.addWeighted(both, 0.6, noise, 0.4, 0),
        noise,
    ]
    frames = [np.ascontiguousarray(frame) for frame in frames]
    found = detector(thresholds, backend).detect(frames)
    n_faces = sum(agree_with_peer(frame, faces, thresholds) for frame, faces in zip(frames, found, strict=True))
    assert n_faces >= 8


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


@pytest.fixture(scope="module")
def peers_faces(small_sample) -> list[tuple[list[np.ndarray], list]]:
    """Of each video of the sample, and of real ones where there are some: six frames, and what the peer finds."""
    videos = sorted(small_sample.rglob("*.mp4"))
    videos += sorted(Path(os.environ["DFDC_TEST_VIDEOS"]).rglob("*.mp4")) if "DFDC_TEST_VIDEOS" in os.environ else []
    found = []
    for video in videos:
        count = probe(video).n_frames
        frames = [frame for _, frame in iterate_frames(video, range(0, count, count // 6))]
        scale = detector_scale(*frames[0].shape[1::-1])
        frames = [cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for f in frames]
        found.append((frames, [peer(INFERENCE_THRESHOLDS).detect(frame, landmarks=True) for frame in frames]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_peers_faces_in_the_sample_and_in_real_videos(peers_faces, backend):
    """At least 99.5 % of the peer's faces at IoU 0.95, their landmarks within 2 pixels, and no face more."""
    n_peers, n_found, n_more = 0, 0, 0
    for frames, of_peer in peers_faces:
        ours = detector(INFERENCE_THRESHOLDS, backend).detect(frames)
        for faces, (boxes, _, landmarks) in zip(ours, of_peer, strict=True):
            n_more += max(len(faces.boxes) - (0 if boxes is None else len(boxes)), 0)
            if boxes is None or not len(faces.boxes):
                n_peers += 0 if boxes is None else len(boxes)
                continue
            overlap = box_overlap(boxes.astype(float), faces.boxes)
            same, near = overlap.argmax(axis=1), overlap.max(axis=1) >= 0.95
            off = np.abs(landmarks.astype(float) - faces.landmarks[same]).max(axis=(1, 2))
            n_peers, n_found = n_peers + len(boxes), n_found + int((near & (off < 2)).sum())
    print(f"{backend}: {n_found} of the peer's {n_peers} faces in {len(peers_faces)} videos")
    assert n_peers > 50
    assert n_found >= 0.995 * n_peers
    assert n_more == 0


def test_a_face_does_not_depend_on_its_neighbours_in_the_batch():
    frames = [np.ascontiguousarray(np.roll(portrait("hopper"), 7 * i, axis=1)) for i in range(9)]
    frames[4] = np.zeros_like(frames[4])
    together = detector(TRAIN_THRESHOLDS, "openvino").detect(frames)
    for frame, faces in zip(frames, together, strict=True):
        (alone,) = detector(TRAIN_THRESHOLDS, "openvino").detect([frame])
        assert faces.boxes == pytest.approx(alone.boxes, abs=0.01)
    assert len(together[4].boxes) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_threads_may_share_a_detector(backend):
    frames = [np.ascontiguousarray(np.roll(portrait("collins"), 5 * i, axis=0)) for i in range(6)]
    alone = [detector(TRAIN_THRESHOLDS, backend).detect([frame])[0] for frame in frames]
    with ThreadPoolExecutor(6) as threads:
        shared = list(threads.map(lambda frame: detector(TRAIN_THRESHOLDS, backend).detect([frame])[0], frames))
    for one, other in zip(alone, shared, strict=True):
        assert one.boxes == pytest.approx(other.boxes, abs=0.01)


def test_frames_of_several_sizes_keep_their_order():
    small, large = cv2.resize(portrait("collins"), (300, 300)), cv2.resize(portrait("hopper"), (500, 400))
    frames = [small, small[:, ::-1].copy(), large, small]
    for frame, faces in zip(frames, detector(TRAIN_THRESHOLDS, "openvino").detect(frames), strict=True):
        assert agree_with_peer(frame, faces, TRAIN_THRESHOLDS) == 1


@pytest.mark.parametrize("shape", [(1, 1), (19, 400), (20, 20), (400, 21), (12, 12)])
def test_a_sliver_of_a_frame_has_no_face_and_no_error(shape):
    for backend in BACKENDS:
        assert len(detector(TRAIN_THRESHOLDS, backend).detect([np.full((*shape, 3), 90, np.uint8)])[0].boxes) == 0


def test_what_a_gpu_runs_finds_the_same_faces(monkeypatch):
    """Its table of sums in torch's operations, here on the CPU; and a frame that is smaller than any face."""
    frames = [portrait("hopper"), np.ascontiguousarray(portrait("hopper")[:, ::-1])]
    plain = Cascade(TRAIN_THRESHOLDS, "cpu", "torch", 1)
    found = plain.detect(frames)
    monkeypatch.setattr("dfdc_lib.mtcnn.SumTable", lambda frames: TorchTable(frames, torch.device("cpu")))
    for (boxes, _, landmarks), (others, _, points) in zip(found, plain.detect(frames), strict=True):
        assert boxes == pytest.approx(others, abs=0.01)
        assert landmarks == pytest.approx(points, abs=0.01)
    assert len(plain.detect([np.zeros((12, 40, 3), np.uint8)])[0][0]) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_finds_the_peers_faces():
    frames = [portrait("hopper"), np.zeros_like(portrait("hopper"))]
    for frame, faces in zip(frames, FaceDetector(TRAIN_THRESHOLDS, device="cuda").detect(frames), strict=True):
        agree_with_peer(frame, faces, TRAIN_THRESHOLDS)
    assert len(FaceDetector(TRAIN_THRESHOLDS, device="cuda").detect([np.zeros((12, 40, 3), np.uint8)])[0].boxes) == 0


def test_the_pyramid_reaches_from_the_smallest_face_to_the_whole_frame():
    scales = pyramid_scales(356, 634)
    assert 12 / scales[0] == 20
    assert 12 / scales[-1] <= 356 < 12 / (scales[-1] * 0.709)
    assert pyramid_scales(19, 500) == []


def test_a_box_inside_a_better_one_goes_whatever_their_sizes():
    boxes = np.array([[0, 0, 100, 100], [10, 10, 40, 40], [95, 0, 200, 100], [300, 0, 340, 40]], float)
    assert keep_outermost(boxes, np.array([0.9, 0.8, 0.95, 0.7])).tolist() == [2, 0, 3]
    assert keep_outermost(boxes, np.array([0.8, 0.9, 0.95, 0.7])).tolist() == [2, 1, 3]
    assert keep_outermost(np.zeros((0, 4)), np.zeros(0)).tolist() == []


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="'onnx'"):
        Cascade(TRAIN_THRESHOLDS, "cpu", "onnx", 1)
