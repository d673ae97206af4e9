"""A training step against a plain upstream-style loop, B3 to B7.

    python -m benchmarks.train_step [--encoders b3,b5] [--batch 16] [--repetitions 3]

The peer: the same network and optimizer in the default memory layout (NCHW), fp16 autocast on a GPU and fp32 on a CPU,
the loss read after each step. Ours: `train.Trainer.take_step`, channels last; on a CPU once in fp32 and once in bf16.
Writes benchmarks/train_step.csv (about 6 minutes on two CPU cores).
"""

import argparse
import gc
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from benchmarks.measure import alternate, compare, stamp
from dfdc_lib.config import ENCODERS, TrainConfig
from dfdc_lib.model import DeepfakeClassifier
from dfdc_lib.paths import WorkFolder, write_json
from dfdc_lib.train import Trainer, balanced_loss, make_accelerator, make_optimizer

HERE = Path(__file__).parent


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


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", default="b3,b4,b5,b6,b7")
    parser.add_argument("--batch", type=int, help="default: the slides' on a GPU, 2 on a CPU")
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    cuda, lines = torch.cuda.is_available(), []
    with tempfile.TemporaryDirectory() as folder:
        for encoder in args.encoders.split(","):
            batch = args.batch or (ENCODERS[encoder].batch if cuda else 2)
            lines += time_steps(encoder, batch, args.repetitions, Path(folder))
            if cuda:
                lines[-1]["peak_gb"] = peak_memory(encoder, batch, "bf16", Path(folder))
    table = pd.DataFrame(lines).assign(**stamp("timm", "accelerate"))
    table.to_csv(HERE / "train_step.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
