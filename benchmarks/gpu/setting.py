"""What all parts share: where things are, how large they are, when to stop."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.clips import detector_frames
from benchmarks.measure import exact_arithmetic
from dfdc_lib.augment import valid_transforms
from dfdc_lib.config import ENCODERS, MixedPrecision
from dfdc_lib.dataset import CropReader, read_folds
from dfdc_lib.model import DeepfakeClassifier
from dfdc_lib.store import WorkFolder


@dataclass(frozen=True)
class Setting:
    """One call of `python -m benchmarks gpu`, on a card or, as a rehearsal, on a CPU."""

    folder: Path  # what `gpu-prepare` made; its clips/ are read here
    scratch: Path  # thrown away at the end: a copy of its work/, to train in, and checkpoints
    rehearsal: bool
    pretrained: Path | None = None  # a folder with timm's weights
    until: float = float("inf")  # when the part should end, by time.perf_counter()

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsal else "cuda"

    @property
    def encoders(self) -> tuple[str, ...]:
        """The slides' encoders, the most wanted first; a rehearsal takes the smallest."""
        return ("tiny",) if self.rehearsal else ("b7", "b5", "b3", "b4", "b6")

    @property
    def smallest(self) -> str:
        """The encoder for checks that any can make."""
        return "tiny" if self.rehearsal else "b3"

    @property
    def precisions(self) -> tuple[MixedPrecision, ...]:
        return ("bf16",) if self.rehearsal else ("fp16", "bf16")

    def few(self, many: int, few: int) -> int:
        """How many of something: `many` on a card, `few` in a rehearsal."""
        return few if self.rehearsal else many

    def batch(self, encoder: str) -> int:
        """The slides' pictures per GPU and step; in a rehearsal four."""
        return self.few(ENCODERS[encoder].batch, 4)

    @property
    def work(self) -> WorkFolder:
        return WorkFolder(self.scratch / "work")

    @property
    def clips(self) -> list[Path]:
        return sorted((self.folder / "clips").iterdir())

    def has_time(self, seconds: float = 0) -> bool:
        """Is there time for something that takes this long?"""
        return time.perf_counter() + seconds < self.until

    def read_crops(self, encoder: str, n: int) -> tuple[torch.Tensor, list[str]]:
        """Some crops as an encoder reads them, (n, 3, S, S), and the video of each."""
        size = ENCODERS[encoder].size
        rows, transform = read_folds(self.work).iloc[:n], valid_transforms(size)
        read = CropReader(self.work, size)
        crops = [transform(image=read(row))["image"] for row in rows.itertuples()]
        return torch.stack(crops), rows.video_id.tolist()

    def read_frames(self) -> list:
        """Frames of a 1080p clip, at the size that the detector gets."""
        return detector_frames(self.clips[0], self.few(10, 100))


def make_network(encoder: str, crops: torch.Tensor, device: str) -> DeepfakeClassifier:
    """Make a network that knows nothing of fakes but tells crops apart: see procedures.py."""
    from experiments.procedures import spread_scores

    model = DeepfakeClassifier(encoder).to(device).eval()
    with exact_arithmetic():
        return spread_scores(model, crops)
