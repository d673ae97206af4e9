"""A whole data set through the stages: one recipe, one journal, one job a video.

A work folder has one recipe, the settings of its first run. Its journal, status.csv, has a line for
each stage of each video; this process alone writes it, and the last line counts. A run that stopped
goes on where it was. There are two waves: the originals, then the fakes of those that came out.
"""

import csv
import importlib.metadata
import io
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dfdc_lib.config import STAGES, PreprocessConfig
from dfdc_lib.jobs import TIME_LIMIT, Lost, run_jobs
from dfdc_lib.metadata import assign_folds, describe_folds, read_metadata
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

# What may have been the disk's fault or the machine's, or has been struck out: done again.
PASSING = ("pending", "missing_file", "unreadable", "crashed", "timeout", "out_of_memory", "error")
FOLD_COLUMNS = ["video_id", "file", "label", "original_id", "frame_idx", "face_idx", "part", "fold"]
PLACE_COLUMNS = ["x0", "y0", "x1", "y1"]  # of a crop in its frame, whole pixels
# What runs leave in a work folder beside its recipe; the last three only those of earlier versions.
MADE = ("status.csv", "folds.csv", "boxes", "crops", "masks", "manifest", "source.json", "attempts")
VERSIONS = ("dfdc-lib", "facenet-pytorch", "torch", "opencv-python-headless", "av")


class Line(NamedTuple):
    """A line of the journal."""

    video_id: str
    stage: str
    status: str
    count: int  # type: ignore[assignment]
    reason: str
    bytes: int | None  # of the video's file then; None where it was not there


