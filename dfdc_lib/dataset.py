"""From crops to batches: which are drawn, and how they are read."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dfdc_lib.blending import NotAFace, self_blend
from dfdc_lib.config import TrainConfig
from dfdc_lib.geometry import isotropic_resize
from dfdc_lib.jobs import answer_signals, become_worker
from dfdc_lib.progress import NotEnough
from dfdc_lib.store import DamagedFile, WorkFolder, face_file, list_faces, read_mask, read_png


class Crop(NamedTuple):
    """What is needed to read a crop: its line in folds.csv."""

    video_id: str
    original_id: str
    frame_idx: int
    face_idx: int
    label: int
    x0: int  # its place in the frame, pixels
    y0: int
    x1: int
    y1: int


KEY = ["original_id", "frame_idx", "face_idx"]
COLUMNS = Crop.__annotations__ | {"part": int, "fold": int}  # of folds.csv, except the path


def read_crops(path: Path) -> pd.DataFrame:
    """Read a table of crops without the videos' paths, which take much memory; names stay text."""
    types = {name: np.int32 if kind is int else kind for name, kind in COLUMNS.items()}
    how = {"dtype": types, "keep_default_na": False, "usecols": lambda name: name != "file"}
    return pd.concat(pd.read_csv(path, chunksize=200_000, **how), ignore_index=True)


def read_folds(work: WorkFolder) -> pd.DataFrame:
    """Read folds.csv: a row per crop. Raises FileNotFoundError or DamagedFile, with what to run."""
    if not work.folds.exists():
        raise FileNotFoundError(f"{work.folds} is missing: run `dfdc preprocess` first")
    try:
        rows = read_crops(work.folds)
        if lacking := [name for name in COLUMNS if name not in rows]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
    except ValueError as error:  # pandas does not say which file
        fix = "delete it and run `dfdc preprocess` again"
        raise DamagedFile(f"{work.folds} can't be used ({error}): {fix}") from error
    return rows


