"""A training step against a plain loop in upstream's style, B3 to B7.

    python -m benchmarks.train_step [--encoders b3,b5] [--batch 16] [--repetitions 3]

The peer: the same network and optimizer in the default memory layout (NCHW), fp16 autocast on a GPU
and fp32 on a CPU, the loss read after each step. Ours: the loop of `train.Trainer.fit`, channels
last; on a CPU once in fp32 and once in bf16. Writes benchmarks/train_step.csv (about 6 minutes on
two CPU cores).
"""

import argparse
import gc
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.measure import alternate, compare, stamp
from dfdc_lib.config import ENCODERS, PreprocessConfig, TrainConfig
from dfdc_lib.model import DeepfakeClassifier
from dfdc_lib.store import WorkFolder, write_json
from dfdc_lib.train import Trainer, balanced_loss, make_optimizer

HERE = Path(__file__).parent
NO_ROWS = pd.DataFrame()


class PlainLoop:
    """Upstream's step, written out: NCHW, fp16 with a scaler on a GPU, the loss read each time."""

    def __init__(self, config: TrainConfig):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = DeepfakeClassifier(config.encoder).to(self.device).train()
        self.optimizer, self.scheduler = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.device == "cuda")
        self.smoothing = config.smoothing

    def take_step(self, pictures: Tensor, labels: Tensor) -> float:
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


class OurLoop(Trainer):
    """Our loop over one batch, which stays in memory: no step validates or saves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pinned = self.device.type == "cuda"  # as a loader's batches are
        self.given = [given.pin_memory() if pinned else given for given in make_batch(self.config)]

    def load_batches(self, rows: pd.DataFrame) -> Iterator[tuple[Tensor, Tensor, int]]:
        pictures, labels = self.given
        goal = {"device": self.device, "non_blocking": True}
        yield pictures.to(memory_format=torch.channels_last, **goal), labels.to(**goal), 0

    def take_step(self) -> None:
        self.fit(NO_ROWS, NO_ROWS, [], lambda *_: None)


def make_batch(config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Make noise, with labels of both kinds."""
    side = config.input_size
    return torch.randn(config.batch, 3, side, side), torch.arange(config.batch) % 2.0


def make_loop(config: TrainConfig, folder: Path) -> OurLoop:
    """Make our loop, in a work folder without crops."""
    work = WorkFolder(folder)
    settings = PreprocessConfig().to_json()
    write_json(work.recipe, {"data": "nothing", "settings": settings, "versions": {}})
    work.folds.touch()
    return OurLoop(work, config, "benchmark", save_every=config.steps)


def time_steps(encoder: str, batch: int, repetitions: int, folder: Path) -> list[dict]:
    """A line per precision of ours: seconds per step, the peer's too, and their ratio."""
    config = TrainConfig(encoder=encoder, batch=batch)
    given, peer = make_batch(config), PlainLoop(config)
    rivals = {"peer": lambda: peer.take_step(*given)}
    for precision in ("fp16", "bf16") if torch.cuda.is_available() else ("no", "bf16"):
        rivals[precision] = make_loop(replace(config, precision=precision), folder).take_step
    seconds, lines = alternate(rivals, repetitions), []
    for precision in list(rivals)[1:]:
        line = {"encoder": encoder, "size": config.input_size, "batch": batch}
        line["ours"] = precision.replace("no", "fp32")
        lines.append(line | compare(seconds, precision, "peer"))
        print(lines[-1], flush=True)
    return lines


def peak_gpu_memory(encoder: str, batch: int, precision: str, folder: Path) -> float:
    """The most GB of GPU memory that a step of ours takes."""
    gc.collect()  # an earlier loop may survive in a cycle of references
    torch.cuda.empty_cache()
    loop = make_loop(TrainConfig(encoder=encoder, batch=batch, precision=precision), folder)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        loop.take_step()
    return torch.cuda.max_memory_allocated() / 1e9


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
                lines[-1]["peak_gb"] = peak_gpu_memory(encoder, batch, "bf16", Path(folder))
    table = pd.DataFrame(lines).assign(**stamp("timm", "accelerate"))
    table.to_csv(HERE / "train_step.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
