"""Crops to batches: which are drawn, and how they are read."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from dfdc_lib.config import TrainConfig
from dfdc_lib.geometry import add_margin, isotropic_resize
from dfdc_lib.manipulate import NotAFace, self_blend
from dfdc_lib.paths import DamagedFile, WorkFolder, face_file, list_faces, read_mask, read_png
from dfdc_lib.progress import NotEnough
from dfdc_lib.tasks import become_worker

KEY = ["original_id", "frame_idx", "face_idx"]
NAMES = ["video_id", "original_id", "file"]
NUMBERS = ["label", "frame_idx", "face_idx", "fold"]


def read_crops(path: Path) -> pd.DataFrame:
    """Read a table of crops: names stay text, as "0001" and "null" are names too."""
    several = pd.read_csv(path, dtype=dict.fromkeys(NAMES, str), keep_default_na=False, chunksize=200_000)
    return pd.concat(several, ignore_index=True)  # in pieces, which spares memory


def read_folds(work: WorkFolder) -> pd.DataFrame:
    """Read folds.csv: one row a crop. Raises FileNotFoundError, or DamagedFile, with what to run."""
    if not work.folds.exists():
        raise FileNotFoundError(f"{work.folds} is missing: run `dfdc preprocess` first")
    try:
        rows = read_crops(work.folds)
    except ValueError as error:  # pandas does not say which file
        raise DamagedFile(f"{work.folds} can't be read ({error}): delete it and run `dfdc preprocess` again") from error
    if not {*NAMES, *NUMBERS} <= set(rows) or not all(rows[name].dtype == np.int64 for name in NUMBERS if len(rows)):
        raise DamagedFile(f"{work.folds} is not what `dfdc preprocess` writes: delete it and run that again")
    return rows


def split_fold(rows: pd.DataFrame, fold: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (training rows, validation rows). Raises NotEnough where the fold does not exist or nothing is left."""
    held_out = rows.fold == fold
    if not held_out.any() or held_out.all():
        known = sorted(rows.fold.unique().tolist())
        raise NotEnough(f"fold {fold} can't be held out of the folds {known}: it must be one of two or more")
    return rows[~held_out], rows[held_out]


