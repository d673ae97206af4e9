"""Training: the loop, plainly. One run writes config.json, metrics.csv and its checkpoint under runs/<name>/."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dfdc_lib.aggregate import mean
from dfdc_lib.augment import AUGMENTATIONS, valid_transforms
from dfdc_lib.config import ENCODERS, TrainConfig
from dfdc_lib.dataset import CropDataset, CropReader, PairDataset, balance, draw_pairs, pair, read_folds, split_fold
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint
from dfdc_lib.paths import WorkFolder, appear_whole, write_json


@dataclass
class Run:
    """A finished training run."""

    folder: Path
    model: DeepfakeClassifier
    losses: list[float]  # of each step
    metrics: pd.DataFrame  # one row an epoch: epoch, step, train_loss, learning_rate
    held_out: pd.DataFrame  # one row a validation crop, with its p_fake

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.pt"


def balanced_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean of the reals' and the fakes' cross-entropy, labels smoothed to `smoothing` and 1 - `smoothing`.

    logits, labels: (N,). Source: upstream averages each class by itself, so that neither outweighs the other, and
    clips the labels; the slides have 0.01. Notebook 01 derives where a smoothed logit settles.
    """
    smooth = labels.clamp(smoothing, 1 - smoothing)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
    return torch.stack([losses[labels == label].mean() for label in (0, 1) if (labels == label).any()]).mean()


def make_optimizer(model: nn.Module, config: TrainConfig):
    """Return (optimizer, scheduler), the scheduler stepped after every batch."""
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.learning_rate, config.steps, pct_start=0.2
        )
    optimizer = torch.optim.SGD(
        model.parameters(), config.learning_rate, momentum=0.9, weight_decay=config.weight_decay, nesterov=True
    )
    return optimizer, torch.optim.lr_scheduler.PolynomialLR(optimizer, config.steps, power=0.9)


def draw_batches(rows: pd.DataFrame, reader: CropReader, config: TrainConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `config.steps` batches: pictures (N, 3, S, S), labels (N,). What is drawn follows from the seed alone."""
    size = ENCODERS[config.encoder].size
    pairs = pair(rows) if config.paired else None
    given, epoch = 0, 0
    while given < config.steps:
        # Own streams for each run, epoch and purpose: with seed + epoch, run 0's second epoch would be run 1's first.
        augment, draw, shuffle = np.random.SeedSequence([config.seed, epoch]).generate_state(3).tolist()
        transform = AUGMENTATIONS[config.augmentation](size, seed=augment)
        if config.paired:
            n_pairs = config.epoch_steps * (config.batch // 2)
            data = PairDataset(draw_pairs(pairs, n_pairs, draw), reader, transform)
            loader = DataLoader(data, config.batch // 2)
        else:
            data = CropDataset(balance(rows, draw), reader, transform)
            order = torch.Generator().manual_seed(shuffle)
            loader = DataLoader(data, config.batch, shuffle=True, drop_last=len(data) >= config.batch, generator=order)
        for pictures, labels in loader:
            if given == config.steps:
                return
            yield pictures.flatten(0, -4), labels.flatten()
            given += 1
        epoch += 1


def train(
    work: WorkFolder,
    config: TrainConfig,
    name: str,
    pretrained: bool = False,
    progress: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> Run:
    """Train one classifier on all folds but `config.fold`, and score the crops of that fold.

    progress(step, steps, loss) is called after each step. Writes runs/<name>/{config.json, metrics.csv, last.pt,
    held_out.csv}.
    """
    folder = work.run(name)
    torch.manual_seed(config.seed)
    rows, held_out = split_fold(read_folds(work), config.fold)
    model = DeepfakeClassifier(config.encoder, pretrained).to(memory_format=torch.channels_last)
    source = work.read_source()
    model.card = replace(model.card, trained_on=source["trained_on"], margin=source["margin"])
    reader = CropReader(work, model.card.size, keep=config.paired)
    losses, rates = fit(model, draw_batches(rows, reader, config), config, progress)
    save_checkpoint(folder / "last.pt", model)  # before anything else can go wrong
    run = Run(folder, model.eval(), losses, _by_epoch(losses, rates, config), score_crops(model, held_out, reader))
    _write(run, config)
    return run


def fit(model: DeepfakeClassifier, batches, config: TrainConfig, progress) -> tuple[list[float], list[float]]:
    """The training loop: forward, loss, backward, clip, step. Returns each step's loss and learning rate."""
    optimizer, scheduler = make_optimizer(model, config)
    model.train()
    losses, rates = [], []
    for step, (pictures, labels) in enumerate(batches, 1):
        logits = model(pictures.contiguous(memory_format=torch.channels_last))  # (N,)
        loss = balanced_loss(logits, labels, config.smoothing)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        progress(step, config.steps, losses[-1])
    return losses, rates


def score_crops(model: DeepfakeClassifier, rows: pd.DataFrame, reader: CropReader, batch: int = 64) -> pd.DataFrame:
    """Return `rows` with a column p_fake: the model's answer for each crop."""
    loader = DataLoader(CropDataset(rows, reader, valid_transforms(model.card.size)), batch)
    scores = [model.predict(pictures) for pictures, _ in loader]
    return rows.assign(p_fake=torch.cat(scores).numpy())


def score_videos(crops: pd.DataFrame, strategy: Callable = mean) -> pd.DataFrame:
    """Join the crops' p_fake of each video: columns video_id, label, original_id, p_fake."""
    grouped = crops.groupby("video_id")
    videos = grouped.agg(label=("label", "first"), original_id=("original_id", "first"))
    return videos.assign(p_fake=grouped.p_fake.apply(lambda p: strategy(p.to_numpy()))).reset_index()


def _by_epoch(losses: list[float], rates: list[float], config: TrainConfig) -> pd.DataFrame:
    steps = pd.DataFrame({"step": range(1, len(losses) + 1), "train_loss": losses, "learning_rate": rates})
    epochs = steps.groupby((steps.step - 1) // config.epoch_steps)
    return (
        epochs.agg({"step": "last", "train_loss": "mean", "learning_rate": "last"}).rename_axis("epoch").reset_index()
    )


def _write(run: Run, config: TrainConfig) -> None:
    write_json(run.folder / "config.json", asdict(config) | {"card": asdict(run.model.card)})
    for table, name in ((run.metrics, "metrics.csv"), (run.held_out, "held_out.csv")):
        with appear_whole(run.folder / name) as temporary:
            table.to_csv(temporary, index=False)
