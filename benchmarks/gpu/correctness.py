"""Does a card give the CPU's answers? A line per check: what differs by how much, what is allowed.

A line holds if the difference is at most what is allowed. In a rehearsal the CPU takes the card's
place, and facenet-pytorch's own `detect` the CPU's.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.setting import Setting, make_network
from benchmarks.measure import exact_arithmetic
from dfdc_lib.aggregate import join_videos
from dfdc_lib.config import INFERENCE_THRESHOLDS, TrainConfig
from dfdc_lib.faces import FaceDetector
from dfdc_lib.fast.scorers import make_scorer
from dfdc_lib.model import DeepfakeClassifier
from dfdc_lib.train import Run, balanced_loss, train

STEPS = 4  # of each short training


def line(check: str, difference: float, allowed: float, unit: str) -> dict:
    """A line of the table. A difference that isn't a number doesn't hold."""
    found = {"check": check, "differs by": difference, "allowed": allowed, "unit": unit}
    return found | {"holds": bool(difference <= allowed)}


def check_detector(setting: Setting) -> Iterator[dict]:
    """The boxes on the card against those on a CPU, frame by frame."""
    frames = setting.read_frames()
    here = FaceDetector(INFERENCE_THRESHOLDS, setting.device, "torch").detect(frames)
    backend = "plain" if setting.rehearsal else "torch"
    there = FaceDetector(INFERENCE_THRESHOLDS, "cpu", backend).detect(frames)
    pairs = list(zip(here, there, strict=True))
    others = sum(len(one.boxes) != len(other.boxes) for one, other in pairs)
    yield line(
        "detector: frames with another number of faces", others, 0, f"of {len(frames)} frames"
    )
    same = [(one, other) for one, other in pairs if len(one.boxes) == len(other.boxes)]
    for name in ("boxes", "landmarks"):
        apart = [np.abs(getattr(a, name) - getattr(b, name)).max(initial=0) for a, b in same]
        yield line(f"detector: {name}", float(max(apart, default=np.nan)), 0.1, "pixels")


def check_scores(setting: Setting) -> Iterator[dict]:
    """Each precision's p_fake and verdicts against 24 bits of fp32."""
    encoder = setting.encoders[0]
    crops, video_ids = setting.read_crops(encoder, setting.few(120, 16))
    model = make_network(encoder, crops, setting.device)
    scores = {}
    with exact_arithmetic():
        scores["fp32"] = score_all(make_scorer(model, "torch", "fp32"), crops)
    scores["tf32"] = score_all(make_scorer(model, "torch", "fp32"), crops)
    for precision in setting.precisions:
        scores[precision] = score_all(make_scorer(model, "torch", precision), crops)
    verdicts = {name: join_videos("confident", p, video_ids)[1] for name, p in scores.items()}
    clear = np.abs(verdicts["fp32"] - 0.5) > 0.05
    for name in ("tf32", *setting.precisions):
        apart, digits = np.abs(scores[name] - scores["fp32"]), 3 if name == "bf16" else 1
        typical, largest = float(np.median(apart)), float(apart.max())
        yield line(f"{encoder} in {name}: p_fake, median", typical, 0.01 * digits, "probability")
        yield line(f"{encoder} in {name}: p_fake, largest", largest, 0.1 * digits, "probability")
        turned = clear & ((verdicts[name] > 0.5) != (verdicts["fp32"] > 0.5))
        unit = f"of {clear.sum()} clear ones"
        yield line(f"{encoder} in {name}: verdicts turned", int(turned.sum()), 0, unit)


def score_all(score, crops: torch.Tensor, batch: int = 32) -> np.ndarray:
    """The p_fake of many crops, some at a time."""
    return torch.cat([score(some) for some in crops.split(batch)]).numpy()


