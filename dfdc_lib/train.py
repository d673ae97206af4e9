"""The training loop, written out; accelerate handles mixed precision, processes, CPU or GPUs.

A run writes to runs/<name>/: config.json, metrics.csv (a line per epoch), last.pt (all it needs to
resume), best.pt (the weights with the lowest validation loss) and held_out.csv (p_fake of each
held-out crop). All randomness follows from the seed, the epoch and the step: an interrupted run
ends as if it had never stopped, on a CPU bit for bit.
"""

import importlib.metadata
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dfdc_lib import dataset
from dfdc_lib.aggregate import STRATEGIES, join_videos
from dfdc_lib.augment import AUGMENTATIONS, valid_transforms
from dfdc_lib.config import BLACKOUTS, ENCODERS, Margin, MixedPrecision, TrainConfig
from dfdc_lib.dataset import CropDataset, CropReader, PairDataset
from dfdc_lib.jobs import answer_signals
from dfdc_lib.metrics import log_loss
from dfdc_lib.model import DeepfakeClassifier, ModelCard, read_weights, save_checkpoint, score
from dfdc_lib.store import WorkFolder, digest_file, hold, write_csv, write_json


@dataclass
class Run:
    """A training run, finished or interrupted."""

    folder: Path
    model: DeepfakeClassifier
    losses: list[float]  # of each step
    metrics: pd.DataFrame  # a row per epoch: epoch, step, train_loss, …, valid_loss, …
    held_out: pd.DataFrame | None  # a row per validation crop, with the last validation's p_fake
    finished: bool

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.pt"

    def require_finished(self) -> "Run":
        """Return the run, or raise KeyboardInterrupt: a script of many runs then stops too."""
        if not self.finished:
            stopped = f"{self.folder} was stopped after step {len(self.losses)}"
            raise KeyboardInterrupt(f"{stopped}; the next call resumes it")
        return self


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
    """Train a classifier on all folds but `config.fold`, or resume the run of this name.

    pretrained: see `model.DeepfakeClassifier`. workers: processes that read crops; a script then
    needs `if __name__ == "__main__":`. save_every: steps from one last.pt to the next. keep_every:
    epochs from one epoch_<number>.pt to the next; 0: none. Settings or data unlike the run's raise
    ValueError, unless `overwrite`. Ctrl-C and SIGTERM save and return the unfinished run.
    progress(step, steps, loss) is called after each step.
    """
    crops = dataset.read_folds(work)
    dataset.check_files(crops, work)
    rows, held_out = dataset.split_fold(crops, config.fold)
    held_out = held_out[held_out.frame_idx % config.valid_every == 0]
    trainer = Trainer(work, config, name, pretrained, workers, save_every, keep_every)
    asked: list[bool] = []  # grows with each signal: stop after this step
    heed = answer_signals(lambda *_: asked.append(True), signal.SIGINT, signal.SIGTERM)
    with hold(trainer.folder / "metrics.csv") if trainer.rank == 0 else nullcontext(), heed:
        trainer.load(overwrite)
        trainer.fit(dataset.pair(rows) if config.paired else rows, held_out, asked, progress)
        return trainer.finish(held_out)


