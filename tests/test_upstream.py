"""Upstream's inference, written again from its description with the libraries that it used."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from PIL import Image
from test_video import opencv_frames

from dfdc_lib import predict as p
from dfdc_lib.aggregate import confident_strategy
from dfdc_lib.config import MARGINS, Margin, PredictConfig
from dfdc_lib.geometry import pad_to_square
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint
from dfdc_lib.video import probe

MEAN, SPREAD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def detector():
    return MTCNN(margin=0, thresholds=[0.7, 0.8, 0.8], device="cpu")


def follow_original(path, detector, size: int, n_frames: int) -> list[tuple[int, np.ndarray]]:
    """(frame_idx, square crop (size, size, 3) uint8 RGB) of each face, as upstream cuts it."""
    frames, crops = opencv_frames(path), []
    for number in np.linspace(0, len(frames) - 1, n_frames, dtype=int).tolist():
        frame = frames[number]
        half = Image.fromarray(frame).resize((frame.shape[1] // 2, frame.shape[0] // 2))
        boxes, _ = detector.detect(half, landmarks=False)
        for box in boxes if boxes is not None else ():
            x0, y0, x1, y1 = (int(2 * value) for value in box)
            pad_x, pad_y = (x1 - x0) // 3, (y1 - y0) // 3
            crop = frame[max(y0 - pad_y, 0) : y1 + pad_y, max(x0 - pad_x, 0) : x1 + pad_x]
            crops.append((number, put_on_square(crop, size)))
    return crops


def put_on_square(crop: np.ndarray, size: int) -> np.ndarray:
    height, width = crop.shape[:2]
    scale = size / max(height, width)
    how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    to = (size, int(height * scale)) if width > height else (int(width * scale), size)
    crop = cv2.resize(crop, to, interpolation=how) if scale != 1 else crop
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - crop.shape[0]) // 2, (size - crop.shape[1]) // 2
    square[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return square


def assert_same_crops(paths, detector, size: int, n_frames: int) -> None:
    assert paths
    crop_as = p.Cut(MARGINS["upstream"], size)
    for path in paths:
        seen = p.cut_video(path, PredictConfig(n_frames, procedure="upstream"), {crop_as})
        squares = [pad_to_square(crops[crop_as], size).tobytes() for crops in seen.crops]
        original = follow_original(path, detector, size, n_frames)
        assert len(original) >= n_frames // 2
        expected = [(number, crop.tobytes()) for number, crop in original]
        assert sorted(zip(seen.faces.frame_idx, squares, strict=True)) == sorted(expected)


def test_crops_are_upstreams_to_the_pixel_on_the_sample(originals, detector):
    assert_same_crops(originals, detector, 380, 4)


@pytest.mark.slow
def test_crops_are_upstreams_to_the_pixel_on_real_clips(real_videos, detector):
    assert_same_crops(sorted(real_videos.rglob("*.mp4")), detector, 380, 8)


@pytest.mark.slow
def test_the_score_is_upstreams(originals, detector, tmp_path):
    """A checkpoint with upstream's names for its weights goes with upstream's procedure."""
    torch.manual_seed(0)
    small = DeepfakeClassifier("b3").eval()
    small.fc.weight.data *= 20_000  # its scores spread
    weights = {f"module.{name}": value.half().float() for name, value in small.state_dict().items()}
    path = tmp_path / "final_111"  # as upstream released them
    torch.save({"epoch": 36, "state_dict": weights, "bce_best": 0.2}, path)
    model = load_checkpoint(path)
    assert model.card.procedure == "upstream"
    clip = max(originals, key=lambda path: probe(path).width)
    crops = np.stack([crop for _, crop in follow_original(clip, detector, 300, 12)])
    assert len(crops) >= 12
    batch = torch.tensor(((crops / 255 - MEAN) / SPREAD).transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        scores = torch.cat([model(part) for part in batch.split(8)]).sigmoid().numpy()
    assert np.ptp(scores) > 0.02
    expected = confident_strategy(scores)
    assert p.predict_video(clip, [model], 12).p_fake == pytest.approx(expected, abs=1e-3)


def test_checkpoints_that_go_with_different_procedures_need_a_choice(originals):
    """Slides: each checkpoint's own margin. Upstream: a third of whole pixels."""
    ours, theirs = (DeepfakeClassifier("tiny").eval() for _ in range(2))
    theirs.card = replace(theirs.card, procedure="upstream", margin=Margin(0.4))
    with pytest.raises(ValueError, match="--procedure slides or upstream"):
        p.predict_video(originals[0], [ours, theirs])
    for procedure, margin in (("slides", Margin(0.4)), ("upstream", Margin(1 / 3, True))):
        assert p.Cut.of(theirs.card, procedure) == p.Cut(margin, 112)
        config = PredictConfig(2, procedure=procedure)
        (verdict,) = p.predict_videos(originals[:1], [ours, theirs], config)
        assert (verdict.procedure, verdict.status) == (procedure, "ok")