def check_training(setting: Setting) -> Iterator[dict]:
    """A few steps in each precision against fp32, and a run that was stopped and resumed."""
    encoder = setting.smallest
    config = TrainConfig(encoder, steps=STEPS, epoch_steps=STEPS, batch=setting.batch(encoder))
    config = replace(config, learning_rate=1e-3)  # so that rounding is not amplified
    with exact_arithmetic():
        exact = train(setting.work, config, "exact").losses
    for precision in reversed(setting.precisions):  # fp16 last: it is resumed
        mixed = replace(config, precision=precision)
        losses = train(setting.work, mixed, precision).losses
        apart = np.abs(np.divide(losses, exact) - 1)
        first, last = float(apart[0]), float(apart.max())
        yield line(f"{encoder} in {precision}: loss of the first step", first, 0.02, "share")
        yield line(f"{encoder} in {precision}: losses of {STEPS} steps", last, 0.1, "share")
    resumed = train_with_a_break(setting, mixed)
    apart = float(np.abs(np.divide(resumed.losses, losses) - 1).max())
    # A CPU repeats a run to the bit; on a card sums are added in no fixed order.
    allowed = 0 if setting.rehearsal else 0.02
    yield line(f"{encoder} in {precision}: stopped and resumed", apart, allowed, "share")


def train_with_a_break(setting: Setting, config: TrainConfig) -> Run:
    """Stop a run after half of its steps, as Ctrl-C does, and resume it."""

    def stop_halfway(step: int, steps: int, loss: float) -> None:
        if step == steps // 2:
            signal.raise_signal(signal.SIGINT)

    work = setting.work
    half = train(work, config, "resumed", progress=stop_halfway)
    assert len(half.losses) < STEPS
    return train(work, config, "resumed")


def check_sync_batchnorm(setting: Setting) -> Iterator[dict]:
    """One step of two processes with half a batch each, against one with the whole batch."""
    encoder = setting.smallest
    crops, _ = setting.read_crops(encoder, 8)
    labels = torch.arange(len(crops)) % 2.0
    whole = take_step(make_model(encoder).to(setting.device), crops, labels, setting)
    given = (encoder, crops, labels, setting)
    torch.multiprocessing.spawn(take_half_a_step, given, nprocs=2)
    halves = torch.load(setting.scratch / "halves.pt", weights_only=True)
    apart = float((halves - whole).norm() / whole.norm())
    name = f"{encoder}, SyncBN: gradient of two processes with half a batch each"
    yield line(name, apart, 0.01, "share")


def make_model(encoder: str) -> DeepfakeClassifier:
    """The same network in every process, without drop-path: its draws depend on the batch."""
    torch.manual_seed(0)
    model = DeepfakeClassifier(encoder)
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return model


def take_step(
    model: nn.Module, crops: torch.Tensor, labels: torch.Tensor, setting: Setting
) -> torch.Tensor:
    """The first layer's gradient, on the CPU. SyncBN can't train there, so a rehearsal doesn't."""
    model.train(not setting.rehearsal)
    with exact_arithmetic():
        logits = model(crops.to(setting.device))
        balanced_loss(logits, labels.to(setting.device), 0.01).backward()
    return next(model.parameters()).grad.cpu()


def take_half_a_step(
    rank: int, encoder: str, crops: torch.Tensor, labels: torch.Tensor, setting: Setting
) -> None:
    """What one of two processes does; both share a card, so they talk by gloo."""
    from timm.layers import convert_sync_batchnorm

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine may have no other name
    store = f"file://{setting.scratch}/processes"
    place = {"rank": rank, "world_size": 2, "timeout": timedelta(seconds=60)}
    torch.distributed.init_process_group("gloo", init_method=store, **place)
    model = make_model(encoder)
    model.encoder = convert_sync_batchnorm(model.encoder)
    left = [m for m in model.modules() if type(m).__name__.startswith("BatchNorm")]
    assert not left, f"{len(left)} layers were not converted"
    half = slice(rank * len(crops) // 2, (rank + 1) * len(crops) // 2)
    gradient = take_step(model.to(setting.device), crops[half], labels[half], setting)
    torch.distributed.all_reduce(gradient)
    if rank == 0:
        torch.save(gradient / 2, setting.scratch / "halves.pt")
    torch.distributed.destroy_process_group()