@dataclass(eq=False)
class Trainer:
    """One run: how it learns (`fit` is the loop), and how it is saved. Arguments: see `train`."""

    work: WorkFolder
    config: TrainConfig
    name: str
    pretrained: bool | Path = False
    workers: int = 0
    save_every: int = 500
    keep_every: int = 0

    def __post_init__(self) -> None:
        config, self.folder = self.config, self.work.run(self.name)
        self.accelerator = make_accelerator(config.precision)
        self.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        torch.manual_seed(config.seed)
        self.plain = DeepfakeClassifier(config.encoder, self.pretrained)
        if config.encoder not in ENCODERS:
            self.plain.require_size(config.input_size)
        recipe = self.work.read_recipe()
        margin = Margin.parse(recipe["settings"]["margin"])
        self.plain.card = ModelCard(config.encoder, config.input_size, margin, recipe["data"])
        self.plain.to(memory_format=torch.channels_last)
        if self.world > 1 and self.device.type == "cuda":
            from timm.layers import convert_sync_batchnorm  # torch's own drops timm's activation

            self.plain.encoder = convert_sync_batchnorm(self.plain.encoder)
        optimizer, self.scheduler = make_optimizer(self.plain, config)
        self.model, self.optimizer = self.accelerator.prepare(self.plain, optimizer)
        self.stateful = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        if self.accelerator.scaler:
            self.stateful["scaler"] = self.accelerator.scaler
        self.reader = CropReader(self.work, config.input_size, config.paired and not self.workers)
        self.losses: list[float] = []  # of each step, over all processes
        self.broken = 0  # pictures that could not be read
        self.epochs: list[dict] = []  # the lines of metrics.csv
        self.scored: pd.DataFrame | None = None  # the held-out crops, by the last epoch's weights
        data = digest_file(self.work.folds)
        self.made_from = {"settings": asdict(config), "data": data, "processes": self.world}

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.losses)

    def fit(self, rows: pd.DataFrame, held_out: pd.DataFrame, asked: list, progress) -> None:
        """The training loop, to the last step or until `asked` to end. rows: crops, or pairs."""
        config, accelerator = self.config, self.accelerator
        for pictures, labels, broken in self.load_batches(rows):
            self.set_train_mode()
            counts = accelerator.reduce(class_counts(labels))  # over all processes
            loss = torch.zeros((), device=self.device)
            self.optimizer.zero_grad()
            for part, part_labels, exchange in self.cut_batch(pictures, labels):
                with exchange:
                    with accelerator.autocast():
                        logits = self.model(part)  # (n,)
                    part_loss = balanced_loss(logits, part_labels, config.smoothing, counts)
                    accelerator.backward(self.world * part_loss)  # processes average gradients
                loss += part_loss.detach()
            accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self.rate = self.scheduler.get_last_lr()[0]
            self.optimizer.step()
            if not accelerator.optimizer_step_was_skipped:  # fp16: the first steps look for a scale
                self.scheduler.step()

            sums = torch.stack([loss, *loss.new_tensor([broken, len(asked)])])
            value, n_broken, n_asked = accelerator.reduce(sums).tolist()  # over all processes
            self.losses.append(value)
            self.broken += round(n_broken)
            progress(self.step, config.steps, value)
            ends = self.step == config.steps or self.step % config.epoch_steps == 0
            if ends:
                self.validate(held_out)
            if ends or n_asked or self.step % self.save_every == 0:
                self.save()
            if n_asked:  # in any process: all must stop at the same step
                break

    def load_batches(self, rows: pd.DataFrame) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield the remaining batches: pictures (N, 3, S, S), labels (N,), how many were broken.

        Processes split every step's items: two see together what one with twice the batch sees.
        """
        config, goal = self.config, {"device": self.device, "non_blocking": True}
        items = config.batch // 2 if config.paired else config.batch  # of one process and step
        n_items = config.epoch_steps * items * self.world
        kind = PairDataset if config.paired else CropDataset
        transform = AUGMENTATIONS[config.augmentation](config.input_size)
        hard = config.augmentation in BLACKOUTS
        while self.step < config.steps:
            epoch, first = divmod(self.step, config.epoch_steps)
            last = min(config.epoch_steps, config.steps - epoch * config.epoch_steps)
            order = dataset.epoch_order(rows, config, epoch, n_items)
            seed = dataset.stream_seed(config.seed, epoch, 10_000)
            data = kind(order, self.reader, transform, seed, hard, config.self_blend)
            starts = [(step * self.world + self.rank) * items for step in range(first, last)]
            batches = [range(start, start + items) for start in starts]
            read = dataset.read_batches(data, self.workers, batch_sampler=batches)
            for pictures, labels, broken in read:
                pictures = pictures.to(memory_format=torch.channels_last, **goal)
                yield pictures, labels.to(**goal), broken

    def set_train_mode(self) -> None:
        """Switch the network to training; each step's drop-path has a random stream of its own."""
        torch.manual_seed(dataset.stream_seed(self.config.seed, self.step, self.rank, 1))
        self.model.train()
        if self.config.freeze_batchnorm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def cut_batch(self, pictures: Tensor, labels: Tensor) -> Iterator[tuple]:
        """Yield (pictures, labels, context) of each part; the last one's exchanges gradients."""
        n_parts = self.config.accumulate
        if n_parts > 1:  # the same for all processes, even if one has broken pictures
            sizes = self.accelerator.gather(torch.tensor([len(labels)], device=self.device))
            n_parts = min(n_parts, int(sizes.min()))
        parts = zip(pictures.tensor_split(n_parts), labels.tensor_split(n_parts), strict=True)
        for number, part in enumerate(parts, 1):
            last = number == n_parts
            yield *part, nullcontext() if last else self.accelerator.no_sync(self.model)

    def validate(self, held_out: pd.DataFrame) -> None:
        """Score the held-out crops, add a line to metrics.csv, keep the weights that are due."""
        epoch = (self.step - 1) // self.config.epoch_steps
        self.scored = self.score_rows(held_out)
        best = min((line["valid_loss"] for line in self.epochs), default=float("inf"))
        train_loss = float(np.mean(self.losses[epoch * self.config.epoch_steps :]))
        line = {"epoch": epoch, "step": self.step, "train_loss": train_loss}
        line |= {"learning_rate": self.rate, "broken": self.broken} | measure_losses(self.scored)
        self.epochs.append(line)
        if self.rank != 0:
            return
        if line["valid_loss"] < best:
            save_checkpoint(self.folder / "best.pt", self.plain)
        if self.keep_every and (epoch + 1) % self.keep_every == 0:
            save_checkpoint(self.folder / f"epoch_{epoch}.pt", self.plain)
        write_csv(self.folder / "metrics.csv", pd.DataFrame(self.epochs))

    def score_rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        """`rows` with their p_fake, the work shared among the processes."""
        from accelerate.utils import gather_object

        mine = rows.iloc[self.rank :: self.world]
        mine = score_held_out(self.plain, mine, self.reader, self.workers)
        return pd.concat(gather_object([mine])).sort_index()

    def save(self) -> None:
        """Write last.pt: everything needed to resume."""
        if self.rank == 0:
            training: dict = {name: thing.state_dict() for name, thing in self.stateful.items()}
            history = {"losses": self.losses, "broken": self.broken, "epochs": self.epochs}
            training |= {"made_from": self.made_from, "history": history}
            save_checkpoint(self.folder / "last.pt", self.plain, training)

    def load(self, overwrite: bool) -> None:
        """Resume from last.pt, if there is one with the same settings and data; else begin."""
        path = self.folder / "last.pt"
        stored: dict = {}
        with suppress(ValueError) if overwrite else nullcontext():  # a damaged one is replaced
            stored = read_weights(path) if path.exists() else {}
        training = stored.get("training", {"made_from": {"settings": {}}})
        # A setting that did not exist then gets its default.
        settings = asdict(TrainConfig()) | training["made_from"]["settings"]
        if training["made_from"] | {"settings": settings} == self.made_from:
            self.plain.load_state_dict(stored["state_dict"])
            for name, thing in self.stateful.items():
                thing.load_state_dict(training[name])
            for name, value in training["history"].items():  # losses, broken, epochs
                setattr(self, name, value)
        elif stored and not overwrite:
            unlike = "other settings or data, or another number of processes"
            raise ValueError(f"{self.folder} holds a run with {unlike}: choose another name")
        else:
            self.accelerator.wait_for_everyone()  # the others read last.pt too
            if self.rank == 0:
                self.begin()

    def begin(self) -> None:
        """Clear the folder of an earlier run, and write config.json."""
        for pattern in ("*.pt", "metrics.csv", "held_out.csv"):
            for old in self.folder.glob(pattern):
                old.unlink()
        about: dict = {"card": self.plain.card.to_json(), "pretrained": str(self.pretrained)}
        names = ("torch", "timm", "accelerate", "albumentations", "opencv-python-headless", "numpy")
        about["versions"] = {name: importlib.metadata.version(name) for name in names}
        write_json(self.folder / "config.json", self.made_from | about)

    def finish(self, held_out: pd.DataFrame) -> Run:
        """Write the held-out crops with their scores, and return the run."""
        finished = self.step == self.config.steps
        if finished and self.scored is None:  # it had finished before this call
            self.scored = self.score_rows(held_out)
        if finished and self.rank == 0:
            write_csv(self.folder / "held_out.csv", self.scored)
        metrics, model = pd.DataFrame(self.epochs), self.plain.eval()
        return Run(self.folder, model, self.losses, metrics, self.scored, finished)