def balance(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Draw as many fakes as there are reals, every real once. rows must be in a fixed order.

    The slides: `fakes.sample(n=num_real, replace=False, random_state=seed)`.
    """
    reals, fakes = (np.flatnonzero(rows.label == label) for label in (0, 1))
    if len(fakes) < len(reals):
        raise NotEnough(f"only {len(fakes)} fakes for {len(reals)} reals: balancing draws fakes to the number of reals")
    drawn = pd.Series(fakes).sample(n=len(reals), replace=False, random_state=seed)  # of their places: no copy of all
    return rows.iloc[np.concatenate([reals, drawn])]


def pair(rows: pd.DataFrame) -> pd.DataFrame:
    """Match each fake crop with the real crop of the same original, frame and face: the fakes' rows and real_id."""
    pairs = rows.iloc[_find_partnered(rows)].reset_index(drop=True)
    if pairs.empty:
        raise NotEnough("no fake crop has its real partner: were the originals preprocessed?")
    return pairs.assign(real_id=pairs.original_id)


def _find_partnered(rows: pd.DataFrame) -> np.ndarray:
    """The places of the fakes that have a real partner, once for each. (Merging the rows themselves would copy all.)"""
    face = rows.groupby(KEY, sort=False).ngroup().to_numpy()  # a number for each original, frame and face
    reals, fakes = (np.flatnonzero(rows.label == label) for label in (0, 1))
    of_fakes, of_reals = pd.DataFrame({"face": face[fakes], "place": fakes}), pd.DataFrame({"face": face[reals]})
    return of_fakes.merge(of_reals, on="face").place.to_numpy()


def draw_pairs(pairs: pd.DataFrame, n_pairs: int, seed: int) -> pd.DataFrame:
    """Draw pairs so that each original is equally likely, however many frames or fakes it has."""
    weights = 1 / pairs.groupby("original_id").original_id.transform("size")
    return pairs.sample(n=n_pairs, replace=True, weights=weights, random_state=seed)


def read_places(work: WorkFolder, original_id: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Where the face lies in the crops of an original's family: name of the crop → (box (4,), landmarks (5, 2)).

    Both float32, in pixels of the crop. A box outside the frame has no crop, and no place. Raises DamagedFile.
    """
    stored, margin = work.read_boxes(original_id), work.read_source()["margin"]
    places = {}
    for frame in stored["frames"]:
        for face_idx, box, points in zip(frame["face_idx"], frame["boxes"], frame["landmarks"], strict=True):
            try:
                size = frame.get("size", (stored["width"], stored["height"]))
                corner = np.float32(add_margin(box, margin, *size)[:2])
            except ValueError:
                continue
            name = face_file(frame["frame_idx"], face_idx)
            places[name] = (np.float32(box) - np.tile(corner, 2), np.float32(points) - corner)
    return places


def check_files(rows: pd.DataFrame, work: WorkFolder) -> None:
    """Raise FileNotFoundError, naming the first, where crops of the table are not on disk: before hours of training."""
    codes, video_ids = pd.factorize(rows.video_id, sort=True)
    order = np.argsort(codes, kind="stable")  # by video; groupby would make a table of each
    ends = np.cumsum(np.bincount(codes, minlength=len(video_ids)))
    faces = np.split(rows[["frame_idx", "face_idx"]].to_numpy()[order], ends[:-1])
    missing = []
    for video_id, named in zip(video_ids, faces, strict=True):
        there = set(list_faces(work.crops(video_id)))
        missing += [work.crops(video_id) / face_file(*face) for face in map(tuple, named.tolist()) if face not in there]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} crops of folds.csv are missing, such as {missing[0]}: preprocess again"
        )


def epoch_order(rows: pd.DataFrame, config: TrainConfig, epoch: int, n_items: int) -> pd.DataFrame:
    """The crops, or with `paired` the pairs (see `pair`), of one epoch in their order: n_items rows.

    Crops: all reals and as many fakes, shuffled, again and again until there are enough; more are cut off, as upstream
    does after 2,500 steps. What is drawn follows from the seed and the epoch alone.
    """
    if config.paired:
        return draw_pairs(rows, n_items, stream_seed(config.seed, epoch, 0))
    passes, count = [], 0
    while count < n_items:
        drawn = balance(rows, stream_seed(config.seed, epoch, 2 * len(passes)))
        passes.append(drawn.sample(frac=1, random_state=stream_seed(config.seed, epoch, 2 * len(passes) + 1)))
        count += len(drawn)
    return pd.concat(passes)[:n_items]


def stream_seed(*key: int) -> int:
    """A seed for one purpose: other keys give unrelated streams (seed + epoch would make runs repeat each other)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


class CropReader:
    """Read crops; with `keep`, hold each in memory, resized so that its longer side is `size`."""

    def __init__(self, work: WorkFolder, size: int, keep: bool = False):
        self.work, self.size, self.keep = work, size, keep
        self._kept: dict[tuple, np.ndarray] = {}
        self._scale: dict[tuple, float] = {}  # of the kept crops, against those on disk
        self._places: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}

    def __call__(self, video_id: str, frame_idx: int, face_idx: int) -> np.ndarray:
        """Return a crop (H, W, 3) uint8 RGB."""
        key = (video_id, frame_idx, face_idx)
        if key in self._kept:
            return self._kept[key]
        crop = read_png(self.work.crops(video_id) / face_file(frame_idx, face_idx))
        if self.keep:
            longer = max(crop.shape)
            crop = self._kept[key] = isotropic_resize(crop, self.size)
            self._scale[key] = max(crop.shape) / longer
        return crop

    def mask(self, video_id: str, frame_idx: int, face_idx: int, shape: tuple[int, int]) -> np.ndarray | None:
        """Return a fake's mask (H, W) uint8, or None where there is none. shape: (H, W) of its crop."""
        path = self.work.masks(video_id) / face_file(frame_idx, face_idx)
        mask = read_mask(path) if path.exists() else None
        if mask is not None and mask.shape != shape:
            raise DamagedFile(f"{path} has {mask.shape} pixels, its crop {shape}: run `dfdc preprocess` again")
        return mask

    def landmarks(self, original_id: str, frame_idx: int, face_idx: int) -> np.ndarray:
        """Return the landmarks (5, 2) in pixels of the crop as it lies on disk. Raises DamagedFile for want of them."""
        if original_id not in self._places:
            self._places[original_id] = read_places(self.work, original_id)
        name = face_file(frame_idx, face_idx)
        if name not in self._places[original_id]:
            boxes = self.work.boxes(original_id)
            raise DamagedFile(f"{boxes} has no face for the crop {name}: run `dfdc preprocess` again")
        return self._places[original_id][name][1]

    def blend_with_itself(
        self, crop: np.ndarray, key: tuple[str, int, int], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Make a real crop, as read with `key`, its own fake: (picture, mask). None where the face is not whole."""
        try:
            return self_blend(crop, self.landmarks(*key) * self._scale.get(key, 1), rng)
        except NotAFace:  # it leaves the frame: the crop stays what it is
            return None


class CropDataset(Dataset):
    """One crop and its label: picture (3, S, S) float32, label float32 (1 = fake). None for a picture that is broken.

    seed: augments item i from (seed, i) alone, whatever was drawn before and in whichever process. hard: the
    transform is given the mask and the landmarks too. self_blend: how often a real crop becomes its own fake.
    """

    def __init__(
        self, rows: pd.DataFrame, reader: CropReader, transform,
        seed: int | None = None, hard: bool = False, self_blend: float = 0.0,
    ):  # fmt: skip
        self.rows = rows[["video_id", "frame_idx", "face_idx", "label", "original_id"]].to_numpy()
        self.reader, self.transform, self.seed, self.hard = reader, transform, seed, hard
        self.self_blend = self_blend

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        try:
            given, label = self._read(index)
        except DamagedFile:  # the file is there and can't be used: counted by `collate`
            return None
        if self.seed is not None:
            self.transform.set_random_seed(stream_seed(self.seed, index))
        return self.transform(**given)["image"], torch.tensor(float(label))

    def _read(self, index: int) -> tuple[dict, int]:
        """What the transform is given, and the label."""
        *key, label, original_id = self.rows[index]
        crop = self.reader(*key)
        mask = self.reader.mask(*key, crop.shape[:2]) if self.hard else None
        rng = _blending_stream(self.seed, index)
        if label == 0 and rng.random() < self.self_blend:
            own = self.reader.blend_with_itself(crop, tuple(key), rng)
            (crop, mask), label = (own, 1) if own else ((crop, mask), 0)
        given = {"image": crop}
        if self.hard:
            mask = np.zeros(crop.shape[:2], np.uint8) if mask is None else mask
            given |= {"mask": mask, "landmarks": self.reader.landmarks(original_id, *key[1:]), "label": label}
        return given, label


class PairDataset(Dataset):
    """A real crop and its own fake, augmented alike: pictures (2, 3, S, S) float32, labels (2,) float32 = 0, 1.

    All that the two share (who, where, light, camera, augmentation) can then not lower the loss: only the
    manipulation can. Ours, for small data; the slides draw single crops. None where one of the two is broken.
    self_blend: how often the fake is the real crop blended with itself instead; where its face is not whole, the given
    fake stays.
    """

    def __init__(
        self, pairs: pd.DataFrame, reader: CropReader, transform, seed: int | None = None, self_blend: float = 0.0
    ):
        self.rows = pairs[["real_id", "video_id", "frame_idx", "face_idx"]].to_numpy()
        self.reader, self.transform, self.seed, self.self_blend = reader, transform, seed, self_blend

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        try:
            given = self._read(index)
        except DamagedFile:
            return None
        if self.seed is not None:
            self.transform.set_random_seed(stream_seed(self.seed, index))
        both = self.transform(**given)
        return torch.stack([both["image"], both["fake"]]), torch.tensor([0.0, 1.0])

    def _read(self, index: int) -> dict[str, np.ndarray]:
        """The real crop and its fake."""
        real_id, fake_id, *place = self.rows[index]
        given = {"image": self.reader(real_id, *place), "fake": self.reader(fake_id, *place)}
        if given["image"].shape != given["fake"].shape:
            crop = self.reader.work.crops(fake_id) / face_file(*place)
            raise DamagedFile(f"{crop} is not of the size of its partner in {real_id}: run `dfdc preprocess` again")
        rng = _blending_stream(self.seed, index)
        if rng.random() < self.self_blend:
            own = self.reader.blend_with_itself(given["image"], (real_id, *place), rng)
            given["fake"] = own[0] if own else given["fake"]
        return given


def _blending_stream(seed: int | None, index: int) -> np.random.Generator:
    """What self-blending draws from: another stream than the augmentation's, which stays as it is without it."""
    return np.random.default_rng(None if seed is None else stream_seed(seed, index, 1))


def collate(items: list) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Join items to a batch: pictures (N, 3, S, S), labels (N,), and how many items were broken and are left out."""
    good = [item for item in items if item is not None]
    if not good:
        raise ValueError(f"all {len(items)} pictures of a batch are broken: check the crops with `dfdc preprocess`")
    pictures, labels = (torch.stack(values) for values in zip(*good, strict=True))
    return pictures.flatten(0, -4), labels.flatten(), len(items) - len(good)


def read_batches(data: Dataset, workers: int, **batches) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Yield the batches of a dataset, see `collate`. workers: processes that read. batches: as DataLoader is told.

    The processes are new ones, not forked: a fork of a process in which OpenVINO or numba has run may crash.
    """
    started = {"multiprocessing_context": "spawn", "worker_init_fn": _become_reader} if workers else {}
    pinned = torch.cuda.is_available()
    loader = DataLoader(data, num_workers=workers, collate_fn=collate, pin_memory=pinned, **started, **batches)
    if not workers or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # they inherit it: Ctrl-C is for the process that trains
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGINT, before)


def _become_reader(_: int) -> None:
    become_worker(1)
