"""How many videos a second a card scores: by decoding processes, with one network and with seven.

Against the original's procedure on the same card: 32 frames of a video, facenet-pytorch on halved
frames one by one, the network in fp16, all crops at once; one video at a time, and six in threads.
"""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from facenet_pytorch import MTCNN

from benchmarks import predict
from benchmarks.gpu.setting import Setting, make_network
from benchmarks.measure import time_call
from dfdc_lib.augment import valid_transforms
from dfdc_lib.config import INFERENCE_THRESHOLDS, MARGINS, PredictConfig
from dfdc_lib.faces import resize_for_detection
from dfdc_lib.fast.scorers import make_scorer
from dfdc_lib.geometry import cut_face, isotropic_resize, spread_indices
from dfdc_lib.model import DeepfakeClassifier
from dfdc_lib.ops.submission import score_files
from dfdc_lib.predict import Scorer

# Networks and decoding processes, the most wanted first: each takes a while to start.
WANTED = ((1, 16), (7, 16), (1, 4), (1, 1), (1, 8), (7, 4), (1, 2))


def measure_videos(setting: Setting) -> Iterator[dict]:
    """A line for the original's procedure, then one per number of networks and of decoders."""
    encoder = setting.encoders[0]
    crops, _ = setting.read_crops(encoder, 16)
    network = make_network(encoder, crops, setting.device)
    best = 0.0
    for threads in (1, setting.few(6, 2)):
        rate = time_original(setting, network, threads)
        best = max(best, rate)
        way = f"the original's procedure, {threads} at a time"
        yield {"networks": 1, "decoding processes": 0, "way": way, "videos/s": rate}
    cores = os.cpu_count() or 1
    for count, workers in setting.few(WANTED, ((1, 1), (7, 1))):
        if workers > cores or not setting.has_time(15 if count == 1 else 25):
            continue
        models = {f"network {n}": prepare_scorer(network) for n in range(count)}
        rate, busy = score_many(setting, models, workers)
        line = {"networks": count, "decoding processes": workers, "way": "dfdc predict"}
        line |= {"videos/s": rate, "card busy": busy}
        yield line | ({"times the original's": rate / best} if count == 1 else {})


def prepare_scorer(network: DeepfakeClassifier) -> Scorer:
    """A copy of the network, as `load_models` would load it from a checkpoint."""
    copy = deepcopy(network)
    return Scorer(copy, make_scorer(copy))


def choose_config(setting: Setting) -> PredictConfig:
    return PredictConfig(frames=setting.few(32, 8), procedure="upstream")


def score_many(setting: Setting, models: dict, workers: int) -> tuple[float, float]:
    """Videos a second once all processes work, and the share of the time that the card is busy."""
    videos, config = link_videos(setting, 3 * workers + setting.few(4, 0)), choose_config(setting)
    with watch_card() as samples:
        ends = []
        for verdict in score_files(videos, models, config, workers=workers, time_limit=60):
            if verdict.p_fake is None:
                raise RuntimeError(f"{verdict.video}: {verdict.status}, {verdict.reason}")
            ends.append(time.perf_counter())
    # Before, some processes still start; after, some have nothing left to do.
    start, stop = ends[workers - 1], ends[-workers - 1]
    rate = (len(ends) - 2 * workers) / (stop - start)
    busy = [share for at, share in samples if start < at <= stop]
    return rate, float(np.mean(busy)) if busy else float("nan")


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


def time_original(setting: Setting, network: DeepfakeClassifier, threads: int) -> float:
    """Videos a second of the original's procedure with one network, after a first one."""
    peer = MTCNN(keep_all=True, thresholds=list(INFERENCE_THRESHOLDS), device=setting.device)
    half = deepcopy(network).to(memory_format=torch.contiguous_format)
    half = half.to(torch.float32 if setting.rehearsal else torch.float16)
    videos = link_videos(setting, threads * setting.few(2, 1))
    follow = partial(follow_original, model=half, peer=peer, n=setting.few(32, 8))
    follow(videos[0])
    with ThreadPoolExecutor(threads) as pool:
        return len(videos) / time_call(lambda: list(pool.map(follow, videos)))


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
        boxes = peer.detect(resize_for_detection(frame, "upstream"))[0]
        for box in () if boxes is None else boxes:
            crop = cut_face(frame, 2 * box.astype(float), MARGINS["upstream"])
            crops.append(transform(image=isotropic_resize(crop, size))["image"])
    pictures = torch.stack(crops).to(model.fc.weight.device, model.fc.weight.dtype)
    return float(model(pictures).sigmoid().mean())


def measure_stages(setting: Setting) -> Iterator[dict]:
    """What bounds it: seconds a video of each stage by itself."""
    given = (setting.encoders[0], setting.clips[0], "upstream")
    if not setting.rehearsal:
        predict.measure_stages(*given)  # cuDNN prepares itself for each new shape
    for row in predict.measure_stages(*given).itertuples():
        yield {"stage": row.stage, "seconds": row.seconds}
