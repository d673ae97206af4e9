"""A training step against a plain upstream-style loop, B3 to B7, and the loader against the model's appetite.

    python -m benchmarks.train_step [--encoders b3,b5] [--batch 16] [--repetitions 3] [--loader-only]

The peer: the same network and optimizer in the default memory layout (NCHW), fp16 autocast on a GPU and fp32 on a CPU,
the loss read after each step. Ours: `train.Trainer.take_step`, channels last; on a CPU once in fp32 and once in bf16.
Writes benchmarks/train_step.csv and benchmarks/loader.csv (about 6 minutes on two CPU cores).
"""

import argparse
import gc
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import skimage.data
import torch
from torch import nn

from benchmarks.measure import alternate, compare, stamp
from dfdc_lib.augment import train_transforms
from dfdc_lib.config import ENCODERS, TrainConfig
from dfdc_lib.manipulate import FACE, self_blend
from dfdc_lib.model import DeepfakeClassifier
from dfdc_lib.paths import WorkFolder, read_png, write_json, write_png
from dfdc_lib.train import Trainer, balanced_loss, make_accelerator, make_optimizer

HERE = Path(__file__).parent
CROP_SIZE = 400  # pixels: about what a face of a 1080p DFDC video gives


class PlainLoop:
    """Upstream's step, plainly: NCHW, autocast to fp16 with a scaler on a GPU, the loss read each time."""

    def __init__(self, config: TrainConfig):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = DeepfakeClassifier(config.encoder).to(self.device).train()
        self.optimizer, self.scheduler = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.device == "cuda")
        self.smoothing = config.smoothing

    def take_step(self, pictures: torch.Tensor, labels: torch.Tensor) -> float:
        pictures, labels = pictures.to(self.device), labels.to(self.device)
        self.optimizer.zero_grad()
        with torch.autocast(self.device, torch.float16, enabled=self.device == "cuda"):
            logits = self.model(pictures)
        loss = balanced_loss(logits, labels, self.smoothing)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return loss.item()


def make_trainer(config: TrainConfig, folder: Path) -> Trainer:
    """Our trainer, without data."""
    work = WorkFolder(folder)
    write_json(work.source, {"trained_on": "nothing", "margin": 0.2})
    trainer = Trainer(work, config, folder, make_accelerator(config.precision), {}, pretrained=False)
    trainer.model.train()
    return trainer


def time_steps(encoder: str, batch: int, repetitions: int, folder: Path) -> list[dict]:
    """One line for each precision of ours: seconds a step of ours and of the peer, their ratio, memory on a GPU."""
    cuda = torch.cuda.is_available()
    config = TrainConfig(encoder=encoder, batch=batch)
    pictures, labels = torch.randn(batch, 3, config.input_size, config.input_size), torch.arange(batch) % 2
    rivals, peer = {}, PlainLoop(config)
    rivals["peer"] = lambda: peer.take_step(pictures, labels.float())
    for precision in ("fp16", "bf16") if cuda else ("no", "bf16"):
        trainer = make_trainer(replace(config, precision=precision), folder)
        rivals[precision] = lambda trainer=trainer: trainer.take_step(pictures, labels.float(), 0)
    seconds = alternate(rivals, repetitions)
    lines = []
    for precision in list(rivals)[1:]:
        line = {"encoder": encoder, "size": config.input_size, "batch": batch, "ours": precision.replace("no", "fp32")}
        lines.append(line | compare(seconds, precision, "peer"))
        print(lines[-1], flush=True)
    return lines


def peak_memory(encoder: str, batch: int, precision: str, folder: Path) -> float:
    """GB of GPU memory that a step of ours takes at most."""
    config = TrainConfig(encoder=encoder, batch=batch, precision=precision)
    gc.collect()  # an earlier trainer may survive in a cycle of references
    torch.cuda.empty_cache()
    trainer = make_trainer(config, folder)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        trainer.take_step(torch.randn(batch, 3, config.input_size, config.input_size), torch.arange(batch) % 2.0, 0)
    return torch.cuda.max_memory_allocated() / 1e9


def time_loader(repetitions: int, folder: Path) -> dict[str, float]:
    """Milliseconds for one picture on one core: decoding its PNG, blending it with itself, augmenting it."""
    portrait = skimage.data.astronaut()[:CROP_SIZE, :CROP_SIZE]
    noise = np.random.default_rng(0).normal(0, 2, portrait.shape)  # a camera's: it is what makes PNGs slow
    write_png(folder / "crop.png", np.clip(portrait + noise, 0, 255).astype(np.uint8))
    crop = read_png(folder / "crop.png")
    many, rivals = range(100), {"decode": lambda: [read_png(folder / "crop.png") for _ in many]}
    for size in (300, 380):
        transform = train_transforms(size, seed=0)
        rivals[f"augment_{size}"] = lambda transform=transform: [transform(image=crop) for _ in many]
    rng, landmarks = np.random.default_rng(0), CROP_SIZE * (0.5 + 0.3 * (FACE - FACE.mean(axis=0)))  # fills the crop
    rivals["self_blend"] = lambda: [self_blend(crop, landmarks, rng) for _ in many]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = alternate(rivals, repetitions)
    torch.set_num_threads(threads)
    return {f"{name}_ms": seconds[name].median() * 1000 / len(many) for name in rivals}


def main() -> None:
    """Measure, and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", default="b3,b4,b5,b6,b7")
    parser.add_argument("--batch", type=int, help="default: the slides' on a GPU, 2 on a CPU")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--loader-only", action="store_true", help="keep the steps' table of an earlier run")
    args = parser.parse_args()
    cuda, lines = torch.cuda.is_available(), []
    with tempfile.TemporaryDirectory() as folder:
        for encoder in [] if args.loader_only else args.encoders.split(","):
            batch = args.batch or (ENCODERS[encoder].batch if cuda else 2)
            lines += time_steps(encoder, batch, args.repetitions, Path(folder))
            if cuda:
                lines[-1]["peak_gb"] = peak_memory(encoder, batch, "bf16", Path(folder))
        loader = time_loader(args.repetitions, Path(folder))
    if lines:
        table = pd.DataFrame(lines).assign(**stamp("timm", "accelerate"))
        table.to_csv(HERE / "train_step.csv", index=False, float_format="%.4g")
    table = pd.read_csv(HERE / "train_step.csv")
    appetite = table.assign(
        model_pictures_per_s=table.batch / table.ours_s,
        loader_pictures_per_s_and_core=[
            1000 / (loader["decode_ms"] + loader[f"augment_{s}_ms"]) for s in table["size"]
        ],
    )
    columns = ["encoder", "ours", "model_pictures_per_s", "loader_pictures_per_s_and_core", "machine", "date"]
    loader |= {f"loader_{name}": stamp()[name] for name in ("machine", "date")}  # the steps may be of another day
    appetite[columns].assign(**loader).to_csv(HERE / "loader.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
