"""How many pictures a second a card trains: our loop, timm's bare step, the original's loop."""

import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch

from benchmarks.gpu.setting import Setting
from benchmarks.measure import alternate
from benchmarks.train_step import PlainLoop, make_batch, make_loop, peak_gpu_memory
from dfdc_lib import dataset
from dfdc_lib.augment import AUGMENTATIONS
from dfdc_lib.config import ENCODERS, TrainConfig
from dfdc_lib.dataset import CropDataset, CropReader

STEPS = 75_000  # of the slides, on four cards
READ = 20  # batches of each process that a loader is timed for, after the first few


class BareLoop:
    """The least that a step of this network can be: timm's network, PyTorch's fp16, one batch of
    noise that never leaves the card, nothing read or reported."""

    def __init__(self, config: TrainConfig, device: str):
        preset = ENCODERS[config.encoder]
        dropped = {"drop_path_rate": preset.drop_path} if preset.drop_path else {}
        model = timm.create_model(preset.timm_name, num_classes=1, **dropped)
        self.model = model.to(device, memory_format=torch.channels_last).train()
        options = {"momentum": 0.9, "nesterov": True, "weight_decay": config.weight_decay}
        self.optimizer = torch.optim.SGD(self.model.parameters(), config.learning_rate, **options)
        self.scaler = torch.amp.GradScaler(device, enabled=config.precision == "fp16")
        number = {"fp16": torch.float16, "bf16": torch.bfloat16}[config.precision]
        self.autocast = partial(torch.autocast, device, number)
        pictures, labels = make_batch(config)
        self.pictures = pictures.to(device, memory_format=torch.channels_last)
        self.labels = labels.to(device)

    def take_step(self) -> None:
        self.optimizer.zero_grad()
        with self.autocast():
            logits = self.model(self.pictures).squeeze(1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def measure_steps(setting: Setting) -> Iterator[dict]:
    """A line per encoder and precision; the rivals take turns, a few steps each."""
    first, largest = setting.precisions[0], setting.encoders[0]
    wanted = [(encoder, first, False) for encoder in setting.encoders]
    if not setting.rehearsal:
        wanted += [("resnest50", first, False), (largest, "bf16", False), (largest, first, True)]
    for encoder, precision, tuned in wanted:
        if not setting.has_time(30 if tuned else 10):
            continue
        # cuDNN then times its ways to convolve, which takes a while, and keeps the fastest.
        with torch.backends.cudnn.flags(enabled=True, benchmark=tuned, allow_tf32=True):
            yield time_encoder(setting, encoder, precision) | {"tuned": tuned}


def time_encoder(setting: Setting, encoder: str, precision: str) -> dict:
    """Pictures a second of our loop, the bare step and the original's loop; memory; hours."""
    config = TrainConfig(encoder, batch=setting.batch(encoder), precision=precision)
    steps, rounds = setting.few(5, 1), setting.few(3, 1)
    with tempfile.TemporaryDirectory() as name:
        folder, peak = Path(name), float("nan")
        if not setting.rehearsal:
            peak = peak_gpu_memory(encoder, config.batch, precision, folder)
        bare, original = BareLoop(config, setting.device), PlainLoop(config)
        ours, given = make_loop(config, folder), make_batch(config)
        rivals = {
            "ours": lambda: [ours.take_step() for _ in range(steps)],
            "bare step": lambda: [bare.take_step() for _ in range(steps)],
            "original's loop": lambda: [original.take_step(*given) for _ in range(steps)],
        }
        seconds = alternate(rivals, rounds).median() / steps
    rates, hours = config.batch / seconds, STEPS * seconds.ours / 3600
    line = {"encoder": encoder, "size": config.input_size, "batch": config.batch}
    line |= {"precision": precision} | rates.to_dict()
    line |= {f"/ {name}": rates.ours / rates[name] for name in list(rivals)[1:]}
    return line | {"GB": peak, "hours on 4 cards": hours, "hours on 1 card": 4 * hours}


def measure_loader(setting: Setting) -> Iterator[dict]:
    """Pictures a second that processes read and augment, with the slides' augmentation."""
    encoder = setting.encoders[0]
    size, batch = ENCODERS[encoder].size, setting.batch(encoder)
    rows, cores = dataset.read_folds(setting.work), os.cpu_count() or 1
    for workers in [n for n in setting.few((16, 4, 1), (1,)) if n <= cores]:
        if not setting.has_time(10):
            return
        ahead = 4 * workers  # as many batches are ready, or nearly so, when the first one comes
        many = rows.sample((ahead + READ * workers) * batch, replace=True, random_state=0)
        reader = CropReader(setting.work, size)
        data = CropDataset(many, reader, AUGMENTATIONS["slides"](size))
        batches = dataset.read_batches(data, workers, batch_size=batch)
        for _ in range(ahead):
            next(batches)
        started = time.perf_counter()
        n_read = sum(len(labels) for _, labels, _ in batches)
        rate = n_read / (time.perf_counter() - started)
        sides = [max(reader(row).shape) for row in rows.iloc[:50].itertuples()]
        line = {"processes": workers, "pixels of a crop": round(np.mean(sides)), "resized to": size}
        yield line | {"pictures/s": rate, "each": rate / workers}
