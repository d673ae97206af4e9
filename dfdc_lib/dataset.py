"""Crops to batches: which are drawn, and how they are read."""

import json

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from dfdc_lib.geometry import add_margin, isotropic_resize
from dfdc_lib.paths import WorkFolder, face_file, read_png

KEY = ["original_id", "frame_idx", "face_idx"]


def read_folds(work: WorkFolder) -> pd.DataFrame:
    """Read folds.csv: one row a crop. Raises FileNotFoundError with what to run first."""
    if not work.folds.exists():
        raise FileNotFoundError(f"{work.folds} is missing: run `dfdc preprocess` first")
    names = dict.fromkeys(["video_id", "original_id", "file"], str)  # "0001" is a name, not a number
    return pd.read_csv(work.folds, dtype=names, keep_default_na=False)


def split_fold(rows: pd.DataFrame, fold: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (training rows, validation rows). Raises ValueError where the fold does not exist or nothing is left."""
    held_out = rows.fold == fold
    if not held_out.any() or held_out.all():
        known = sorted(rows.fold.unique().tolist())
        raise ValueError(f"fold {fold} can't be held out of the folds {known}: name one, of two parts or more")
    return rows[~held_out], rows[held_out]


def balance(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Draw as many fakes as there are reals, every real once. rows must be in a fixed order.

    The slides: `fakes.sample(n=num_real, replace=False, random_state=seed)`.
    """
    reals, fakes = rows[rows.label == 0], rows[rows.label == 1]
    if len(fakes) < len(reals):
        raise ValueError(
            f"only {len(fakes)} fakes for {len(reals)} reals: balancing draws fakes to the number of reals"
        )
    return pd.concat([reals, fakes.sample(n=len(reals), replace=False, random_state=seed)])


def pair(rows: pd.DataFrame) -> pd.DataFrame:
    """Match each fake crop with the real crop of the same original, frame and face: columns real_id, video_id, KEY."""
    reals = rows[rows.label == 0][KEY].assign(real_id=rows.original_id)
    pairs = rows[rows.label == 1].merge(reals, on=KEY)
    if pairs.empty:
        raise ValueError("no fake crop has its real partner: were the originals preprocessed?")
    return pairs


def draw_pairs(pairs: pd.DataFrame, n_pairs: int, seed: int) -> pd.DataFrame:
    """Draw pairs so that each original is equally likely, however many frames or fakes it has."""
    weights = 1 / pairs.groupby("original_id").original_id.transform("size")
    return pairs.sample(n=n_pairs, replace=True, weights=weights, random_state=seed)


def read_landmarks(work: WorkFolder, original_id: str) -> dict[str, np.ndarray]:
    """The landmarks of an original's family: name of the crop → (5, 2) float32, in pixels of the crop."""
    stored, margin = json.loads(work.boxes(original_id).read_text()), work.read_source()["margin"]
    return {
        face_file(frame["frame_idx"], face_idx): np.float32(points)
        - add_margin(box, margin, stored["width"], stored["height"])[:2]
        for frame in stored["frames"]
        for face_idx, box, points in zip(frame["face_idx"], frame["boxes"], frame["landmarks"], strict=True)
    }


class CropReader:
    """Read crops; with `keep`, hold each in memory, resized so that its longer side is `size`."""

    def __init__(self, work: WorkFolder, size: int, keep: bool = False):
        self.work, self.size, self.keep = work, size, keep
        self._kept: dict[tuple, np.ndarray] = {}

    def __call__(self, video_id: str, frame_idx: int, face_idx: int) -> np.ndarray:
        """Return a crop (H, W, 3) uint8 RGB."""
        key = (video_id, frame_idx, face_idx)
        if key in self._kept:
            return self._kept[key]
        crop = read_png(self.work.crops(video_id) / face_file(frame_idx, face_idx))
        if self.keep:
            crop = self._kept[key] = isotropic_resize(crop, self.size)
        return crop


class CropDataset(Dataset):
    """One crop and its label: picture (3, S, S) float32, label float32 (1 = fake)."""

    def __init__(self, rows: pd.DataFrame, reader: CropReader, transform):
        self.rows = rows[["video_id", "frame_idx", "face_idx", "label"]].to_numpy()
        self.reader, self.transform = reader, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        *key, label = self.rows[index]
        return self.transform(image=self.reader(*key))["image"], torch.tensor(float(label))


class PairDataset(Dataset):
    """A real crop and its own fake, augmented alike: pictures (2, 3, S, S) float32, labels (2,) float32 = 0, 1.

    All that the two share (who, where, light, camera, augmentation) can then not lower the loss: only the
    manipulation can. Ours, for small data; the slides draw single crops.
    """

    def __init__(self, pairs: pd.DataFrame, reader: CropReader, transform):
        self.rows = pairs[["real_id", "video_id", "frame_idx", "face_idx"]].to_numpy()
        self.reader, self.transform = reader, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        real_id, fake_id, *place = self.rows[index]
        both = self.transform(image=self.reader(real_id, *place), fake=self.reader(fake_id, *place))
        return torch.stack([both["image"], both["fake"]]), torch.tensor([0.0, 1.0])
