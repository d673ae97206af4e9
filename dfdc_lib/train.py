"""Training: the loop, plainly. Underneath, accelerate: mixed precision, one process or many, CPU or GPUs.

A run writes to runs/<name>/: config.json (settings, versions, data), metrics.csv (one line an epoch), last.pt (all that
is needed to go on), best.pt (the weights with the lowest validation loss) and held_out.csv (p_fake of each held-out
crop). All randomness follows from the seed, the epoch and the step, so a run that was interrupted and goes on ends
with the same weights, bit for bit on a CPU, as one that was not.
"""

import hashlib
import importlib.metadata
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dfdc_lib.aggregate import STRATEGIES, join_videos
from dfdc_lib.augment import AUGMENTATIONS, valid_transforms
from dfdc_lib.config import BLACKOUTS, TrainConfig
from dfdc_lib.dataset import (
    CropDataset,
    CropReader,
    PairDataset,
    check_files,
    epoch_order,
    pair,
    read_batches,
    read_folds,
    split_fold,
    stream_seed,
)
from dfdc_lib.metrics import log_loss
from dfdc_lib.model import DeepfakeClassifier, read_weights, save_checkpoint
from dfdc_lib.paths import WorkFolder, hold, write_csv, write_json

VERSIONS = ("torch", "timm", "accelerate", "albumentations", "opencv-python-headless", "numpy")


@dataclass
class Run:
    """A training run, finished or interrupted."""

    folder: Path
    model: DeepfakeClassifier
    losses: list[float]  # of each step
    metrics: pd.DataFrame  # one row an epoch: epoch, step, train_loss, learning_rate, broken, valid_loss, …
    held_out: pd.DataFrame  # one row a validation crop, with its p_fake
    finished: bool

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.pt"

    def require_finished(self) -> "Run":
        """Return itself; raise KeyboardInterrupt where it was stopped: a script of many runs then stops too."""
        if not self.finished:
            raise KeyboardInterrupt(f"{self.folder} was stopped after step {len(self.losses)}; the next call goes on")
        return self


@dataclass
class History:
    """What a run remembers from its first step on; part of last.pt."""

    losses: list[float] = field(default_factory=list)  # of each step, over all processes
    rates: list[float] = field(default_factory=list)
    broken: int = 0  # pictures that could not be read
    epochs: list[dict] = field(default_factory=list)  # the lines of metrics.csv
    best: float = float("inf")


def balanced_loss(logits: Tensor, labels: Tensor, smoothing: float, counts: Tensor | None = None) -> Tensor:
    """Mean of the reals' and the fakes' cross-entropy, labels smoothed to `smoothing` and 1 - `smoothing`.

    logits, labels: (N,). counts: of the whole batch (see `class_counts`), where these are only a part of it; the sum of
    the parts' losses is then the loss of the whole (the mean of each part's own balanced loss is not, because each has
    other counts). Source: upstream averages each class by itself, so that neither outweighs the other, and clips the
    labels; the slides have 0.01. Notebook 01 derives where a smoothed logit settles.
    """
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits.float(), labels.clamp(smoothing, 1 - smoothing), reduction="none"
    )
    sums = torch.stack([((labels == label) * losses).sum() for label in (0, 1)])  # (2,)
    counts = class_counts(labels) if counts is None else counts
    return (sums / counts.clamp(min=1)).sum() / (counts > 0).sum()


def class_counts(labels: Tensor) -> Tensor:
    """How many reals and how many fakes: (2,) float32."""
    return torch.stack([(labels == 0).sum(), (labels == 1).sum()]).float()


def make_optimizer(model: nn.Module, config: TrainConfig):
    """Return (torch optimizer, torch scheduler), the scheduler to be stepped after every batch."""
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            config.learning_rate,
            config.steps,
            pct_start=0.4 if config.steps == 5 else 0.2,  # it divides by 0
        )
    optimizer = torch.optim.SGD(
        model.parameters(), config.learning_rate, momentum=0.9, weight_decay=config.weight_decay, nesterov=True
    )
    return optimizer, torch.optim.lr_scheduler.PolynomialLR(optimizer, config.steps, power=0.9)


