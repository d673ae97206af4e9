"""Read what it takes to measure scores: results, the truth about videos, and how they match."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dfdc_lib.metadata import MetadataError, Row, find_parts, read_part
from dfdc_lib.ops.submission import PREDICTIONS, SETTINGS, STATUS, settings_of
from dfdc_lib.rehearsal.sample import read_methods
from dfdc_lib.store import DamagedFile, read_record, show

TRUTH = ["file", "label", "original_id", "method", "split", "person"]


class Results(NamedTuple):
    """Scores of some videos, and what is known about who gave them."""

    name: str
    videos: pd.DataFrame  # name (maybe a path), p_fake (NaN without a score), mean (of its frames)
    frames: pd.DataFrame  # name, frame_idx, p_fake: the mean over faces and checkpoints
    settings: dict  # see `submission.describe_call`; empty if unknown

    @property
    def checkpoints(self) -> list[Path]:
        """The files of the networks, if they are known."""
        return [Path(path) for path in self.settings.get("paths", [])]

    @property
    def trained_on(self) -> list[str]:
        """What the networks learned from, by their cards."""
        return sorted({card["trained_on"] for card in self.settings.get("cards", [])})

    @property
    def network(self) -> str:
        """The networks in words: what they learned from, and their files."""
        if not self.checkpoints:
            return self.name
        files = ", ".join("/".join(path.parts[-2:]) for path in self.checkpoints)
        return f"{' + '.join(self.trained_on)} ({files})"


def read_truth(source: Path) -> pd.DataFrame:
    """What is known about a data set's videos: TRUTH's columns, data_set and path.

    source: a data folder, whose names are paths in it, or a CSV with the columns filename and
    label (1 for a fake, 0 for a real) and, if it has them, original_id, method, split, person.
    Raises FileNotFoundError or MetadataError.
    """
    source = Path(source)
    if source.is_dir():
        rows = [row for path in find_parts(source) for row in read_part(source, path)]
        table, folder = pd.DataFrame(rows, columns=Row._fields), source
        if (source / "sample.json").exists():
            table["method"] = table.video_id.map(read_methods(source)).fillna("")
    else:
        table, folder = read_label_file(source), source.parent
    if table.empty:
        raise MetadataError(f"{source} lists no video")
    place = source.resolve()
    table = table[TRUTH].assign(data_set=place.name if source.is_dir() else place.stem)
    return table.assign(path=[os.path.abspath(folder / file) for file in table.file])


def read_label_file(source: Path) -> pd.DataFrame:
    """Read a CSV of labels: TRUTH's columns. Raises FileNotFoundError or MetadataError."""
    if not source.exists():
        raise FileNotFoundError(f"no such file or folder: {source}")
    try:
        table = pd.read_csv(source, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError as error:  # pandas does not say which file
        raise MetadataError(f"{source} can't be read as a CSV file: {error}") from error
    if not {"filename", "label"} <= set(table):
        columns = "the columns filename and label, with 1 for a fake and 0 for a real"
        raise MetadataError(f"{source} must have {columns}")
    table["file"], label = table.filename, pd.to_numeric(table.label, errors="coerce")
    wrong = table[~label.isin([0, 1])]
    if len(wrong):
        told = f"{show(wrong.file.iloc[0])} has the label {show(wrong.label.iloc[0])}"
        raise MetadataError(f"{source}: {told}: it must be 1 for a fake, 0 for a real")
    repeated = table.file[table.file.duplicated()]
    if len(repeated):
        raise MetadataError(f"{source}: video {show(repeated.iloc[0])} is listed twice")
    table = table.reindex(columns=TRUTH, fill_value="").assign(label=label.astype(int))
    own = table.original_id == ""
    return table.assign(original_id=table.original_id.mask(own, table.file))


def read_results(path: Path) -> Results:
    """Read what `dfdc predict --out` wrote: a submission, or the folder that holds one.

    Another program's submission has only video scores. Raises FileNotFoundError or DamagedFile.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob(f"*{SETTINGS}"))
        if len(found) != 1:
            raise FileNotFoundError(f"{path} holds {len(found)} results of `dfdc predict --out`")
        path = path / found[0].name.replace(SETTINGS, ".csv")
    if not path.is_file():
        raise FileNotFoundError(f"no such results: {path}")
    try:
        scores = pd.read_csv(path, dtype={"filename": str}, keep_default_na=False)
        videos = scores[["filename", "label"]].set_axis(["name", "p_fake"], axis=1)
        videos = videos.assign(p_fake=videos.p_fake.astype(float))
        if videos.empty or not videos.p_fake.between(0, 1).all():
            raise ValueError("it has no scores, or some outside [0, 1]")
    except (KeyError, ValueError) as error:
        fix = "it must have the columns filename and label, the probability of a fake"
        raise DamagedFile(f"{path} is not a submission ({error}): {fix}") from error
    if not settings_of(path).exists():
        frames = pd.DataFrame({"name": [], "frame_idx": [], "p_fake": []})
        return Results(str(path), videos.assign(mean=np.nan), frames, {})
    status = pd.read_csv(path.parent / STATUS, dtype={"filename": str}, keep_default_na=False)
    places = dict(zip(status.filename, status.path, strict=True))
    scores = videos.set_index("name").p_fake
    faces = pd.read_parquet(path.parent / PREDICTIONS).assign(name=lambda t: t.video.map(places))
    frames = faces.groupby(["name", "frame_idx"], as_index=False).p_fake.mean()
    videos = pd.DataFrame({"name": status.path, "p_fake": status.filename.map(scores)})
    videos.loc[status.n_faces == 0, "p_fake"] = np.nan  # a fallback is not a score
    videos["mean"] = videos.name.map(frames.groupby("name").p_fake.mean())
    settings = read_record(settings_of(path), set(), "score again")
    return Results(str(path), videos, frames, settings)


def match_truth(names: Sequence[str], truth: pd.DataFrame) -> np.ndarray:
    """The row of `truth` (its number) of each video; -1 if it has none.

    One of a video's name and a label's must be the end of the other; the longest end counts. Raises
    ValueError if two videos share a row, or a name fits several rows.
    """
    whole: dict[str, set[int]] = {}  # a label's name → rows
    ends_of: dict[str, set[int]] = {}  # the end of a label's path → rows
    for row, (file, path) in enumerate(zip(truth.file, truth.path, strict=True)):
        for name in {path, os.path.normpath(file)}:
            whole.setdefault(name, set()).add(row)
        for end in list_ends(path):
            ends_of.setdefault(end, set()).add(row)
    rows = np.full(len(names), -1)
    for number, name in enumerate(names):
        place = os.path.abspath(name)
        fits = next((whole[end] for end in [place, *list_ends(place)] if end in whole), set())
        fits = fits or ends_of.get(os.path.normpath(name), set())
        if len(fits) > 1:
            some = ", ".join(truth.path.iloc[sorted(fits)[:2]])
            raise ValueError(f"{name} may be any of {some}, …: give more of its path")
        rows[number] = min(fits, default=-1)
    taken = pd.Series(rows)[rows >= 0]
    if (again := taken[taken.duplicated(keep=False)]).size:
        both = " and ".join(names[i] for i in again.index[again == again.iloc[0]][:2])
        file = truth.file.iloc[again.iloc[0]]
        raise ValueError(f"{both} share one label, {file}: give more of their paths")
    return rows


def list_ends(path: str) -> list[str]:
    """The ends of a path, the longest first: a/b/c.mp4, b/c.mp4 and c.mp4 for /a/b/c.mp4."""
    parts = Path(path).parts[1:]
    return ["/".join(parts[i:]) for i in range(len(parts))]
