"""Take a data set through the stages: one recipe, one journal, one job per video.

The journal, status.csv, has a line for each stage of each video, and the last one counts; only this
process writes it. There are two waves: the originals, then the fakes of those that succeeded.
"""

import csv
import importlib.metadata
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dfdc_lib.config import STAGES, PreprocessConfig
from dfdc_lib.jobs import TIME_LIMIT, Lost, run_jobs
from dfdc_lib.metadata import assign_folds, describe_folds, is_own, read_metadata
from dfdc_lib.preprocess import Outcome, process_video, read_places
from dfdc_lib.store import (
    DamagedFile,
    Journal,
    WorkFolder,
    appear_whole,
    face_file,
    file_size,
    hold,
    list_faces,
    remove,
    write_json,
)

# Done again: what may be the disk's or the machine's fault, or has been struck out.
PASSING = ("pending", "missing_file", "unreadable", "crashed", "timeout", "out_of_memory", "error")
FOLD_COLUMNS = ["video_id", "file", "label", "original_id", "frame_idx", "face_idx", "part", "fold"]
PLACE_COLUMNS = ["x0", "y0", "x1", "y1"]  # of a crop in its frame, whole pixels
MADE = ("status.csv", "folds.csv", "boxes", "crops", "masks")  # what a recipe makes
Key = tuple[str, str]  # (video_id, stage)
VERSIONS = ("dfdc-lib", "facenet-pytorch", "torch", "opencv-python-headless", "av")


class Line(NamedTuple):
    """A line of the journal."""

    video_id: str
    stage: str
    status: str
    count: int  # type: ignore[assignment]
    reason: str
    bytes: int | None  # the video's size then; None: it was not there


class Summary(NamedTuple):
    """What `preprocess` did."""

    status: pd.DataFrame  # the journal: one row per video and stage
    actions: dict[tuple[str, str], int]  # (stage, "kept", "done" or "not ready") → videos
    folds: str  # how the folds were cut, in words; "" if that stage was not asked for