def make_accelerator(precision: MixedPrecision):
    """Make accelerate's handle. Raises ValueError if processes would overwrite each other, or if
    the device can't compute in this precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from dfdc_lib.fast.scorers import choose_precision

    if precision != "no":
        choose_precision(precision, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    AcceleratorState._reset_state()  # else a Python process would keep its first precision
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    names = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
    announced = max(int(os.environ.get(name, 1)) for name in names)
    if accelerator.num_processes == 1 and announced > 1:
        raise ValueError(f"{announced} processes do not see each other: start them with torchrun")
    return accelerator


def make_optimizer(model: nn.Module, config: TrainConfig):
    """Return (torch optimizer, torch scheduler), the scheduler to be stepped after every batch."""
    parameters, rate, decay = model.parameters(), config.learning_rate, config.weight_decay
    schedules = torch.optim.lr_scheduler
    if config.optimizer == "sgd":
        sgd = torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=decay, nesterov=True)
        return sgd, schedules.PolynomialLR(sgd, config.steps, power=0.9)
    adamw = torch.optim.AdamW(parameters, rate, weight_decay=decay)
    warm_up = 0.4 if config.steps == 5 else 0.2  # with a fifth of five steps it divides by 0
    return adamw, schedules.OneCycleLR(adamw, rate, config.steps, pct_start=warm_up)


def balanced_loss(
    logits: Tensor, labels: Tensor, smoothing: float, counts: Tensor | None = None
) -> Tensor:
    """Mean of the reals' and the fakes' cross-entropy, so that neither class outweighs the other.

    logits, labels: (N,). counts: of the whole batch, if these are a part of it; the losses of
    the parts then add up. Source: upstream's code, which clips the labels.
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


