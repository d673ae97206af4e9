"""Read DFDC's JSON files into one table; make folds that keep originals with their fakes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dfdc_lib.store import DamagedFile, read_json, show


class Row(NamedTuple):
    """A video: one row of the table."""

    video_id: str
    file: str  # relative to the data folder
    label: int  # 1 for a fake
    original_id: str  # its own for an original, or for a fake whose original is unknown
    part: int
    method: str = ""  # how a fake was made; this and the rest only if the data set says
    split: str = ""  # the official one
    person: str = ""  # who is in it


class MetadataError(ValueError):
    """A metadata.json that can't be used; the message names the file, the entry and the fix."""


def find_parts(data: Path) -> list[Path]:
    """The metadata files of a data folder, one per part, sorted."""
    data = Path(data)
    if not data.is_dir():
        raise FileNotFoundError(f"no such folder: {data}")
    found = sorted(data.glob("metadata.json")) + sorted(data.glob("*/metadata.json"))
    if not found:
        fix = "name the folder that holds dfdc_train_part_0, …"
        raise FileNotFoundError(f"{data} holds no metadata.json: {fix}")
    return found


def read_metadata(data: Path) -> pd.DataFrame:
    """Read every part of a data set: one `Row` per video, sorted by part and video_id.

    Videos that are not on disk stay in the table: a partial download is not an error.
    """
    data = Path(data)
    rows = [row for path in find_parts(data) for row in read_part(data, path)]
    table = pd.DataFrame(rows, columns=Row._fields)
    repeated = table.video_id[table.video_id.duplicated()]
    if len(repeated):
        raise MetadataError(f"{data}: video {repeated.iloc[0]!r} is listed twice")
    fakes = table[(table.label == 1) & ~is_own(table)]
    for fake in fakes[fakes.original_id.isin(table.video_id[table.label == 1])].itertuples():
        pair = f"the original of {fake.video_id!r}, {fake.original_id!r}"
        raise MetadataError(f"{data}: {pair}, is listed as a fake")
    return table.sort_values(["part", "video_id"], ignore_index=True)


def is_own(table: pd.DataFrame) -> pd.Series:
    """Which videos need face detection of their own: originals, and fakes of unknown originals."""
    return table.video_id == table.original_id


def read_part(data: Path, path: Path) -> list[Row]:
    """Read what a metadata file says about its videos."""
    try:
        entries = read_json(path)
    except DamagedFile as error:
        raise MetadataError(str(error)) from error
    if not isinstance(entries, dict):
        raise MetadataError(f"{path} must hold one object that maps video names to properties")
    suffix = path.parent.name.rsplit("_", 1)[-1]
    part = int(suffix) if suffix.isdecimal() else 0
    rows = []
    for name, entry in entries.items():
        video_id = original_id = _stem(path, "video", name)
        entry = entry if isinstance(entry, dict) else {}
        label = entry.get("label", entry.get("is_fake"))  # DFDC's test set has the latter
        if label not in ("REAL", "FAKE", 0, 1):
            wanted = "a label of REAL or FAKE, or is_fake of 0 or 1"
            raise MetadataError(f"{path}: {name} needs {wanted}, got {show(label)}")
        fake = label in ("FAKE", 1)
        if fake and entry.get("original") is not None:
            original_id = _stem(path, f"the original of {name}", entry["original"])
            if original_id == video_id:
                raise MetadataError(f"{path}: {name} is listed as a fake of itself")
        file = str((path.parent / name).relative_to(data))
        told = [v if isinstance(v := entry.get(name), str) else "" for name in Row._fields[5:]]
        rows.append(Row(video_id, file, int(fake), original_id, part, *told))
    return rows


def _stem(path: Path, what: str, name) -> str:
    """A file's name without suffix; it must be a plain name that every file system takes."""
    plain = isinstance(name, str) and Path(name).name == name and name[:1] not in ("", ".")
    # File systems allow 255 bytes, and an artifact's name is longer while it is being written.
    if not (plain and name.isprintable() and len(name.encode(errors="replace")) <= 150):
        raise MetadataError(f"{path}: {what} {show(name)} is not a plain file name")
    return Path(name).stem


def assign_folds(table: pd.DataFrame, n_folds: int = 16) -> np.ndarray:
    """The fold (int) of each row of a metadata table; an original and its fakes share one.

    By part: upstream makes 16 folds of all 50 parts, three parts each and five in the last; any
    other number of parts is split as evenly as possible. A single part is split by original, into
    at most five: otherwise nothing is left to train on (a frequent complaint about upstream).
    """
    part_of = dict(zip(table.video_id, table.part, strict=True))
    least = table.groupby("original_id").part.transform("min")  # if the original is not listed
    ranks = table.original_id.map(part_of).fillna(least).rank(method="dense").to_numpy(int) - 1
    n_parts = ranks.max(initial=0) + 1
    if n_parts == 1:
        originals = table.original_id.rank(method="dense").to_numpy(int) - 1
        return originals % min(n_folds, 5)
    if (n_parts, n_folds) == (50, 16):
        return np.minimum(ranks // 3, 15)
    return ranks * min(n_folds, n_parts) // n_parts


def describe_folds(table: pd.DataFrame, folds: np.ndarray) -> str:
    """Say in words how many folds there are, of what, and how many originals are missing."""
    n_parts, n_folds = table.part.nunique(), len(set(folds.tolist()))
    text = "one part only, cut by original into" if n_parts == 1 else f"{n_parts} parts in"
    text += f" {n_folds} folds"
    if n_parts < 50:
        text += " (all of DFDC: 50 parts in 16 folds)"
    unlisted = set(table.original_id) - set(table.video_id)
    if unlisted:
        text += f"; {len(unlisted)} originals are not listed: their fakes can't be used"
    return text
