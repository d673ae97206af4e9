"""DFDC's JSON files to one table, and folds that never split an original from its fakes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dfdc_lib.paths import DamagedFile, read_json, show


class Row(NamedTuple):
    """What is known of a video."""

    video_id: str
    file: str  # relative to the data folder
    label: int  # 1 for a fake
    original_id: str  # its own for an original
    part: int


class MetadataError(ValueError):
    """A metadata.json that can't be used; the message names the file, the entry and the mend."""


def find_parts(data: Path) -> list[Path]:
    """Return the metadata files of a data folder, one a part, sorted. Raises FileNotFoundError with what to do."""
    data = Path(data)
    if not data.is_dir():
        raise FileNotFoundError(f"no such folder: {data}")
    found = sorted(data.glob("metadata.json")) + sorted(data.glob("*/metadata.json"))
    if not found:
        raise FileNotFoundError(f"{data} holds no metadata.json: name the folder that holds dfdc_train_part_0, …")
    return found


def read_metadata(data: Path) -> pd.DataFrame:
    """Read every part of a data set: one row a video, sorted by part and video_id.

    Columns: video_id, file (relative to `data`), label (1 = fake), original_id (its own for an original), part (int).
    Videos named in the JSON but absent on disk stay in the table: a partial download is no error.
    """
    data = Path(data)
    rows = [row for path in find_parts(data) for row in _read_part(data, path)]
    table = pd.DataFrame(rows, columns=Row._fields)
    repeated = table.video_id[table.video_id.duplicated()]
    if len(repeated):
        raise MetadataError(f"{data}: video {repeated.iloc[0]!r} is listed twice")
    fakes = set(table.video_id[table.label == 1])
    wrong = table[(table.label == 1) & table.original_id.isin(fakes)]
    if len(wrong):
        first = wrong.iloc[0]
        raise MetadataError(f"{data}: the original of {first.video_id!r}, {first.original_id!r}, is listed as a fake")
    return table.sort_values(["part", "video_id"], ignore_index=True)


def read_labels(source: Path) -> dict[str, int]:
    """The truth about videos: name → 1 for a fake. source: a data folder, or a CSV with filename and label.

    Of a folder's the name is the path in it; a fake needs no original here. See `submission.match_labels`.
    """
    if Path(source).is_dir():
        parts = find_parts(Path(source))
        return {row.file: row.label for path in parts for row in _read_part(Path(source), path, with_original=False)}
    if not Path(source).exists():
        raise FileNotFoundError(f"no such file or folder: {source}")
    try:
        table = pd.read_csv(source, dtype={"filename": str}, keep_default_na=False)
    except ValueError as error:  # pandas does not say which file
        raise MetadataError(f"{source} is not a CSV file that can be read: {error}") from error
    if not {"filename", "label"} <= set(table):
        raise MetadataError(f"{source} must have the columns filename and label, with 1 for a fake and 0 for a real")
    wrong = table[~table.label.isin([0, 1])]
    if len(wrong):
        told = f"{show(wrong.filename.iloc[0])} has the label {show(wrong.label.tolist()[0])}"
        raise MetadataError(f"{source}: {told}: it must be 1 for a fake, 0 for a real")
    repeated = table.filename[table.filename.duplicated()]
    if len(repeated):
        raise MetadataError(f"{source}: video {show(repeated.iloc[0])} is listed twice")
    return dict(zip(table.filename, table.label.tolist(), strict=True))


def _read_part(data: Path, path: Path, with_original: bool = True) -> list[Row]:
    try:
        entries = read_json(path)
    except DamagedFile as error:
        raise MetadataError(str(error)) from error
    if not isinstance(entries, dict):
        raise MetadataError(f"{path} must hold one object, video name to properties")
    suffix = path.parent.name.rsplit("_", 1)[-1]
    part = int(suffix) if suffix.isdecimal() else 0
    return [_read_entry(path, data, part, name, entry, with_original) for name, entry in entries.items()]


def _is_file_name(value) -> bool:
    """A name that every file system takes, and that can't lead anywhere else. Hidden files are not videos."""
    if not isinstance(value, str) or Path(value).name != value or value[:1] in ("", "."):
        return False
    # 255 bytes is what file systems take; an artifact that is being written has its machine and process in its name.
    return value.isprintable() and len(value.encode(errors="replace")) <= 150


def _read_entry(path: Path, data: Path, part: int, name: str, entry, with_original: bool) -> Row:
    def require_name(value, what: str) -> str:
        if not _is_file_name(value):
            raise MetadataError(f"{path}: {what} {show(value)} is not a plain file name")
        return Path(value).stem

    video_id = require_name(name, "video")
    entry = entry if isinstance(entry, dict) else {}
    label = entry.get("label", entry.get("is_fake"))  # DFDC's test set has the latter
    if label not in ("REAL", "FAKE", 0, 1):
        raise MetadataError(f"{path}: {name} needs a label of REAL or FAKE, or is_fake of 0 or 1, got {show(label)}")
    fake, original_id = label in ("FAKE", 1), video_id
    if fake and with_original:
        original_id = require_name(entry.get("original"), f"the original of {name}")
    return Row(video_id, str((path.parent / name).relative_to(data)), int(fake), original_id, part)


def assign_folds(table: pd.DataFrame, n_folds: int = 16) -> np.ndarray:
    """Return the fold (int) of each row of a metadata table; an original and its fakes always share one.

    By part: of all 50 parts upstream makes 16 folds, of three parts each and five in the last; other numbers of parts
    are cut as evenly as they go. A single part is cut by original instead, into at most five: without that its fold
    would always be 0, and nothing left to train on (a frequent complaint about upstream). See `describe_folds`.
    """
    part_of = dict(zip(table.video_id, table.part, strict=True))
    least = table.groupby("original_id").part.transform("min")  # for an original that is not listed
    ranks = table.original_id.map(part_of).fillna(least).rank(method="dense").to_numpy(int) - 1
    n_parts = ranks.max(initial=0) + 1
    if n_parts == 1:
        originals = table.original_id.rank(method="dense").to_numpy(int) - 1
        return originals % min(n_folds, 5)
    if (n_parts, n_folds) == (50, 16):
        return np.minimum(ranks // 3, 15)
    return ranks * min(n_folds, n_parts) // n_parts


def describe_folds(table: pd.DataFrame, folds: np.ndarray) -> str:
    """One or two sentences: how many folds of what, and which originals are missing. folds: as `assign_folds` gives."""
    n_parts, n_folds = table.part.nunique(), len(set(folds.tolist()))
    text = (
        f"{n_parts} parts in {n_folds} folds" if n_parts > 1 else f"one part only, cut by original into {n_folds} folds"
    )
    if n_parts < 50:
        text += " (the full set: 50 parts in 16 folds)"
    unlisted = set(table.original_id) - set(table.video_id)
    if unlisted:
        text += f"; {len(unlisted)} originals are not listed: their fakes can't be used"
    return text