def measure_losses(scored: pd.DataFrame) -> dict[str, float]:
    """valid_loss: upstream's, each class of videos by itself; valid_video_<name>: all videos."""
    videos = {name: score_videos(scored, name) for name in STRATEGIES}
    losses = {f"valid_video_{name}": log_loss(v.label, v.p_fake) for name, v in videos.items()}
    classes = [log_loss(some.label, some.p_fake) for _, some in videos["mean"].groupby("label")]
    return {"valid_loss": float(np.mean(classes))} | losses


def score_held_out(
    model: DeepfakeClassifier, rows: pd.DataFrame, reader: CropReader, workers: int = 0
) -> pd.DataFrame:
    """Return `rows` with a column p_fake, without those whose picture is broken."""
    numbered = rows.assign(label=np.arange(len(rows)))  # so that a label says which crop was read
    data = CropDataset(numbered, reader, valid_transforms(model.card.size))
    places, scores = [torch.zeros(0)], [torch.zeros(0)]
    for pictures, numbers, _ in dataset.read_batches(data, workers, batch_size=64):
        places.append(numbers)
        scores.append(score(model, pictures))
    read = rows.iloc[torch.cat(places).int().tolist()]
    return read.assign(p_fake=torch.cat(scores).numpy())


def score_videos(crops: pd.DataFrame, strategy: str = "mean") -> pd.DataFrame:
    """Join the crops' p_fake of each video: columns video_id, label, original_id, p_fake."""
    video_ids, p_fake = join_videos(strategy, crops.p_fake, crops.video_id)
    about = crops.drop_duplicates("video_id").set_index("video_id")[["label", "original_id"]]
    return about.loc[video_ids].assign(p_fake=p_fake).reset_index()