def preprocess(
    data: Path,
    work: WorkFolder,
    config: PreprocessConfig = PreprocessConfig(),
    workers: int = 0,
    originals: int = 0,
    folds: int = 16,
    stages: Sequence[str] = STAGES,
    scheduler: str = "",
    time_limit: float = TIME_LIMIT,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Take a data set, or some originals of it, through the stages; resume where a run stopped.

    originals: use only this many, evenly over the parts; 0: all. folds: at most this many. stages:
    some of `config.STAGES`. workers, scheduler, time_limit: as in `jobs.run_jobs`. progress(done,
    total) counts videos.

    Raises OSError if the disk is full; ValueError if another run is writing to `work`, or if it has
    another recipe (data, settings) and `overwrite` doesn't begin it again.
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        given = ", ".join(unknown) or "none"
        raise ValueError(f"stages must be some of {', '.join(STAGES)}, got {given}")
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    table = read_metadata(data)
    data, work = Path(data).absolute(), WorkFolder(Path(work.root).absolute())
    chosen = choose_originals(table, originals, data)
    with hold(work.status):
        require_recipe(data, work, config, overwrite)
        remove(work.unfinished)  # of killed runs; a late worker has nowhere to write
        status = StatusTable(work, chosen, data)
        done = 0
        for first in (True, False):
            rows = chosen[is_own(chosen) == first]
            jobs = [
                (data / row.file, work, config, row.video_id, row.original_id, todo)
                for row in rows.itertuples()
                if (todo := status.plan(row, stages))
            ]
            done += len(rows) - len(jobs)
            progress(done, len(chosen))
            how = (workers, scheduler, time_limit)
            for job, result in run_jobs(process_video, jobs, *how) if jobs else ():
                status.record(job, result)
                done += 1
                progress(done, len(chosen))
        remove(work.unfinished)
        lines = status.finish(table)
        told = write_folds(work, table, folds, status) if "folds" in stages else ""
    return Summary(lines, dict(status.tally), told)


def require_recipe(data: Path, work: WorkFolder, config: PreprocessConfig, overwrite: bool) -> None:
    """Write a new folder's recipe; for any other raise ValueError, or `overwrite` what it made."""
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    recipe = {"data": name_data(data), "settings": config.to_json(), "versions": versions}
    if unlike := compare_recipe(work, recipe):
        if not overwrite:
            ways = "name another folder with --work, or begin again with --overwrite"
            raise ValueError(f"{work.root} was {unlike}: {ways}")
        for name in (*MADE, "recipe.json"):  # last: until then the folder is refused
            remove(work.root / name)
    if not work.recipe.exists():
        write_json(work.recipe, recipe)
    before = work.read_recipe()["versions"]
    changed = sorted(versions.items() - before.items())
    if told := ", ".join(f"{name} {before.get(name)} → {now}" for name, now in changed):
        print(f"since {work.root} was begun, libraries have changed: {told}", file=sys.stderr)


def compare_recipe(work: WorkFolder, recipe: dict) -> str:
    """How a work folder's recipe differs; "" if it doesn't."""
    if not work.recipe.exists():
        is_old = any((work.root / name).exists() for name in MADE)
        return "made by an earlier version of this project" if is_old else ""
    stored = work.read_recipe()
    for name in ("data", "settings"):
        if stored[name] != recipe[name]:
            return f"made with {stored[name]}, but this run uses {recipe[name]}"
    return ""


def name_data(data: Path) -> str:
    """What recipes and checkpoints call a data set: its folder's name, or "sample"."""
    return "sample" if (Path(data) / "sample.json").exists() else Path(data).resolve().name


def choose_originals(table: pd.DataFrame, count: int, data: Path) -> pd.DataFrame:
    """Keep the rows of `count` originals, those on disk first, and of their fakes; 0: every row.

    Parts take turns in a fixed, shuffled order, so that a few originals fall into several folds.
    """
    if count < 0:
        raise ValueError(f"the number of originals must not be negative, got {count}")
    if count == 0:
        return table
    first = table.sort_values("label", kind="stable").drop_duplicates("original_id").sort_index()
    there = [os.path.exists(data / file) for file in first.file]
    parts = sorted(first.part.unique())
    order = dict(zip(parts, np.random.default_rng(0).permutation(len(parts)), strict=True))
    absent = ~(is_own(first) & np.array(there))
    first = first.assign(absent=absent, order=first.part.map(order))
    first = first.assign(turn=first.groupby(["absent", "part"]).cumcount())
    ranked = first.sort_values(["absent", "turn", "order"], kind="stable")
    return table[table.original_id.isin(ranked.original_id[:count])].reset_index(drop=True)


class StatusTable:
    """What status.csv says about each stage, and what to do next. table: this run's videos."""

    def __init__(self, work: WorkFolder, table: pd.DataFrame, data: Path):
        self.work = work
        self.lines = read_status(work)
        self.sizes = {row.video_id: file_size(data / row.file) for row in table.itertuples()}
        fakes = table[~is_own(table)]
        self.fakes_of = fakes.groupby("original_id").video_id.agg(list).to_dict()
        self.tally: Counter[tuple[str, str]] = Counter()

    def count(self, video_id: str, stage: str) -> int | None:
        """How much a stage made from a video; None if it is to be done, or done again."""
        line = self.lines.get((video_id, stage))
        if line is None or line.status in PASSING:
            return None
        size = self.sizes.get(video_id)  # None: a deleted video changes nothing
        return line.count if size in (None, line.bytes) else None

    def plan(self, row, asked: Sequence[str]) -> tuple[str, ...]:
        """Choose the stages of a video to do now, and clear the way for them."""
        own = row.video_id == row.original_id
        if not own and (lost := self._lack_of_original(row)):
            if "crop" in asked and self.count(row.video_id, "crop") is None:
                self.begin(row.video_id, "crop")
                self.add([Line(row.video_id, *lost, self.sizes[row.video_id])])
            return ()
        todo: list[Key] = []
        for stage in ("detect", "crop") if own else ("crop", "masks"):
            if stage not in asked:
                continue
            if action := self._why_not(row, stage, todo):
                self.tally[stage, action] += 1
            else:
                self.begin(row.video_id, stage)
                todo.append((row.video_id, stage))
        return tuple(stage for _, stage in todo)

    def _why_not(self, row, stage: str, todo: list[Key]) -> str:
        """Why a stage is not done now: "kept", "not ready" or "". todo: what is done before it."""
        if self.count(row.video_id, stage) is not None:
            return "kept"
        made_from = {
            "detect": [],
            "crop": [(row.original_id, "detect")],
            "masks": [(row.video_id, "crop"), (row.original_id, "crop")],
        }
        counts = [self.count(*key) for key in made_from[stage] if key not in todo]
        if 0 in counts:  # there is nothing to make it from
            return "kept"
        return "not ready" if None in counts else ""

    def _lack_of_original(self, row) -> Outcome | None:
        """Why a fake can't be cropped; None if it can."""
        original_id = row.original_id
        if original_id not in self.sizes:
            return Outcome("crop", "missing_original", 0, f"{original_id} is not listed")
        found = self.lines.get((original_id, "detect"))
        if found is None or found.status == "pending" or found.count:
            return None
        status = {"missing_file": "missing_original", "no_face": "no_face"}
        reason = f"face detection in the original, {original_id}, ended with {found.status}"
        return Outcome("crop", status.get(found.status, "broken_original"), 0, reason)

    def begin(self, video_id: str, stage: str) -> None:
        """Remove what a stage made from a video, and make pending what was made from that."""
        family = [video_id, *self.fakes_of.get(video_id, [])]
        later = product(family, STAGES[STAGES.index(stage) + 1 :])
        struck = [k for k in later if k in self.lines and self.lines[k].status != "pending"]
        for made_of, maker in [(video_id, stage), *struck]:
            if maker != "detect":
                self.work.folds.unlink(missing_ok=True)  # before the crops it names change
            remove(self.work.artifact(maker, made_of))
        if struck:
            reason = f"{stage} of {video_id} is done again"
            self.add([Line(*key, "pending", 0, reason, None) for key in struck])

    def record(self, job: tuple, result: "list[Outcome] | Lost") -> None:
        """Record in the journal what came of a job."""
        *_, video_id, _, stages = job
        if isinstance(result, Lost):
            result = [Outcome(stages[0], result.status, 0, result.reason)]
        self.tally.update((stage, "done") for stage in stages)
        self.add([Line(video_id, *outcome, self.sizes[video_id]) for outcome in result])

    def add(self, lines: list[Line]) -> None:
        """Append lines to the journal."""
        append_lines(self.work, lines)
        self.lines.update({line[:2]: line for line in lines})

    def finish(self, table: pd.DataFrame) -> pd.DataFrame:
        """Sort the journal as `table` lists the videos, and by stage; return it."""
        place = {video_id: number for number, video_id in enumerate(table.video_id)}
        last = len(place)  # lines of videos that are no longer listed stay, at the end

        def order(line: Line) -> tuple:
            return place.get(line.video_id, last), line.video_id, STAGES.index(line.stage)

        lines = sorted(self.lines.values(), key=order)
        with appear_whole(self.work.status) as temporary:
            Journal(temporary).append(map(_format, [Line._fields, *lines]))
        return pd.DataFrame(lines, columns=Line._fields)


def read_status(work: WorkFolder) -> dict[Key, Line]:
    """Read the journal: the last line of each video and stage. Raises DamagedFile."""
    lines = {}
    try:
        for video_id, stage, status, count, *rest in csv.reader(Journal(work.status).lines()[1:]):
            reason, size = rest
            line = Line(video_id, stage, status, int(count), reason, int(size) if size else None)
            lines[line[:2]] = line
    except (TypeError, ValueError) as error:
        fix = "delete the folder, and run `dfdc preprocess` again"
        raise DamagedFile(f"{work.status} is not what `dfdc preprocess` writes: {fix}") from error
    return lines


def append_lines(work: WorkFolder, lines: Iterable[Line]) -> None:
    """Add lines to status.csv."""
    head = [] if work.status.exists() else [Line._fields]
    Journal(work.status).append(map(_format, [*head, *lines]))


def _format(values: Iterable) -> str:
    """Make a line of CSV with no line breaks in it."""
    text = io.StringIO()
    words = [" ".join(v.split()) if isinstance(v, str) else v for v in values]
    csv.writer(text, lineterminator="").writerow(words)
    return text.getvalue()


def write_folds(work: WorkFolder, table: pd.DataFrame, n_folds: int, status: StatusTable) -> str:
    """Write folds.csv: one row per crop, in the table's order. Returns how the folds were cut.

    Raises ValueError if an original and its fakes would be split.
    """
    table = table.assign(fold=assign_folds(table, n_folds))
    if (table.groupby("original_id").fold.nunique() > 1).any():
        raise ValueError("a leak: an original and its fakes are in different folds")
    counts = [status.count(video_id, "crop") or 0 for video_id in table.video_id]
    used = table[np.array(counts, int) > 0]
    read_family = lru_cache(500)(partial(read_places, work))  # a part of DFDC has 400 originals
    n_crops = 0
    with appear_whole(work.folds) as temporary, open(temporary, "w", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FOLD_COLUMNS + PLACE_COLUMNS)
        for row in used.itertuples():
            places = read_family(row.original_id)
            video = (row.video_id, row.file, row.label, row.original_id)
            for face in list_faces(work.crops(row.video_id)):
                if face not in places:
                    name, boxes = face_file(*face), work.boxes(row.original_id)
                    fix = "`dfdc doctor --work` says how to fix that"
                    raise DamagedFile(f"{boxes} lacks the face of {row.video_id}/{name}: {fix}")
                writer.writerow((*video, *face, row.part, row.fold, *places[face]))
                n_crops += 1
    return f"{n_crops} crops; {describe_folds(used, used.fold.to_numpy())}"