def make_loader(
    rows: pd.DataFrame, reader: CropReader, config: TrainConfig, epoch: int, first: int,
    share: tuple[int, int], workers: int,
) -> Iterator[tuple[Tensor, Tensor, int]]:  # fmt: skip
    """Yield the batches of an epoch from its step `first` on: (pictures (N, 3, S, S), labels (N,), broken).

    rows: crops, or pairs. share: (this process's number, how many there are); each takes its part of every step's
    items, so that two processes see together what one with the doubled batch sees.
    """
    rank, world = share
    items = config.batch // 2 if config.paired else config.batch  # of one process and step
    order = epoch_order(rows, config, epoch, config.epoch_steps * items * world)
    transform = AUGMENTATIONS[config.augmentation](config.input_size)
    seed = stream_seed(config.seed, epoch, 10_000)
    if config.paired:
        data = PairDataset(order, reader, transform, seed, config.self_blend)
    else:
        data = CropDataset(order, reader, transform, seed, config.augmentation in BLACKOUTS, config.self_blend)
    starts = [(step * world + rank) * items for step in range(first, config.epoch_steps)]
    batches = [list(range(start, start + items)) for start in starts]
    return read_batches(data, workers, batch_sampler=batches)


def train(
    work: WorkFolder,
    config: TrainConfig,
    name: str,
    pretrained: bool | Path = False,
    workers: int = 0,
    save_every: int = 500,
    overwrite: bool = False,
    keep_every: int = 0,
    progress: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> Run:
    """Train one classifier on all folds but `config.fold`; go on where an interrupted run of this name stopped.

    pretrained: as `model.DeepfakeClassifier`. workers: processes that read crops; a script that asks for some calls
    this under `if __name__ == "__main__":`. save_every: steps from one last.pt to the next. keep_every: keep the
    weights after every so many epochs, as epoch_<number>.pt (0: of none). A run of the same name with other settings or
    data raises ValueError, unless `overwrite`. Ctrl-C and SIGTERM save and return the unfinished run. progress(step,
    steps, loss) is called after each step; on a GPU after every tenth, because to read a loss is to wait for the GPU.
    """
    accelerator = make_accelerator(config.precision)
    rows, held_out = split_fold(read_folds(work), config.fold)
    check_files(rows, work)
    held_out = held_out[held_out.frame_idx % config.valid_every == 0]
    check_files(held_out, work)
    made_from = {"settings": asdict(config), "data": hashlib.sha256(work.folds.read_bytes()).hexdigest()}
    made_from["processes"] = accelerator.num_processes  # each has a batch of its own
    folder = work.run(name)
    with hold(folder) if accelerator.is_main_process else nullcontext(), _stop_on_signals() as stop:
        trainer = Trainer(work, config, folder, accelerator, made_from, pretrained, workers, keep_every)
        trainer.load(overwrite)
        finished = trainer.run(pair(rows) if config.paired else rows, held_out, save_every, stop, progress)
        return trainer.finish(held_out, finished)


def make_accelerator(precision: str):
    """accelerate's handle on devices and processes. Raises ValueError where processes do not see each other."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # else the first precision of a Python process would be the only one
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    _refuse_strangers(accelerator.num_processes)
    return accelerator


class Trainer:
    """One run: model, optimizer, history, and how they are saved. Its `run` is the training loop."""

    def __init__(
        self, work: WorkFolder, config: TrainConfig, folder: Path, accelerator, made_from: dict,
        pretrained: bool | Path, workers: int, keep_every: int,
    ):  # fmt: skip
        self.config, self.folder, self.accelerator, self.made_from = config, folder, accelerator, made_from
        self.workers, self.keep_every = workers, keep_every
        torch.manual_seed(config.seed)
        model = DeepfakeClassifier(config.encoder, pretrained).to(memory_format=torch.channels_last)
        source = work.read_source()
        model.card = replace(
            model.card, size=config.input_size, trained_on=source["trained_on"], margin=source["margin"]
        )
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            from timm.layers import convert_sync_batchnorm  # torch's own drops timm's fused activation

            model.encoder = convert_sync_batchnorm(model.encoder)
        self.plain = model
        self.reader = CropReader(work, model.card.size, keep=config.paired and not workers)
        optimizer, self.scheduler = make_optimizer(model, config)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.history = History()
        self.unread: list[Tensor] = []  # (2,) a step: the loss, and how many pictures were broken; on the device
        self.read_every = 1 if accelerator.device.type == "cpu" else 10
        self.scored: pd.DataFrame | None = None  # the held-out crops, by the weights of the last epoch

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.history.losses) + len(self.unread)

    def run(self, rows: pd.DataFrame, held_out: pd.DataFrame, save_every: int, stop, progress) -> bool:
        """The training loop. Returns False where it was asked to stop before the last step."""
        config, share = self.config, (self.accelerator.process_index, self.accelerator.num_processes)
        while self.step < config.steps:
            epoch, first = divmod(self.step, config.epoch_steps)
            self._set_train_mode()
            for batch in make_loader(rows, self.reader, config, epoch, first, share, self.workers):
                self.take_step(*batch)
                ends = self.step == config.steps or self.step % config.epoch_steps == 0
                saves = ends or self.step % save_every == 0
                if not (saves or self.step % self.read_every == 0):
                    continue
                self.read_losses()
                progress(self.step, config.steps, self.history.losses[-1])
                if ends:
                    self.end_epoch(epoch, held_out)
                if saves:
                    self.save("last.pt")
                if self._agree(stop.requested):
                    self.save("last.pt")
                    return self.step == config.steps
                if ends:
                    break
        return True

    def take_step(self, pictures: Tensor, labels: Tensor, broken: int) -> None:
        """Forward, loss, backward, clip, step. Notebook 06 does one by hand."""
        accelerator, processes = self.accelerator, self.accelerator.num_processes
        torch.manual_seed(stream_seed(self.config.seed, self.step, accelerator.process_index, 1))  # drop-path
        pictures = pictures.to(accelerator.device, memory_format=torch.channels_last, non_blocking=True)
        labels = labels.to(accelerator.device, non_blocking=True)
        counts = accelerator.reduce(class_counts(labels))  # over all processes: see balanced_loss
        n_parts = self._count_parts(len(labels))
        parts = list(zip(pictures.tensor_split(n_parts), labels.tensor_split(n_parts), strict=True))
        self.optimizer.zero_grad()
        losses = []
        for number, (some, their_labels) in enumerate(parts, 1):
            # Processes exchange gradients with the last part only, and exchange means: hence times `processes`.
            with nullcontext() if number == len(parts) else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    logits = self.model(some)  # (N,)
                losses.append(processes * balanced_loss(logits, their_labels, self.config.smoothing, counts))
                accelerator.backward(losses[-1])
        accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.history.rates.append(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        if not accelerator.optimizer_step_was_skipped:  # fp16: the first steps look for a scale
            self.scheduler.step()
        of_all = torch.stack([torch.stack(losses).detach().sum() / processes, counts.new_tensor(float(broken))])
        self.unread.append(accelerator.reduce(of_all))

    def _count_parts(self, n_pictures: int) -> int:
        """Into how many parts a batch is cut: the same for all processes, also where one has broken pictures."""
        if self.config.accumulate == 1:
            return 1
        of_each = self.accelerator.gather(torch.tensor([n_pictures], device=self.accelerator.device))
        return min(self.config.accumulate, int(of_each.min()))

    def read_losses(self) -> None:
        """Bring the last steps' losses and broken pictures, of all processes, from the device into the history."""
        for loss, broken in torch.stack(self.unread).tolist() if self.unread else []:
            self.history.losses.append(loss)
            self.history.broken += round(broken)
        self.unread = []

    def _set_train_mode(self) -> None:
        self.model.train()
        if self.config.freeze_batchnorm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _agree(self, requested: bool) -> bool:
        """Processes must stop at the same step: any one's wish counts."""
        if self.accelerator.num_processes == 1:
            return requested
        return bool(self.accelerator.reduce(torch.tensor(float(requested), device=self.accelerator.device)) > 0)

    def end_epoch(self, epoch: int, held_out: pd.DataFrame) -> None:
        """Validate, and write a line of metrics; keep the weights where they are the best so far."""
        history, first = self.history, epoch * self.config.epoch_steps
        scored = self.scored = self.score(held_out)
        line = {"epoch": epoch, "step": self.step, "train_loss": float(np.mean(history.losses[first:]))}
        line |= {"learning_rate": history.rates[-1], "broken": history.broken} | judge(scored)
        history.epochs.append(line)
        if line["valid_loss"] < history.best:
            history.best = line["valid_loss"]
            self.save("best.pt", weights_only=True)
        if self.keep_every and (epoch + 1) % self.keep_every == 0:
            self.save(f"epoch_{epoch}.pt", weights_only=True)
        if self.accelerator.is_main_process:
            write_csv(self.folder / "metrics.csv", pd.DataFrame(history.epochs))

    def score(self, rows: pd.DataFrame) -> pd.DataFrame:
        """`rows` with their p_fake, the work shared among the processes."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = score_crops(self.plain, rows.iloc[rank::world], self.reader, self.workers)
        if world == 1:
            return mine
        from accelerate.utils import gather_object

        return pd.concat(gather_object([mine])).sort_index()

    def save(self, name: str, weights_only: bool = False) -> None:
        """Write a checkpoint; with all that is needed to go on, unless `weights_only`."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        training = {
            "made_from": self.made_from,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "history": asdict(self.history),
        }
        save_checkpoint(self.folder / name, self.plain, None if weights_only else training)

    def _is_same(self, stored: dict) -> bool:
        """Was a run made from what this one is? A setting that did not exist then had what is now its default."""
        training = stored.get("training")
        if training is None or stored["card"]["margin"] != self.plain.card.margin:  # folds.csv does not tell it
            return False
        settings = asdict(TrainConfig()) | training["made_from"]["settings"]
        return training["made_from"] | {"settings": settings} == self.made_from

    def load(self, overwrite: bool) -> None:
        """Go on from last.pt, if there is one of the same settings and data."""
        path = self.folder / "last.pt"
        try:
            stored = read_weights(path) if path.exists() else {}
        except ValueError:  # damaged
            if not overwrite:
                raise
            stored = {}
        if not self._is_same(stored):
            if stored and not overwrite:
                raise ValueError(
                    f"{self.folder} holds a run with other settings or data, or of another number of processes: "
                    "choose another name"
                )
            self.accelerator.wait_for_everyone()  # the others read last.pt too
            if self.accelerator.is_main_process:
                for old in self._files_of_a_run() if path.exists() else []:
                    old.unlink()
                versions = {name: importlib.metadata.version(name) for name in VERSIONS}
                about = self.made_from | {"card": asdict(self.plain.card), "versions": versions}
                write_json(self.folder / "config.json", about)
            return
        training = stored["training"]
        self.plain.load_state_dict(stored["state_dict"])
        self.optimizer.load_state_dict(training["optimizer"])
        self.scheduler.load_state_dict(training["scheduler"])
        if training["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(training["scaler"])
        self.history = History(**training["history"])

    def _files_of_a_run(self) -> list[Path]:
        """What an earlier run of this name has left."""
        return [path for pattern in ("*.pt", "metrics.csv", "held_out.csv") for path in self.folder.glob(pattern)]

    def finish(self, held_out: pd.DataFrame, finished: bool) -> Run:
        """Write the held-out crops with their scores, and hand everything over."""
        scored = self.scored
        if scored is None:  # a finished run that was taken up again; an unfinished one ends at once, unscored
            scored = self.score(held_out) if finished else held_out.assign(p_fake=float("nan"))
        if finished and self.accelerator.is_main_process:
            write_csv(self.folder / "held_out.csv", scored)
        metrics = pd.DataFrame(self.history.epochs)
        return Run(self.folder, self.plain.eval(), self.history.losses, metrics, scored, finished)


def judge(scored: pd.DataFrame) -> dict[str, float]:
    """Validation twice: upstream's way, (reals' + fakes' log loss) / 2 over crops, and per video by each strategy."""
    by_class = [log_loss(crops.label, crops.p_fake) for _, crops in scored.groupby("label")]
    result = {"valid_loss": float(np.mean(by_class))}
    for name in STRATEGIES:
        videos = score_videos(scored, name)
        result[f"valid_video_{name}"] = log_loss(videos.label, videos.p_fake)
    return result


def score_crops(model: DeepfakeClassifier, rows: pd.DataFrame, reader: CropReader, workers: int = 0) -> pd.DataFrame:
    """Return `rows` with a column p_fake: the model's answer for each crop. A broken picture raises ValueError.

    workers: processes that read crops.
    """
    data = CropDataset(rows, reader, valid_transforms(model.card.size))
    scores = []
    for pictures, _, broken in read_batches(data, workers, batch_size=64):
        if broken:
            raise ValueError(f"{broken} held-out crops can't be read: preprocess again")
        scores.append(model.predict(pictures))
    return rows.assign(p_fake=torch.cat(scores).numpy() if scores else [])


def score_videos(crops: pd.DataFrame, strategy: str = "mean") -> pd.DataFrame:
    """Join the crops' p_fake of each video, by a strategy's name: columns video_id, label, original_id, p_fake."""
    video_ids, p_fake = join_videos(strategy, crops.p_fake.to_numpy(), crops.video_id.to_numpy(str))
    about = crops.drop_duplicates("video_id").set_index("video_id").loc[video_ids, ["label", "original_id"]]
    return about.assign(p_fake=p_fake).reset_index()


def _refuse_strangers(processes: int) -> None:
    """Several processes that do not form one group would each train alone, and overwrite each other."""
    names = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
    announced = max(int(os.environ.get(name, 1)) for name in names)
    if processes == 1 and announced > 1:
        raise ValueError(
            f"{announced} processes were started that do not see each other: use torchrun or `accelerate launch`"
        )


@dataclass
class Stop:
    """Whether somebody has asked the run to end."""

    requested: bool = False


@contextmanager
def _stop_on_signals() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM ask for a stop after the step at hand. (Signals reach the main thread only.)"""
    stop, before = Stop(), {}

    def ask(number, frame) -> None:
        stop.requested = True

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: signals are not ours to handle
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