def split_fold(rows: pd.DataFrame, fold: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (training rows, validation rows). Raises NotEnough if either is empty."""
    held_out = rows.fold == fold
    if held_out.nunique() < 2:
        known, need = sorted(rows.fold.unique().tolist()), "it must be one of two or more"
        raise NotEnough(f"fold {fold} can't be held out of the folds {known}: {need}")
    return rows[~held_out], rows[held_out]


def balance(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The slides' draw: every real once, and as many fakes. rows: in a fixed order."""
    reals, fakes = (np.flatnonzero(rows.label == label) for label in (0, 1))
    if len(fakes) < len(reals):
        raise NotEnough(f"only {len(fakes)} fakes for {len(reals)} reals: each real needs one")
    drawn = pd.Series(fakes).sample(n=len(reals), replace=False, random_state=seed)
    return rows.iloc[np.concatenate([reals, drawn])]


def pair(rows: pd.DataFrame) -> pd.DataFrame:
    """The fakes' rows with a real partner: the same original, frame and face."""
    # Only numbers are merged: a copy of all rows would fill the memory.
    faces = pd.DataFrame({"face": rows.groupby(KEY, sort=False).ngroup().to_numpy()})
    fake = rows.label.to_numpy() == 1
    places = faces[fake].reset_index(names="place").merge(faces.face[~fake], on="face").place
    if places.empty:
        fix = "were the originals preprocessed? If the data name none, train with --no-paired"
        raise NotEnough(f"no fake crop has its real partner: {fix}")
    return rows.iloc[places].reset_index(drop=True)


def epoch_order(rows: pd.DataFrame, config: TrainConfig, epoch: int, n_items: int) -> pd.DataFrame:
    """The crops of one epoch in their order, or with `paired` its pairs (see `pair`): n_items rows.

    Crops: all reals and as many fakes, shuffled, repeated until there are enough. Pairs: drawn so
    that each original is equally likely. All of it follows from the seed and the epoch alone.
    """
    if config.paired:
        seed = stream_seed(config.seed, epoch, 0)
        weights = 1 / rows.groupby("original_id").original_id.transform("size")
        return rows.sample(n=n_items, replace=True, weights=weights, random_state=seed)
    passes: list[pd.DataFrame] = []
    while sum(map(len, passes)) < n_items:
        seeds = [stream_seed(config.seed, epoch, 2 * len(passes) + k) for k in (0, 1)]
        passes.append(balance(rows, seeds[0]).sample(frac=1, random_state=seeds[1]))
    return pd.concat(passes)[:n_items]


def stream_seed(*key: int) -> int:
    """A seed for one purpose. Other keys give unrelated streams; seed + epoch would not."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def check_files(rows: pd.DataFrame, work: WorkFolder) -> None:
    """Before hours of training, raise FileNotFoundError if crops of the table are missing."""
    faces, missing = rows[["frame_idx", "face_idx"]].to_numpy(), []
    for video_id, places in sorted(rows.groupby("video_id").indices.items()):
        folder = work.crops(video_id)
        absent = set(map(tuple, faces[places].tolist())) - set(list_faces(folder))
        missing += [folder / face_file(*face) for face in sorted(absent)]
    if missing:
        found = f"{len(missing)} crops of folds.csv are missing, e.g. {missing[0]}"
        raise FileNotFoundError(f"{found}: run `dfdc preprocess` again")


def read_faces(work: WorkFolder, original_id: str) -> dict[tuple[int, int], tuple]:
    """(frame_idx, face_idx) → box (4,) and landmarks (5, 2), float32 in pixels of the frame."""
    return {
        (f["frame_idx"], face_idx): (np.float32(box), np.float32(points))
        for f in work.read_boxes(original_id)["frames"]
        for face_idx, box, points in zip(f["face_idx"], f["boxes"], f["landmarks"], strict=True)
    }


class CropReader:
    """Read crops; with `keep`, hold each in memory, resized so that its longer side is `size`."""

    def __init__(self, work: WorkFolder, size: int, keep: bool = False):
        self.work, self.size, self.keep = work, size, keep
        self._kept: dict[Path, np.ndarray] = {}
        self._faces: dict[str, dict] = {}

    def __call__(self, crop: Crop) -> np.ndarray:
        """The picture (H, W, 3) uint8 RGB."""
        path = self.work.crops(crop.video_id) / face_file(crop.frame_idx, crop.face_idx)
        if path in self._kept:
            return self._kept[path]
        picture = read_png(path)
        if self.keep:
            picture = self._kept[path] = isotropic_resize(picture, self.size)
        return picture

    def mask(self, crop: Crop, shape: tuple[int, int]) -> np.ndarray:
        """The mask (H, W) uint8, zeros if there is none. shape: (H, W) of the picture."""
        path = self.work.masks(crop.video_id) / face_file(crop.frame_idx, crop.face_idx)
        mask = read_mask(path) if path.exists() else np.zeros(shape, np.uint8)
        if mask.shape != shape:
            raise DamagedFile(f"{path} has {mask.shape} pixels, its crop {shape}: preprocess again")
        return mask

    def landmarks(self, crop: Crop, picture: np.ndarray) -> np.ndarray:
        """The landmarks (5, 2) in pixels of the picture, which may be smaller than on disk."""
        if crop.original_id not in self._faces:
            self._faces[crop.original_id] = read_faces(self.work, crop.original_id)
        face = self._faces[crop.original_id].get((crop.frame_idx, crop.face_idx))
        if face is None:
            raise DamagedFile(f"{self.work.boxes(crop.original_id)} lacks a face of {crop}")
        _, points = face
        scale = max(picture.shape[:2]) / max(crop.x1 - crop.x0, crop.y1 - crop.y0)
        return scale * (points - (crop.x0, crop.y0))

    def blend_with_itself(
        self, crop: Crop, picture: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Make a real crop its own fake: (picture, mask). (picture, None) if it is not whole."""
        try:
            return self_blend(picture, self.landmarks(crop, picture), rng)
        except NotAFace:  # part of it is outside the frame
            return picture, None


@dataclass(eq=False)
class CropDataset(Dataset):
    """One crop and its label: picture (3, S, S), label (1 = fake); None if it is broken.

    seed: how item i is augmented follows from (seed, i) alone, in any process and order. hard: the
    transform gets mask and landmarks too. self_blend: how often a real becomes its own fake.
    """

    rows: pd.DataFrame
    reader: CropReader
    transform: Any  # see `augment`
    seed: int = 0
    hard: bool = False
    self_blend: float = 0.0

    def __post_init__(self):
        self.rows = self.rows[list(Crop._fields)].to_numpy()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | None:
        self.transform.set_random_seed(stream_seed(self.seed, index))
        rng = np.random.default_rng(stream_seed(self.seed, index, 1))  # for self-blending
        try:
            return self._read(Crop(*self.rows[index]), rng)
        except DamagedFile:  # counted by `collate`
            return None

    def _read(self, crop: Crop, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        picture, label, mask = self.reader(crop), crop.label, None
        if label == 0 and rng.random() < self.self_blend:
            picture, mask = self.reader.blend_with_itself(crop, picture, rng)
            label = int(mask is not None)
        given: dict = {"image": picture}
        if self.hard:
            given["mask"] = self.reader.mask(crop, picture.shape[:2]) if mask is None else mask
            given |= {"landmarks": self.reader.landmarks(crop, picture), "label": label}
        return self.transform(**given)["image"], torch.tensor(float(label))


class PairDataset(CropDataset):
    """A real crop and its own fake, augmented alike: pictures (2, 3, S, S), labels (2,) = 0, 1.

    What the two share (person, light, camera, augmentation) then can't lower the loss. Our own, for
    small data. self_blend: how often the fake is the real blended with itself, if that is whole.
    """

    def _read(self, fake: Crop, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        real = fake._replace(video_id=fake.original_id)
        pictures = {"image": self.reader(real), "fake": self.reader(fake)}
        if pictures["image"].shape != pictures["fake"].shape:
            raise DamagedFile(f"{fake.video_id} has a crop that is not of its original's size")
        if rng.random() < self.self_blend:
            own, mask = self.reader.blend_with_itself(real, pictures["image"], rng)
            pictures["fake"] = pictures["fake"] if mask is None else own
        both = self.transform(**pictures)
        return torch.stack([both["image"], both["fake"]]), torch.tensor([0.0, 1.0])


def collate(items: list) -> tuple[Tensor, Tensor, int]:
    """Join items to a batch: pictures (N, 3, S, S), labels (N,), how many items were broken."""
    good = [item for item in items if item is not None]
    if not good:
        raise ValueError("all pictures of a batch are broken: see `dfdc doctor --work --pictures`")
    pictures, labels = (torch.stack(values) for values in zip(*good, strict=True))
    return pictures.flatten(0, -4), labels.flatten(), len(items) - len(good)


def read_batches(data: Dataset, workers: int, **batches) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield the batches of a dataset, see `collate`. batches: for DataLoader."""
    if workers:  # new processes: a fork crashes once OpenVINO or numba has run
        batches |= {"multiprocessing_context": "spawn", "worker_init_fn": _become_reader}
    pinned = torch.cuda.is_available()
    loader = DataLoader(data, num_workers=workers, collate_fn=collate, pin_memory=pinned, **batches)
    # Workers inherit it from the start.
    with answer_signals(signal.SIG_IGN, signal.SIGINT):
        return iter(loader)


def _become_reader(_: int) -> None:
    become_worker(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # clusters send it to all: the parent saves first
