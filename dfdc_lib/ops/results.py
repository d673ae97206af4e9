"""What is read to measure scores: results, the truth about videos, and which belongs to which."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dfdc_lib.metadata import MetadataError, find_parts, read_part
from dfdc_lib.ops.submission import PREDICTIONS, SETTINGS, STATUS
from dfdc_lib.rehearsal.sample import read_methods
from dfdc_lib.store import DamagedFile, read_json, show

TRUTH = ["file", "label", "original_id", "method", "split", "person"]


class Results(NamedTuple):
    """Scores of some videos, and what is known of who gave them."""

    name: str
    videos: pd.DataFrame  # filename, p_fake (NaN without a score), mean (of its frames)
    frames: pd.DataFrame  # filename, frame_idx, p_fake: the mean over faces and checkpoints
    checkpoints: list[str]  # empty where it is not known
    settings: dict  # of the call; as well

    @property
    def trained_on(self) -> str:
        """What the checkpoints have learned from, by their cards."""
        cards = self.settings.get("cards", [])
        return " + ".join(sorted({card["trained_on"] for card in cards})) or "not told"


def read_truth(source: Path) -> pd.DataFrame:
    """What is known of a data set's videos: TRUTH's columns, and path. Raises MetadataError.

    source: a data folder, whose names are paths in it, or a CSV with the columns filename and
    label (1 for a fake, 0 for a real) and, if it has them, original_id, method, split, person.
    """
    source = Path(source)
    if source.is_dir():
        parts = find_parts(source)
        table = pd.DataFrame([row for path in parts for row in read_part(source, path)])
        told = {
            str((path.parent / name).relative_to(source)): entry
            for path in parts
            for name, entry in read_json(path).items()
        }
        for column in ("method", "split"):
            table[column] = [str(told[file].get(column) or "") for file in table.file]
        table["person"] = [str((told[file].get("people") or [""])[0]) for file in table.file]
        if (source / "sample.json").exists():
            table["method"] = table.video_id.map(read_methods(source)).fillna("")
    else:
        table = read_label_file(source).rename(columns={"filename": "file"})
        for column in TRUTH[2:]:
            table[column] = table.get(column, table.file if column == "original_id" else "")
    table = table[TRUTH].assign(data_set=source.resolve().stem)
    return table.assign(path=[os.path.abspath(source / file) for file in table.file])


def read_label_file(source: Path) -> pd.DataFrame:
    """Read a CSV of labels: all is text but label, 0 or 1. Raises MetadataError."""
    try:
        table = pd.read_csv(source, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas does not say which file
        raise MetadataError(f"{source} is not a CSV file that can be read: {error}") from error
    if not {"filename", "label"} <= set(table):
        columns = "the columns filename and label, with 1 for a fake and 0 for a real"
        raise MetadataError(f"{source} must have {columns}")
    wrong = table[~table.label.isin(["0", "1"])]
    if len(wrong):
        told = f"{show(wrong.filename.iloc[0])} has the label {show(wrong.label.iloc[0])}"
        raise MetadataError(f"{source}: {told}: it must be 1 for a fake, 0 for a real")
    repeated = table.filename[table.filename.duplicated()]
    if len(repeated):
        raise MetadataError(f"{source}: video {show(repeated.iloc[0])} is listed twice")
    return table.astype({"label": int})


def read_results(path: Path) -> Results:
    """Read what `dfdc predict --out` wrote: a submission, or the folder that holds one.

    A submission of another program, without status.csv beside it, has videos' scores only. Raises
    FileNotFoundError or DamagedFile.
    """
    path = Path(path)
    if path.is_dir():
        found = [file for file in sorted(path.glob("*.csv")) if file.name != STATUS]
        if len(found) != 1:
            raise FileNotFoundError(f"{path} holds {len(found)} submissions: name one")
        path = found[0]
    try:
        scores = pd.read_csv(path, dtype={"filename": str}, keep_default_na=False)
        videos = scores[["filename", "label"]].rename(columns={"label": "p_fake"})
        videos = videos.assign(p_fake=videos.p_fake.astype(float))
        if not videos.p_fake.between(0, 1).all():
            raise ValueError("scores are not in [0, 1]")
    except (KeyError, ValueError) as error:
        fix = "it must have the columns filename and label, which holds the scores"
        raise DamagedFile(f"{path} is no submission ({error}): {fix}") from error
    if not (path.parent / STATUS).exists():
        nothing = pd.DataFrame({"filename": [], "frame_idx": [], "p_fake": []})
        return Results(str(path), videos.assign(mean=np.nan), nothing, [], {})
    status = pd.read_csv(path.parent / STATUS, dtype={"filename": str}, keep_default_na=False)
    faces = pd.read_parquet(path.parent / PREDICTIONS).rename(columns={"video": "filename"})
    frames = faces.groupby(["filename", "frame_idx"], as_index=False).p_fake.mean()
    videos = status[["filename", "n_faces"]].merge(videos, "left", "filename")
    videos.loc[videos.n_faces == 0, "p_fake"] = np.nan  # a fallback is no score
    videos["mean"] = videos.filename.map(frames.groupby("filename").p_fake.mean())
    about = path.parent / SETTINGS
    settings = read_json(about) if about.exists() else {}
    checkpoints = list(faces.checkpoint.unique()) if settings else []
    return Results(str(path), videos, frames, checkpoints, settings)


def match_truth(names: Sequence[str], truth: pd.DataFrame) -> np.ndarray:
    """The row of `truth` (its number) of each video; -1 where it has none.

    One of a video's name and a label's must be the end of the other; the longest end counts. Raises
    ValueError where two videos share a row, or where a name fits several rows.
    """
    whole: dict[str, set[int]] = {}  # a label's name → rows
    parts: dict[str, set[int]] = {}  # the end of a label's path → rows
    for row, (file, path) in enumerate(zip(truth.file, truth.path, strict=True)):
        for name in {path, str(Path(file))}:
            whole.setdefault(name, set()).add(row)
        for folder in Path(path).parents:
            parts.setdefault(os.path.relpath(path, folder), set()).add(row)
    rows = np.full(len(names), -1)
    for number, name in enumerate(names):
        place = Path(os.path.abspath(name))
        ends = [str(place), *(str(place.relative_to(p)) for p in reversed(place.parents))]
        fits = [whole[end] for end in ends if end in whole] or [parts.get(str(Path(name)), set())]
        if len(fits[0]) > 1:
            some = ", ".join(truth.path.iloc[sorted(fits[0])[:2]])
            raise ValueError(f"{name} may be any of {some}, …: write more of its path")
        rows[number] = min(fits[0], default=-1)
    taken = pd.Series(rows)[rows >= 0]
    if (again := taken[taken.duplicated(keep=False)]).size:
        both = " and ".join(names[i] for i in again.index[again == again.iloc[0]][:2])
        file = truth.file.iloc[again.iloc[0]]
        raise ValueError(f"{both} have one label, {file}: write more of their paths")
    return rows