class Summary(NamedTuple):
    """What `preprocess` did."""

    status: pd.DataFrame  # the journal: one row a video and stage
    actions: dict[tuple[str, str], int]  # (stage, "kept", "done" or "not ready") → videos
    folds: str  # how the folds were cut, in words; "" where that stage was not asked for


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
    """Bring a data set, or some originals of it, through the stages; go on where a run stopped.

    A work folder has one recipe: the settings of its first run. Others raise ValueError, unless
    `overwrite` begins again. originals: take only so many, evenly over the parts; 0 takes all.
    folds: at most so many. stages: some of `config.STAGES`. workers, scheduler, time_limit: as in
    `jobs.run_jobs`; without either, all is done here, unguarded. progress(done, total) counts
    videos.

    Raises ValueError where another run is writing to `work`, OSError where the disk takes no more.
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
        remove(work.unfinished)  # of killed runs: a late worker finds no place for what it makes
        status = StatusTable(work, chosen, data)
        done = 0
        for label in (0, 1) if set(stages) - {"folds"} else ():
            rows = [row for row in status.rows if row.label == label]
            todo = {row: some for row in rows if (some := status.plan(row, stages))}
            jobs = [
                (data / row.file, work, config, row.video_id, row.original_id, some)
                for row, some in todo.items()
            ]
            done += len(rows) - len(jobs)
            progress(done, len(chosen))
            for job, result in run_jobs(process_video, jobs, workers, scheduler, time_limit):
                status.record(job, result)
                done += 1
                progress(done, len(chosen))
        remove(work.unfinished)
        lines = status.finish(table)
        told = write_folds(work, table, folds, status) if "folds" in stages else ""
    return Summary(lines, dict(status.tally), told)


def require_recipe(data: Path, work: WorkFolder, config: PreprocessConfig, overwrite: bool) -> None:
    """See that a work folder has this recipe, and write it where the folder is new.

    Raises ValueError where it has another one; with `overwrite` what was made by that goes instead.
    """
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    recipe = {"data": name_data(data), "settings": config.to_json(), "versions": versions}
    if unlike := compare_recipe(work, recipe):
        if not overwrite:
            ways = "name another folder with --work, or begin again with --overwrite"
            raise ValueError(f"{work.root} was {unlike}: {ways}")
        for name in (*MADE, "recipe.json"):  # that last: until then the folder is refused
            remove(work.root / name)
    if not work.recipe.exists():
        write_json(work.recipe, recipe)
    before = work.read_recipe()["versions"]
    changed = [
        f"{n} {before.get(n)} → {now}" for n, now in versions.items() if before.get(n) != now
    ]
    if changed:
        begun = f"since {work.root} was begun, libraries changed"
        print(f"{begun}: {', '.join(changed)}", file=sys.stderr)


def compare_recipe(work: WorkFolder, recipe: dict) -> str:
    """How a work folder was made by another recipe than this one; "" where it was not."""
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
    """The rows of `count` originals and their fakes, from all over the parts; 0 keeps every row.

    Originals that are on disk come first. The parts are taken in turn, in an order that is shuffled
    but always the same, so that a few originals do not all fall into the first fold.
    """
    if count < 0:
        raise ValueError(f"a number of originals must not be negative, got {count}")
    if count == 0:
        return table
    first = table.sort_values("label", kind="stable").drop_duplicates("original_id").sort_index()
    present = [row.label == 0 and os.path.exists(data / row.file) for row in first.itertuples()]
    parts = sorted(first.part.unique())
    order = dict(zip(parts, np.random.default_rng(0).permutation(len(parts)), strict=True))
    first = first.assign(absent=~np.array(present), order=first.part.map(order))
    first = first.assign(turn=first.groupby(["absent", "part"]).cumcount())
    ranked = first.sort_values(["absent", "turn", "order"], kind="stable")
    return table[table.original_id.isin(ranked.original_id[:count])].reset_index(drop=True)


class StatusTable:
    """What is known of each stage of each video: status.csv, and what is to be done next.

    rows: the videos of this run, as `read_metadata` lists them in `table`.
    """

    def __init__(self, work: WorkFolder, table: pd.DataFrame, data: Path):
        self.work = work
        self.lines = read_status(work)
        self.rows = list(table.itertuples(index=False))
        self.listed = set(table.video_id)
        self.sizes = {row.video_id: file_size(data / row.file) for row in self.rows}
        self.fakes_of: dict[str, list[str]] = defaultdict(list)
        for row in self.rows:
            if row.label:
                self.fakes_of[row.original_id].append(row.video_id)
        self.tally: Counter[tuple[str, str]] = Counter()

    def count(self, video_id: str, stage: str) -> int | None:
        """How much a stage made of a video; None where it is still to be done, or done again."""
        line = self.lines.get((video_id, stage))
        if line is None or line.status in PASSING:
            return None
        size = self.sizes.get(video_id)  # None: a video that was deleted changes nothing
        return line.count if size in (None, line.bytes) else None

    def plan(self, row, asked: Sequence[str]) -> tuple[str, ...]:
        """The stages of a video that are to be done now; the way is cleared for them."""
        todo: list[str] = []
        lost = self._lack_of_original(row) if row.label else None
        if lost is not None:
            self._give_up(row.video_id, lost, asked)
            return ()
        for stage in ("crop", "masks") if row.label else ("detect", "crop"):
            if stage not in asked:
                continue
            needs = self._needs(row, stage)
            others = [pair for pair in needs if pair[0] != row.video_id or pair[1] not in todo]
            counts, again = [self.count(*pair) for pair in others], len(others) < len(needs)
            # A stage waits for those that it is made from; of nothing there is nothing to make.
            if None in counts:
                self.tally[stage, "not ready"] += 1
            elif again or (counts[:1] != [0] and self.count(row.video_id, stage) is None):
                todo.append(stage)
            else:
                self.tally[stage, "kept"] += 1
        self.begin(row.video_id, todo)
        return tuple(todo)

    def _needs(self, row, stage: str) -> list[tuple[str, str]]:
        """The (video, stage) pairs that a stage of a video is made from."""
        if stage == "masks":
            return [(row.video_id, "crop"), (row.original_id, "crop")]
        return [(row.original_id, "detect")] if stage == "crop" else []

    def _lack_of_original(self, row) -> Outcome | None:
        """Why a fake can't be cropped, where that is so."""
        original_id = row.original_id
        if original_id not in self.listed:
            return Outcome("crop", "missing_original", 0, f"{original_id} is not listed")
        found = self.lines.get((original_id, "detect"))
        if found is None or found.status == "pending" or found.count:
            return None
        status = {"missing_file": "missing_original", "no_face": "no_face"}
        reason = f"face detection in the original, {original_id}, ended with {found.status}"
        return Outcome("crop", status.get(found.status, "broken_original"), 0, reason)

    def _give_up(self, video_id: str, lost: Outcome, asked: Sequence[str]) -> None:
        line = Line(video_id, *lost, self.sizes[video_id])
        if "crop" in asked and self.lines.get((video_id, "crop")) != line:
            self.begin(video_id, ["crop"])
            self.add([line])

    def begin(self, video_id: str, stages: Sequence[str]) -> None:
        """Remove what these stages made of a video, and strike out what was built on it."""
        for stage in stages:
            if stage != "detect":
                self.work.folds.unlink(missing_ok=True)  # before what it names may change
            remove(self.work.artifact(stage, video_id))
            family = [video_id, *self.fakes_of.get(video_id, [])] if stage != "masks" else []
            later = "crop" if stage == "detect" else "masks"
            for other_id in family:
                if (other_id, later) in self.lines and (other_id, later) != (video_id, stages[-1]):
                    self.strike(other_id, later, f"{stage} of {video_id} is done again")

    def strike(self, video_id: str, stage: str, reason: str) -> None:
        """Let the next run do a stage of a video again, and what builds on it."""
        self.begin(video_id, [stage])
        self.add([Line(video_id, stage, "pending", 0, reason, None)])

    def record(self, job: tuple, result: "list[Outcome] | Lost") -> None:
        """Write into the journal what a job brought."""
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
        """Write the journal in the order of `table`, each video's stages in theirs; return it."""
        place = {video_id: number for number, video_id in enumerate(table.video_id)}
        last = len(place)  # of videos that are no longer listed: their lines stay, at the end

        def order(line: Line) -> tuple:
            return place.get(line.video_id, last), line.video_id, STAGES.index(line.stage)

        lines = sorted(self.lines.values(), key=order)
        Journal(self.work.status).rewrite(map(_format, [Line._fields, *lines]))
        return pd.DataFrame(lines, columns=Line._fields)


