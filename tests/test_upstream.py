"""Upstream's inference, written again from its description with the libraries that it used: the oracle."""

import cv2
import numpy as np
import pytest
import torch
from facenet_pytorch import MTCNN
from PIL import Image

from dfdc_lib import predict as p
from dfdc_lib.aggregate import confident_strategy
from dfdc_lib.config import PredictConfig
from dfdc_lib.geometry import pad_to_square
from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint
from dfdc_lib.sample import make_sample
from dfdc_lib.video import probe

MEAN, SPREAD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Sample videos of 36 frames, each original of another size; and the real clips where the caller has them."""
    data = make_sample(tmp_path_factory.mktemp("clips") / "data", n_parts=2, originals_per_part=2, n_frames=36)
    table = read_metadata(data)
    return [data / file for file in table.file[table.label == 0]]


@pytest.fixture(scope="module")
def detector():
    return MTCNN(margin=0, thresholds=[0.7, 0.8, 0.8], device="cpu")


def follow_original(path, detector, size: int, n_frames: int) -> list[tuple[int, np.ndarray]]:
    """(frame_idx, square crop (size, size, 3) uint8 RGB) of each face, as upstream's code gives it to a network."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    crops = []
    for number in np.linspace(0, len(frames) - 1, n_frames, dtype=int).tolist():
        half = Image.fromarray(frames[number]).resize([side // 2 for side in frames[number].shape[1::-1]])
        boxes, _ = detector.detect(half, landmarks=False)
        for box in boxes if boxes is not None else ():
            x0, y0, x1, y1 = (int(2 * value) for value in box)
            pad_x, pad_y = (x1 - x0) // 3, (y1 - y0) // 3
            crop = frames[number][max(y0 - pad_y, 0) : y1 + pad_y, max(x0 - pad_x, 0) : x1 + pad_x]
            crops.append((number, put_on_square(crop, size)))
    return crops


def put_on_square(crop: np.ndarray, size: int) -> np.ndarray:
    height, width = crop.shape[:2]
    scale = size / max(height, width)
    if scale != 1:
        how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        to = (size, int(height * scale)) if width > height else (int(width * scale), size)
        crop = cv2.resize(crop, to, interpolation=how)
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - crop.shape[0]) // 2, (size - crop.shape[1]) // 2
    square[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return square


def crops_here(path, config: PredictConfig, size: int) -> list[tuple[int, np.ndarray]]:
    cut = p.Cut("upstream", size)
    seen = [
        item for item in p.detect_in(p.decode_videos([path], config.frames), config, {cut}) if isinstance(item, p.Seen)
    ]
    return [(item.frame_idx, pad_to_square(crop, size)) for item in seen for crop in item.crops[cut]]


def in_order(crops):
    return sorted(crops, key=lambda crop: (crop[0], crop[1].tobytes()))


def assert_same_crops(path, detector, size: int, n_frames: int) -> None:
    expected = in_order(follow_original(path, detector, size, n_frames))
    got = in_order(crops_here(path, PredictConfig(n_frames, procedure="upstream"), size))
    assert len(expected) >= n_frames // 2
    assert [number for number, _ in got] == [number for number, _ in expected]
    assert all(np.array_equal(ours, theirs) for (_, ours), (_, theirs) in zip(got, expected, strict=True))


def test_crops_are_upstreams_to_the_pixel_on_the_sample(clips, detector):
    for path in clips:
        assert_same_crops(path, detector, 380, 4)


@pytest.mark.slow
def test_crops_are_upstreams_to_the_pixel_on_real_clips(real_videos, detector):
    paths = sorted(real_videos.rglob("*.mp4"))
    assert paths
    for path in paths:
        assert_same_crops(path, detector, 380, 8)


@pytest.fixture(scope="module")
def released_like(tmp_path_factory):
    """A checkpoint as upstream released them, of a small network (no real one is small) whose scores spread."""
    torch.manual_seed(0)
    model = DeepfakeClassifier("b3").eval()
    with torch.no_grad():
        model.fc.weight *= 4000
    weights = {f"module.{name}": value.half().float() for name, value in model.state_dict().items()}
    path = tmp_path_factory.mktemp("released") / "final_111"
    torch.save({"epoch": 36, "state_dict": weights, "bce_best": 0.2}, path)
    return path


@pytest.mark.slow
def test_the_score_is_upstreams(clips, detector, released_like):
    """By default: a checkpoint with upstream's names for its weights goes with upstream's procedure."""
    model = load_checkpoint(released_like)
    assert model.card.procedure == "upstream"
    clip = max(clips, key=lambda path: probe(path).width)
    crops = [crop for _, crop in follow_original(clip, detector, 300, 12)]
    assert len(crops) >= 12
    batch = torch.tensor(((np.stack(crops) / 255 - MEAN) / SPREAD).transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        scores = torch.cat([model(part) for part in batch.split(8)]).sigmoid().numpy()
    assert np.ptp(scores) > 0.02
    expected = confident_strategy(scores)
    assert p.predict_video(clip, [model], 12).p_fake == pytest.approx(expected, abs=1e-3)


def test_checkpoints_that_go_with_different_procedures_need_a_choice(released_like, clips):
    ours = DeepfakeClassifier("tiny").eval()
    theirs = DeepfakeClassifier("tiny").eval()
    theirs.card = p.replace(theirs.card, procedure="upstream", margin="upstream")
    with pytest.raises(ValueError, match="--procedure slides or upstream"):
        p.predict_video(clips[0], [ours, theirs])
    for procedure in ("slides", "upstream"):
        config = PredictConfig(2, procedure=procedure)
        (verdict,) = p.predict_videos([clips[0]], [ours, theirs], config)
        assert verdict.procedure == procedure
        assert verdict.p_fake is not None


def test_the_procedures_cut_what_they_say(clips):
    """Slides: the checkpoint's own margin, boxes to a fraction of a pixel. Upstream: a third of whole pixels."""
    model = DeepfakeClassifier("tiny").eval()
    assert p.Cut.of(model, "slides") == p.Cut(0.2, 112)
    assert p.Cut.of(model, "upstream") == p.Cut("upstream", 112)
    with pytest.raises(ValueError, match="slides, upstream"):
        PredictConfig(procedure="half")
