"""How many videos a second a card scores: by decoding processes, with one network and with seven.

Against the original's procedure on the same card: one video after the other, 32 frames, facenet-
pytorch on halved frames one by one, networks in fp16 (`.half()`), as its code does.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from facenet_pytorch import MTCNN
from PIL import Image

from benchmarks import predict
from benchmarks.gpu.setting import Setting, make_network
from benchmarks.measure import time_call
from dfdc_lib.augment import valid_transforms
from dfdc_lib.config import INFERENCE_THRESHOLDS, MARGINS, PredictConfig
from dfdc_lib.geometry import cut_face, isotropic_resize, spread_indices
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint
from dfdc_lib.ops.submission import score_files
from dfdc_lib.predict import load_models

# Networks and decoding processes, the most wanted first: each takes a while to start.
WANTED = ((1, 16), (7, 16), (1, 1), (1, 4), (1, 8), (7, 4), (1, 2))


def measure_videos(setting: Setting) -> Iterator[dict]:
    """A line for the original's procedure, then one per number of networks and of decoders."""
    encoder = setting.encoders[0]
    crops, _ = setting.read_crops(encoder, 16)
    network = make_network(encoder, crops, setting.device)
    alone = time_original(setting, network)
    line = {"networks": 1, "decoding processes": 0, "way": "the original's procedure"}
    yield line | {"videos/s": alone, "times the original's": 1.0}
    paths = [setting.scratch / f"network_{number}.pt" for number in range(7)]
    for path in paths:
        save_checkpoint(path, network)
    cores = os.cpu_count() or 1
    for count, workers in setting.few(WANTED, ((1, 1), (7, 1))):
        if workers > cores or not setting.has_time(15):
            continue
        models = load_models(paths[:count], choose_config(setting))
        rate, busy = score_many(setting, models, workers)
        line = {"networks": count, "decoding processes": workers, "way": "dfdc predict"}
        line |= {"videos/s": rate, "card busy": busy}
        yield line | ({"times the original's": rate / alone} if count == 1 else {})


def choose_config(setting: Setting) -> PredictConfig:
    return PredictConfig(frames=setting.few(32, 8), procedure="upstream")


def score_many(setting: Setting, models: dict, workers: int) -> tuple[float, float]:
    """Videos a second once all processes work, and the share of the time that the card is busy."""
    videos = link_videos(setting, (workers + 1) * setting.few(4, 1))
    with watch_card() as samples:
        ends = []
        for verdict in score_files(videos, models, choose_config(setting), workers=workers):
            if verdict.p_fake is None:
                raise RuntimeError(f"{verdict.video}: {verdict.status}, {verdict.reason}")
            ends.append(time.perf_counter())
    start = ends[workers - 1]
    steady = [end for end in ends if end > start + 0.01]  # not those of the same batch
    busy = [share for at, share in samples if at > start]
    return len(steady) / (ends[-1] - start), float(np.mean(busy)) if busy else float("nan")


def link_videos(setting: Setting, count: int) -> list[Path]:
    """Give the clips many names."""
    videos = []
    for number in range(count):
        clip = setting.clips[number % len(setting.clips)]
        link = setting.scratch / f"video_{number:03d}{clip.suffix}"
        if not link.exists():
            link.symlink_to(clip.resolve())
        videos.append(link)
    return videos


@contextmanager
def watch_card() -> Iterator[list[tuple[float, float]]]:
    """Note the time and how busy the card is, from 0 to 1, ten times a second; without one, not."""
    samples: list[tuple[float, float]] = []
    done = threading.Event()

    def watch() -> None:
        while torch.cuda.is_available() and not done.wait(0.1):
            samples.append((time.perf_counter(), torch.cuda.utilization() / 100))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def time_original(setting: Setting, network: DeepfakeClassifier) -> float:
    """Videos a second of the original's procedure with one network, the first not counted."""
    peer = MTCNN(keep_all=True, thresholds=list(INFERENCE_THRESHOLDS), device=setting.device)
    half = DeepfakeClassifier(network.card.encoder)
    half.load_state_dict(network.state_dict())
    half = half.to(setting.device, torch.float32 if setting.rehearsal else torch.float16).eval()
    clips, n = setting.clips * setting.few(3, 1), setting.few(32, 8)
    seconds = [time_call(lambda clip=clip: follow_original(clip, half, peer, n)) for clip in clips]
    return 1 / float(np.mean(seconds[1:] or seconds))


@torch.inference_mode()
def follow_original(clip: Path, model: DeepfakeClassifier, peer: MTCNN, n: int) -> float:
    """Grab all frames, keep n, halve them by Pillow, detect in each, score all crops at once."""
    capture, frames = cv2.VideoCapture(str(clip)), []
    n_frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted = set(spread_indices(n_frames, n).tolist())
    for number in range(n_frames):
        if capture.grab() and number in wanted:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    size, crops = model.card.size, []
    transform = valid_transforms(size)
    for frame in frames:
        small = Image.fromarray(frame).resize([side // 2 for side in frame.shape[1::-1]])
        boxes = peer.detect(small)[0]
        for box in () if boxes is None else boxes:
            crop = cut_face(frame, 2 * box.astype(float), MARGINS["upstream"])
            crops.append(transform(image=isotropic_resize(crop, size))["image"])
    pictures = torch.stack(crops).to(model.fc.weight.device, model.fc.weight.dtype)
    return float(model(pictures).sigmoid().mean())


def measure_stages(setting: Setting) -> Iterator[dict]:
    """What bounds it: seconds a video of each stage by itself."""
    for row in predict.measure_stages(setting.encoders[0], setting.clips[0]).itertuples():
        yield {"stage": row.stage, "seconds": row.seconds}