def read_status(work: WorkFolder) -> dict[tuple[str, str], Line]:
    """(video_id, stage) → its last line in the journal. Raises DamagedFile for what is none."""
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
    """A line of CSV that holds no line break."""
    text = io.StringIO()
    words = [" ".join(v.split()) if isinstance(v, str) else v for v in values]
    csv.writer(text, lineterminator="").writerow(words)
    return text.getvalue()


def write_folds(work: WorkFolder, table: pd.DataFrame, n_folds: int, status: StatusTable) -> str:
    """Write folds.csv: one row a crop, in a fixed order. Returns in words how the folds were cut.

    Raises ValueError where an original and its fakes would be split: nothing may be measured with
    such folds.
    """
    table = table.assign(fold=assign_folds(table, n_folds))
    if (table.groupby("original_id").fold.nunique() > 1).any():
        raise ValueError("a leak: an original and its fakes are in different folds")
    table = table.sort_values(["part", "video_id"], ignore_index=True)
    crops: list[np.ndarray] = [np.zeros((0, 6), np.int32)] * len(table)  # frame, face, place
    families = defaultdict(list)
    for row in table.itertuples():
        if status.count(row.video_id, "crop"):
            families[row.original_id].append(row)
    for original_id, family in families.items():
        places = read_places(work, original_id)
        for row in family:
            faces = list_faces(work.crops(row.video_id))
            if alien := [face for face in faces if face not in places]:
                name, fix = face_file(*alien[0]), "`dfdc doctor --work` says how to fix that"
                boxes = work.boxes(original_id)
                raise DamagedFile(f"{boxes} knows nothing of crops/{row.video_id}/{name}: {fix}")
            crops[row.Index] = np.array([(*face, *places[face]) for face in faces], np.int32)
    counts = np.array([len(some) for some in crops], int)
    with appear_whole(work.folds) as temporary, open(temporary, "w", encoding="utf-8") as file:
        pd.DataFrame(columns=FOLD_COLUMNS + PLACE_COLUMNS).to_csv(file, index=False)
        for start in range(0, len(table), 10_000):  # all at once would be gigabytes
            some = slice(start, start + 10_000)
            rows = table.iloc[np.repeat(table.index[some], counts[some])]
            numbers = np.concatenate(crops[some])
            rows = rows.assign(frame_idx=numbers[:, 0], face_idx=numbers[:, 1])
            rows[PLACE_COLUMNS] = numbers[:, 2:]
            rows[FOLD_COLUMNS + PLACE_COLUMNS].to_csv(file, index=False, header=False)
    used = table[counts > 0]
    return f"{counts.sum()} crops; {describe_folds(used, used.fold.to_numpy())}"
