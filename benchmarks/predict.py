"""A verdict on a video: a B7 at 380 pixels on 32 frames, against the eager procedure; and what each stage costs."""

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
from dfdc_lib.config import INFERENCE_THRESHOLDS, PredictConfig
from dfdc_lib.geometry import cut_face, isotropic_resize, spread_indices
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint
from dfdc_lib.predict import Cut, End, decode_videos, detect_in, load_models, predict_videos, score_videos_in
from dfdc_lib.video import iterate_frames, probe

PACKAGES = ("timm", "facenet-pytorch", "openvino", "opencv-python-headless")
WAYS = [("openvino", "bf16"), ("openvino", "fp32"), ("torch", "bf16"), ("torch", "fp32")]


def make_models(encoder: str, folder: Path) -> dict[tuple[str, str], dict[str, DeepfakeClassifier]]:
    """One checkpoint, loaded for every back end and precision. Its weights are random: time does not depend on them."""
    path = folder / "model.pt"
    torch.manual_seed(0)
    save_checkpoint(path, DeepfakeClassifier(encoder))
    ways = WAYS if not torch.cuda.is_available() else WAYS[2:]
    return {way: load_models([path], backend=way[0], precision=way[1]) for way in ways}


def run(repetitions: int = 3, encoder: str = "b7") -> list[dict]:
    """Seconds for a 1080p video, models loaded and compiled before."""
    clip, lines = make_clip(), []
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(encoder, Path(folder))
        plain = DeepfakeClassifier(encoder).to("cuda" if torch.cuda.is_available() else "cpu").eval()
        peer = MTCNN(keep_all=True, thresholds=list(INFERENCE_THRESHOLDS), device=plain.fc.weight.device)
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
    """One thing after the other: decode, detect frame by frame, fp32 in torch's default memory layout."""
    frames = [frame for _, frame in iterate_frames(clip, spread_indices(probe(clip).n_frames, 32))]
    transform, crops = valid_transforms(model.card.size), []
    for frame in frames:
        small = cv2.resize(frame, None, fx=0.33, fy=0.33, interpolation=cv2.INTER_AREA)
        boxes = peer.detect(small)[0]
        for box in () if boxes is None else boxes:
            crop = isotropic_resize(cut_face(frame, box.astype(float) / 0.33, 0.2), model.card.size)
            crops.append(transform(image=crop)["image"])
    crops = torch.stack(crops).to(model.fc.weight.device)
    return float(torch.cat([model(crops[i : i + batch]).sigmoid() for i in range(0, len(crops), batch)]).mean())


def measure_stages(encoder: str = "b7") -> pd.DataFrame:
    """Seconds of each stage by itself, nothing overlapped, by the back ends that "auto" takes."""
    clip, config = make_clip(), PredictConfig(procedure="slides")
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        save_checkpoint(Path(folder) / "model.pt", DeepfakeClassifier(encoder))
        clock = [time.perf_counter()]
        models = load_models([Path(folder) / "model.pt"])
        clock.append(time.perf_counter())
        model = next(iter(models.values()))
        model.predict(torch.zeros(8, 3, model.card.size, model.card.size))
        clock.append(time.perf_counter())
        frames = list(decode_videos([clip], config.frames))
        clock.append(time.perf_counter())
        cuts = {Cut(model.card.margin, model.card.size)}
        list(detect_in(iter([*frames[:4], End(clip, "ok", "")]), config, cuts))  # warm
        clock.append(time.perf_counter())
        seen = list(detect_in(iter(frames), config, cuts))
        clock.append(time.perf_counter())
        list(score_videos_in(iter(seen), models, config))
        clock.append(time.perf_counter())
    spans = np.diff(clock)
    names = ["load the checkpoint", "compile", "decode", "load the detector", "detect and cut", "score"]
    return pd.DataFrame({"stage": names, "seconds": spans})
