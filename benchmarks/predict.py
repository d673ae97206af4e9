"""A verdict on a video by a B7, 32 frames at 380 pixels: against eager code, and by stage."""

import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from facenet_pytorch import MTCNN

from benchmarks.clips import make_clip
from benchmarks.measure import alternate, compare
from dfdc_lib.augment import valid_transforms
from dfdc_lib.config import INFERENCE_THRESHOLDS, MARGINS, PredictConfig, Procedure
from dfdc_lib.faces import DETECT_AT_ONCE, shared_detector
from dfdc_lib.geometry import cut_face, isotropic_resize, spread_indices
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint
from dfdc_lib.predict import (
    BATCH,
    Cut,
    Scorer,
    cut_crop,
    load_models,
    predict_videos,
    score_crops,
)
from dfdc_lib.video import in_groups, iterate_frames, probe

PACKAGES = ("timm", "facenet-pytorch", "openvino", "opencv-python-headless")
WAYS = [("openvino", "bf16"), ("openvino", "fp32"), ("torch", "bf16"), ("torch", "fp32")]


def make_checkpoint(encoder: str, folder: str) -> Path:
    """Save a checkpoint with random weights: the time does not depend on them."""
    path = Path(folder) / "model.pt"
    torch.manual_seed(0)
    save_checkpoint(path, DeepfakeClassifier(encoder))
    return path


def load_ways(path: Path) -> dict[tuple[str, str], dict[str, Scorer]]:
    """Load one checkpoint for every back end and precision that this machine has."""
    ways = WAYS[2:] if torch.cuda.is_available() else WAYS
    configs = {way: PredictConfig(backend=way[0], precision=way[1]) for way in ways}
    return {way: load_models([path], config) for way, config in configs.items()}


def run(repetitions: int = 3, encoder: str = "b7") -> list[dict]:
    """Seconds for a 1080p video, with models already loaded and compiled."""
    clip, lines = make_clip(), []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        models = load_ways(make_checkpoint(encoder, folder))
        plain = DeepfakeClassifier(encoder).to(device).eval()
        peer = MTCNN(keep_all=True, thresholds=list(INFERENCE_THRESHOLDS), device=device)
        rivals = {"eager procedure": lambda: score_eagerly(clip, plain, peer)}
        for way, loaded in models.items():
            rivals[" ".join(way)] = lambda loaded=loaded: list(predict_videos([clip], loaded))
        seconds = alternate(rivals, repetitions)
    for name in list(rivals)[1:]:
        line = {"benchmark": "predict", "ours": f"{encoder} {name}", "peer": "eager procedure"}
        lines.append(line | compare(seconds, name, "eager procedure"))
    return lines


@torch.inference_mode()
def score_eagerly(clip: Path, model: DeepfakeClassifier, peer: MTCNN, batch: int = 4) -> float:
    """One step after the other: decode, detect frame by frame, score in fp32 and NCHW."""
    size, crops = model.card.size, []
    transform = valid_transforms(size)
    frames = [frame for _, frame in iterate_frames(clip, spread_indices(probe(clip).n_frames, 32))]
    for frame in frames:
        small = cv2.resize(frame, None, fx=0.33, fy=0.33, interpolation=cv2.INTER_AREA)
        boxes = peer.detect(small)[0]
        for box in () if boxes is None else boxes:
            crop = cut_face(frame, box.astype(float) / 0.33, MARGINS["slides"])
            crops.append(transform(image=isotropic_resize(crop, size))["image"])
    crops = torch.stack(crops).to(model.fc.weight.device)
    scores = [model(crops[i : i + batch]).sigmoid() for i in range(0, len(crops), batch)]
    return float(torch.cat(scores).mean())


def measure_stages(
    encoder: str = "b7", clip: Path | None = None, procedure: Procedure = "slides"
) -> pd.DataFrame:
    """Seconds of each stage by itself, nothing overlapped, with the back ends of "auto"."""
    clip, clock = clip or make_clip(), []

    def tick() -> None:
        clock.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        path = make_checkpoint(encoder, folder)
        tick()
        models = load_models([path])
        tick()
        scorer = next(iter(models.values()))
        cut = Cut.of(scorer.model.card, procedure)
        scorer.score(torch.zeros(8, 3, cut.size, cut.size))
        tick()
        frames = list(iterate_frames(clip, spread_indices(probe(clip).n_frames, 32)))
        tick()
        detector = shared_detector(INFERENCE_THRESHOLDS, 0)
        detector.detect_resized([picture for _, picture in frames[:4]], procedure)  # warm
        tick()
        crops = []
        for several in in_groups((picture for _, picture in frames), DETECT_AT_ONCE):
            found = detector.detect_resized(several, procedure)
            for picture, faces in zip(several, found, strict=True):
                crops += [{cut: cut_crop(picture, box, cut)} for box in faces.boxes]
        tick()
        for some in in_groups(crops, BATCH[scorer.model.fc.weight.device.type]):
            score_crops(some, models, procedure)
        tick()
    names = ["load the checkpoint", "compile", "decode", "load the detector", "detect and cut"]
    return pd.DataFrame({"stage": [*names, "score"], "seconds": np.diff(clock)})
