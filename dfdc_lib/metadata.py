"""DFDC's JSON files to one table, and folds that never split an original from its fakes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = ["video_id", "file", "label", "original_id", "part"]


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
    table = pd.DataFrame(rows, columns=COLUMNS)
    repeated = table.video_id[table.video_id.duplicated()]
    if len(repeated):
        raise MetadataError(f"{data}: video {repeated.iloc[0]!r} is listed twice")
    return table.sort_values(["part", "video_id"], ignore_index=True)


def _read_part(data: Path, path: Path) -> list[tuple]:
    try:
        entries = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MetadataError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise MetadataError(f"{path} must hold one object, video name to properties")
    suffix = path.parent.name.rsplit("_", 1)[-1]
    part = int(suffix) if suffix.isdecimal() else 0
    return [_read_entry(path, data, part, name, entry) for name, entry in entries.items()]


def _read_entry(path: Path, data: Path, part: int, name: str, entry) -> tuple:
    def require_name(value, what: str) -> str:
        if not isinstance(value, str) or Path(value).name != value or not Path(value).stem.strip("."):
            raise MetadataError(f"{path}: {what} {value!r} is not a plain file name")
        return Path(value).stem

    video_id = require_name(name, "video")
    label = entry.get("label") if isinstance(entry, dict) else None
    if label not in ("REAL", "FAKE"):
        raise MetadataError(f"{path}: {name} needs a label of REAL or FAKE, got {label!r}")
    fake = label == "FAKE"
    original_id = require_name(entry.get("original"), f"the original of {name}") if fake else video_id
    return video_id, str((path.parent / name).relative_to(data)), int(fake), original_id, part


def assign_folds(table: pd.DataFrame, parts_per_fold: int = 1) -> np.ndarray:
    """Return the fold of each row of a metadata table: that of its original's part, so families stay together.

    Upstream cuts the 50 parts into 16 folds of about three. Parts are ranked first: a partial download has no gaps.
    """
    part_of = dict(zip(table.video_id, table.part, strict=True))
    parts = table.original_id.map(part_of).fillna(table.part)  # an original that is not listed: the fake's own part
    ranks = parts.rank(method="dense").astype(int) - 1
    return (ranks // parts_per_fold).to_numpy()
