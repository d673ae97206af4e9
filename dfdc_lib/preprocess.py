"""Videos to boxes, crops, masks and folds: one task an original and its fakes, resumable, nothing lost in silence.

The original is the key: faces are looked for in it alone, and its boxes serve its fakes too (as upstream does), so
that the crops of a pair show the same pixels and can be compared.

Each stage of each video ends in a status. It says the worst that happened; what could be made is there all the same
(a video with one broken frame keeps its other crops), and `count` says how much that is.
"""

import errno
import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from dfdc_lib.config import STAGES, PreprocessConfig
from dfdc_lib.faces import DETECT_AT_ONCE, FaceLinker, shared_detector
from dfdc_lib.geometry import cut_face, detector_scale
from dfdc_lib.metadata import assign_folds, describe_folds, read_metadata
from dfdc_lib.paths import (
    DamagedFile,
    WorkFolder,
    appear_whole,
    describe_file,
    estimate_space,
    face_file,
    hidden_beside,
    hold,
    list_faces,
    read_png,
    sweep_leftovers,
    take_place,
    write_csv,
    write_json,
    write_png,
)
from dfdc_lib.ssim import ssim_difference
from dfdc_lib.tasks import TIME_LIMIT, TRIES, Lost, WorkerDied, check_time_limit, cores, run_tasks, watched
from dfdc_lib.video import VideoError, VideoInfo, iterate_frames, probe, run_ahead

FOLD_COLUMNS = ["video_id", "file", "label", "original_id", "frame_idx", "face_idx", "part", "fold"]
ENTRY = {"status": str, "count": int, "reason": str, "settings": dict, "inputs": list}  # a manifest's, of a stage
FAILURES = (ValueError, RuntimeError, OSError, cv2.error)  # of one video: they become its status


class Made(NamedTuple):
    """What a stage made of one video: how many faces, crops or masks, and the worst that happened on the way."""

    count: int
    status: str = "ok"
    reason: str = ""


class Summary(NamedTuple):
    """What `preprocess` did."""

    status: pd.DataFrame  # one row a video and stage: video_id, stage, status, count, reason (also status.csv)
    actions: pd.Series  # (stage, action) → videos; action: "kept", "made", "made again", "not ready", …
    folds: str  # how the folds were cut, in words; "" where that stage was not asked for


def preprocess(
    data: Path,
    work: WorkFolder,
    config: PreprocessConfig = PreprocessConfig(),
    workers: int = 0,
    originals: int = 0,
    stages: Sequence[str] = STAGES,
    progress: Callable[[int, int], None] = lambda done, total: None,
    scheduler: str = "",
    time_limit: float = TIME_LIMIT,
) -> Summary:
    """Bring a data set, or some originals of it, through the stages.

    What is complete and was made with the same settings from the same files is kept, so an interrupted run goes on
    where it stopped; what was made with others is made again. originals: take only so many, evenly over the parts; 0
    takes all. stages: some of `config.STAGES`. progress(done, total) is called at the start and after each original.

    workers: processes of this machine; scheduler: the address of a Dask scheduler, whose workers see the same folders
    under the same names. With either, a stage that takes its process with it twice is `crashed`, and one that takes
    longer than `time_limit` seconds a `timeout`; the others go on. With neither all is done here, unguarded.

    Raises ValueError where another run is writing to `work`, and OSError where the disk does not take what is made.
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise ValueError(f"stages must be some of {', '.join(STAGES)}, got {', '.join(unknown) or 'none'}")
    check_time_limit(time_limit)
    table = read_metadata(data)
    data, work = Path(data).absolute(), WorkFolder(Path(work.root).absolute())  # workers may stand elsewhere
    chosen = choose_originals(table, originals, data)
    with hold(work.root), _begin_run(work, guarded=bool(workers or scheduler)) as run_id:
        families = [
            Family(data, work, config, tuple(stages), rows.to_dict("records"), run_id, time_limit)
            for _, rows in chosen.groupby("original_id")
        ]
        done = _run(families, workers, scheduler, progress) if set(stages) - {"folds"} else {}
        status = collect_status(work, table, config)
        if {"crop", "folds"} & set(stages):
            _write_source(data, work, config, originals, stages)
        announced = write_folds(work, table, config) if "folds" in stages else ""
        write_csv(work.status, status)
    actions = pd.DataFrame([(stage, action) for (_, stage), action in done.items()], columns=["stage", "action"])
    actions.stage = pd.Categorical(actions.stage, STAGES)
    return Summary(status, actions.groupby(["stage", "action"], observed=True).size().rename("videos"), announced)


@contextmanager
def _begin_run(work: WorkFolder, guarded: bool) -> Iterator[str]:
    """Remove what killed runs left behind, and give this one a name, by which its workers know that it goes on."""
    for folder in ("", "manifest", "boxes", "crops", "masks"):
        sweep_leftovers(work.root / folder)
    shutil.rmtree(work.attempts, ignore_errors=True)
    run_id = uuid.uuid4().hex if guarded else ""
    try:
        if guarded:
            (work.attempts / run_id).mkdir(parents=True)
        yield run_id
    finally:
        shutil.rmtree(work.attempts, ignore_errors=True)


def _write_source(
    data: Path, work: WorkFolder, config: PreprocessConfig, originals: int, stages: Sequence[str]
) -> None:
    """Write source.json. A folds.csv that names crops of other settings goes first: it would be taken for theirs.

    Where the settings stay, so does what this run did not touch: the folds, and originals that an earlier run took.
    """
    settings, folds = config.of_stage("crop"), config.folds
    try:
        stored = work.read_source()
    except (FileNotFoundError, DamagedFile):
        stored = {}
    if stored.get("settings") != settings:
        work.folds.unlink(missing_ok=True)
    else:
        folds = folds if "folds" in stages else stored.get("folds", folds)
        known = stored.get("originals", 0)
        if set(stages) == {"folds"}:
            originals = known
        elif originals:
            originals = max(known, originals) if known else 0
    source = {"trained_on": _name(data), "margin": config.margin, "settings": settings}
    write_json(work.source, source | {"folds": folds, "originals": originals})


def warn_of_space(data: Path, work: WorkFolder, originals: int = 0) -> str:
    """A sentence where the disk will hardly hold the crops and masks that are still to be made; else ""."""
    data = Path(data)
    chosen = choose_originals(read_metadata(data), originals, data)
    made = {path.name for path in (work.root / "crops").glob("*")}
    new = [row.file for row in chosen.itertuples() if row.video_id not in made and os.path.exists(data / row.file)]
    standing = next(folder for folder in (work.root, *work.root.absolute().parents) if folder.exists())
    needed, free = estimate_space(len(new), work) / 1e9, shutil.disk_usage(standing).free / 1e9
    if needed < free:
        return ""
    return f"{len(new)} new videos will take about {needed:.3g} GB in {work.root}, and {free:.3g} GB are free"


def _name(data: Path) -> str:
    return "sample" if (Path(data) / "sample.json").exists() else Path(data).resolve().name


def choose_originals(table: pd.DataFrame, count: int, data: Path) -> pd.DataFrame:
    """The rows of `count` originals and their fakes, from all over the parts; 0 keeps every row.

    Originals that are on disk come first. The parts are taken in turn, in an order that is shuffled but always the
    same, so that a few originals do not all fall into the first fold.
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
    chosen = first.sort_values(["absent", "turn", "order"], kind="stable").original_id[:count]
    return table[table.original_id.isin(chosen)].reset_index(drop=True)


def _run(
    families: list["Family"], workers: int, scheduler: str, progress: Callable[[int, int], None]
) -> dict[tuple[str, str], str]:
    """Run every family; return what was done: (video_id, stage) → action."""
    actions: dict[tuple[str, str], str] = {}
    progress(0, len(families))
    lives = 1 + TRIES * len(STAGES) * max((len(family.rows) for family in families), default=0)
    for done, (_, made) in enumerate(run_tasks(Family.run, families, workers, scheduler, lives), 1):
        actions |= made
        progress(done, len(families))
    return actions


@dataclass
class Ahead:
    """What a pass over a video makes for the stage after its own; it takes its place when that stage comes."""

    folder: Path
    made: Made | None = None  # not before it is complete
    broken: bool = False

    def attempt(self, work: Callable, *args) -> None:
        """Do a part of it. Once a part fails nothing of it counts: the stage itself will try, and say what is wrong."""
        try:
            if not self.broken:
                work(*args)
        except FAILURES:
            self.broken = True

    def finish(self, made: Made) -> None:
        """It is complete, unless it is broken."""
        self.made = None if self.broken else made


class Superseded(WorkerDied):
    """Another worker has taken this family over, because this one seemed dead."""


@dataclass
class Family:
    """An original and its fakes on their way through detect, crop and masks: the unit of work."""

    data: Path
    work: WorkFolder
    config: PreprocessConfig
    stages: tuple[str, ...]
    rows: list[dict]  # their lines of the metadata table
    run_id: str = ""  # of the run whose workers do it; "": it is done in the process of the caller, unguarded
    time_limit: float = TIME_LIMIT  # seconds a stage, where it is guarded
    claim: str = ""  # the name of this try
    actions: dict[tuple[str, str], str] = field(default_factory=dict)
    forgotten: set[tuple[str, str]] = field(default_factory=set)  # complete ones that had to go
    ahead: dict[tuple[str, str], Ahead] = field(default_factory=dict)

    def run(self) -> dict[tuple[str, str], str]:
        """Run the stages; return what was done: (video_id, stage) → action, as in `Summary`."""
        try:
            self._claim()
            return self._run()
        finally:
            for left in self.ahead.values():
                shutil.rmtree(left.folder, ignore_errors=True)  # what stays is swept by the next run

    def _claim(self) -> None:
        """From now on, whoever else still works on this family is to stop."""
        if self.run_id:
            self._require_run()
            self.claim = uuid.uuid4().hex
            write_json(self._claim_file, self.claim)

    @property
    def _claim_file(self) -> Path:
        return self._attempts / f"{self.rows[0]['original_id']}.claim"

    @property
    def _attempts(self) -> Path:
        """A folder that is there as long as the run goes on; of a new name, which no disk has cached."""
        return self.work.attempts / self.run_id

    def _require_run(self) -> None:
        if not self._attempts.is_dir():
            raise Superseded("the run that asked for this is over")

    def require_claim(self) -> None:
        """Raise Superseded where another worker or run has taken over: a late one must not change anything."""
        if self.run_id:
            self._require_run()
            if _read_word(self._claim_file) != self.claim:
                raise Superseded("another worker has taken over")

    @contextmanager
    def appear(self, path: Path) -> Iterator[Path]:
        """As `appear_whole`, for as long as this worker is the one."""
        with appear_whole(path) as temporary:
            yield temporary
            self.require_claim()

    def _watch(self, video_id: str, stage: str) -> AbstractContextManager:
        if not self.run_id:
            return nullcontext()
        return watched(self._attempts / f"{video_id}.{stage}", self.run_id, self.time_limit)

    def begin_ahead(self, video_id: str, stage: str) -> Ahead | None:
        """A hidden folder for what the next stage would make; None where that was not asked for, or can't be."""
        if stage not in self.stages:
            return None
        try:
            folder = hidden_beside(self.work.artifact(stage, video_id))
            folder.mkdir()
        except OSError:  # the stage itself will say so
            return None
        self.ahead[video_id, stage] = Ahead(folder)
        return self.ahead[video_id, stage]

    def take_ahead(self, video_id: str, stage: str) -> Made | None:
        """Put what was made ahead in its place and say what it is; None where there is nothing."""
        ready = self.ahead.get((video_id, stage))
        if ready is None or ready.made is None:
            return None
        self.require_claim()
        take_place(ready.folder, self.work.artifact(stage, video_id))
        return ready.made

    def _run(self) -> dict[tuple[str, str], str]:
        original_id = self.rows[0]["original_id"]
        original = next((row for row in self.rows if row["video_id"] == original_id), None)
        if original is None:
            for row in self.rows:
                self._give_up(row, "missing_original", f"{original_id} is not listed")
            return self.actions
        found = self._stage("detect", original, [original], lambda path: detect_faces(path, original_id, self))
        if found.status == "not_ready":
            for row in self.rows:
                self._mark_not_ready(row, "crop", "masks")
            return self.actions
        fakes = [row for row in self.rows if row["label"]]
        if not found.count:
            lost = {"missing_file": "missing_original", "no_face": "no_face"}.get(found.status, "broken_original")
            for row in fakes:
                self._give_up(row, lost, f"face detection in the original, {original_id}, ended with {found.status}")
            return self.actions
        real_crops = self._crop(original, original)
        for row in fakes:
            crops = self._crop(row, original, compare=bool(real_crops.count))
            if "not_ready" in (real_crops.status, crops.status):
                self._mark_not_ready(row, "masks")
            elif crops.count and real_crops.count:
                self._compare(row, original)
            elif crops.count and "masks" in self.stages:
                lost = Made(
                    0, "missing_partner", f"cropping the original, {original_id}, ended with {real_crops.status}"
                )
                self.require_claim()
                _record(self.work, row["video_id"], "masks", lost)
        return self.actions

    def _crop(self, row: dict, original: dict, compare: bool = False) -> Made:
        def run(path: Path) -> Made:
            return crop_faces(path, row["video_id"], original["video_id"], self, compare)

        return self._stage("crop", row, [original, row], run)

    def _compare(self, row: dict, original: dict) -> Made:
        video_id, original_id = row["video_id"], original["video_id"]
        return self._stage("masks", row, [original, row], lambda path: make_masks(video_id, original_id, self))

    def _give_up(self, row: dict, status: str, reason: str) -> None:
        """Without boxes of its original a video can't be cropped: what was made earlier goes, and it is said why."""
        video_id, lost = row["video_id"], Made(0, status, reason)
        if "crop" in self.stages and read_manifest(self.work, video_id) != {"crop": _entry(lost)}:
            self.require_claim()
            self.work.folds.unlink(missing_ok=True)
            _forget(self.work, video_id, "crop")
            _record(self.work, video_id, "crop", lost)

    def _mark_not_ready(self, row: dict, *stages: str) -> None:
        for stage in stages:
            if stage in self.stages and (stage == "crop" or row["label"]):
                self.actions[row["video_id"], stage] = "not ready"

    def _stage(self, stage: str, row: dict, inputs: list[dict], run: Callable[[Path], Made]) -> Made:
        """Run a stage of a video, unless what stands is current or the stage was not asked for.

        A failure becomes a status with its reason: one video never stops the others. The old entry goes first: while
        a stage runs, and if it is killed, nothing claims that its artifacts are complete.
        """
        video_id, settings, files = row["video_id"], self.config.of_stage(stage), self._fingerprint(inputs)
        known = read_manifest(self.work, video_id).get(stage)
        if known and _is_current(self.work, video_id, stage, known, settings, files):
            if stage in self.stages:
                self.actions[video_id, stage] = "kept"
            return Made(known["count"], known["status"], known["reason"])
        if stage not in self.stages:
            return Made(0, "not_ready")
        stands = known.get("complete") if known else self.work.artifact(stage, video_id).exists()  # without a record
        if stands and stage != "masks" and not os.path.exists(self.data / row["file"]):
            self.actions[video_id, stage] = "stale (the video is gone)"  # what can't be made again is left alone
            return Made(0, "not_ready")
        self.require_claim()
        self.work.folds.unlink(missing_ok=True)  # before anything that it names may change
        self.forgotten |= {(video_id, name) for name in _forget(self.work, video_id, stage)}
        complete, made = True, Made(0)
        try:
            with self._watch(video_id, stage):
                made = run(self.data / row["file"])
            complete = made.status != "broken_crop"  # that one may be deleted, and will be made again
        except Lost as error:
            complete, made = False, Made(0, error.status, error.reason)
        except VideoError as error:
            complete, made = error.status != "unreadable", Made(0, error.status, str(error))
        except FileNotFoundError as error:  # it may come
            complete, made = False, Made(0, "missing_file", str(error))
        except MemoryError:
            complete, made = False, Made(0, "out_of_memory", "this machine's memory does not hold it")
        except FAILURES as error:
            _blame_disk(error, self.work)
            complete, made = False, Made(0, "error", f"{type(error).__name__}: {error}")
        self.require_claim()
        _record(self.work, video_id, stage, made, settings, files, complete)
        self.actions[video_id, stage] = "made again" if (video_id, stage) in self.forgotten else "made"
        return made

    def _fingerprint(self, rows: list[dict]) -> list:
        """Which files a stage reads: size and time of change of each, or None for one that is not there."""
        return [describe_file(self.data / row["file"]) for row in rows]


def _read_word(path: Path) -> str:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return ""


def _blame_disk(error: Exception, work: WorkFolder) -> None:
    """Raise OSError where a stage failed because nothing can be written: no video's fault, so the run ends."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    forbidden = isinstance(error, PermissionError) and Path(str(error.filename)).is_relative_to(work.root)
    if full or forbidden:
        mend = "what is done is kept; mend that and run the same command again"
        raise OSError(f"can't write to {work.root}: {error.strerror}; {mend}") from error


def _is_current(work: WorkFolder, video_id: str, stage: str, known: dict, settings: dict, files: list) -> bool:
    """Complete, of the same settings and files, and still on disk. A video deleted since then changes nothing."""
    if not known.get("complete") or known["settings"] != settings:
        return False
    if any(now not in (None, then) for now, then in zip(files, known["inputs"], strict=True)):
        return False
    if stage == "detect":
        try:
            return known["count"] == len(work.read_faces(video_id))
        except ValueError:  # damaged
            return False
    folder = work.artifact(stage, video_id)
    return known["count"] == (sum(name.endswith(".png") for name in os.listdir(folder)) if folder.is_dir() else 0)


def read_manifest(work: WorkFolder, video_id: str) -> dict:
    """Read what is known of a video: stage → status, count, reason, settings, inputs. Empty for a new one.

    A damaged manifest tells nothing, so its stages are made again.
    """
    try:
        return parse_manifest(work.manifest(video_id).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def parse_manifest(text: str) -> dict:
    """A manifest from its JSON: stage → entry. Raises ValueError where it is damaged."""
    try:
        stages = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(stages, dict) or not set(stages) <= set(STAGES[:-1]):
        raise ValueError("a manifest holds one object, stage to entry")
    for stage, entry in stages.items():
        wrong = not isinstance(entry, dict) or [n for n, kind in ENTRY.items() if not isinstance(entry.get(n), kind)]
        n_inputs = (1 if stage == "detect" else 2) * bool(not wrong and entry["settings"])
        if wrong or len(entry["inputs"]) != n_inputs:
            raise ValueError(f"the entry of {stage} lacks something")
    return stages


def _entry(made: Made, settings: dict | None = None, inputs: Sequence = (), complete: bool = False) -> dict:
    """What a manifest says of a stage."""
    return made._asdict() | {"complete": complete, "settings": settings or {}, "inputs": list(inputs)}


def _record(work: WorkFolder, video_id: str, stage: str, *about) -> None:
    write_json(work.manifest(video_id), read_manifest(work, video_id) | {stage: _entry(*about)})


def _forget(work: WorkFolder, video_id: str, stage: str) -> list[str]:
    """Remove a stage's entry and artifacts, and those of the stages that build on it; the entries first.

    Returns the names of those that were complete.
    """
    gone = STAGES[STAGES.index(stage) :]
    manifest = read_manifest(work, video_id)
    if set(gone) & set(manifest):
        write_json(work.manifest(video_id), {name: entry for name, entry in manifest.items() if name not in gone})
    if "detect" in gone:
        work.boxes(video_id).unlink(missing_ok=True)
    if "crop" in gone:
        shutil.rmtree(work.crops(video_id), ignore_errors=True)
    shutil.rmtree(work.masks(video_id), ignore_errors=True)
    return [name for name in gone if manifest.get(name, {}).get("complete")]


def _list_some(things: Sequence, count: int = 5) -> str:
    return ", ".join(map(str, things[:count])) + (", …" if len(things) > count else "")


def detect_faces(path: Path, original_id: str, family: Family) -> Made:
    """Write boxes/<original_id>.json: the faces in every n-th frame, in pixels of the original. Counts the faces.

    Where crops are asked for, they are cut on the way: the video is decoded once.
    """
    config, info = family.config, probe(path)
    wanted, linker, frames = range(0, info.n_frames, config.every), FaceLinker(), []
    ahead = family.begin_ahead(original_id, "crop")
    cutter = FaceCutter(ahead.folder, config.margin, (info.width, info.height)) if ahead else None
    for several in in_groups(read_frames(path, wanted, info), DETECT_AT_ONCE):
        found = shared_detector(config.thresholds, cores()).detect_resized([picture for _, picture in several])
        for (frame_idx, picture), faces in zip(several, found, strict=True):
            who = linker.link(faces.scaled(1 / len(picture)), frame_idx)  # in heights, as a video may change its size
            frames.append({"frame_idx": frame_idx, "face_idx": who.tolist()})
            frames[-1] |= {k: v.astype(float).round(4).tolist() for k, v in faces._asdict().items()}
            if (size := picture.shape[1::-1]) != (info.width, info.height):
                frames[-1]["size"] = list(size)
            if ahead:
                ahead.attempt(cutter.cut, picture, frames[-1])
    if not frames:
        raise VideoError("decode_error", path, "no frame could be decoded")
    header = {"video_id": original_id, "width": info.width, "height": info.height}
    header |= {"scale": detector_scale(info.width, info.height), "thresholds": config.thresholds}
    header |= {"every": config.every, "versions": _versions()}
    family.require_claim()
    write_json(family.work.boxes(original_id), header | {"frames": frames})
    if ahead:
        ahead.finish(cutter.judge(with_faces(frames), info.n_frames))
    count, lost = sum(len(frame["boxes"]) for frame in frames), sorted(set(wanted) - {f["frame_idx"] for f in frames})
    if lost:
        return Made(count, "decode_error", f"{len(lost)} of {len(wanted)} frames can't be decoded: {_list_some(lost)}")
    if info.n_missing:
        return Made(count, "short", f"the file ends {info.n_missing} frames before its header says")
    return Made(count) if count else Made(0, "no_face", f"no face in {len(frames)} frames")


@cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("facenet-pytorch", "torch", "opencv-python-headless")}


def read_frames(path: Path, wanted: Iterable[int], info: VideoInfo) -> Iterator[tuple[int, np.ndarray]]:
    """As `iterate_frames`; a process that has the cores for itself decodes while it works on earlier frames."""
    frames = iterate_frames(path, wanted, info)
    return frames if cores() == 1 else run_ahead(frames, 4)


def in_groups(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items that follow each other; the last may be shorter."""
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def with_faces(frames: list[dict]) -> dict[int, dict]:
    """frame_idx → entry, for the frames of a boxes file in which there is a face."""
    return {frame["frame_idx"]: frame for frame in frames if frame["boxes"]}


def crop_faces(path: Path, video_id: str, original_id: str, family: Family, compare: bool = False) -> Made:
    """Write crops/<video_id>/: each face of the original's boxes with its margin, as PNG. Counts the crops.

    compare: also make the masks of a fake on the way, so that it is decoded once.
    """
    if made := family.take_ahead(video_id, "crop"):
        return made
    work, info = family.work, probe(path)
    boxes = work.read_boxes(original_id)
    wanted = with_faces(boxes["frames"])
    ahead = family.begin_ahead(video_id, "masks") if compare else None
    comparer = CropComparer(ahead.folder, work.crops(original_id)) if ahead else None
    with family.appear(work.crops(video_id)) as folder:
        folder.mkdir()
        cutter = FaceCutter(folder, family.config.margin, (boxes["width"], boxes["height"]))
        for frame_idx, picture in read_frames(path, wanted, info):
            crops = cutter.cut(picture, wanted[frame_idx])
            for name in crops if ahead else ():
                ahead.attempt(comparer.compare, name, crops[name])
    if ahead:
        ahead.finish(comparer.judge())
    return cutter.judge(wanted, info.n_frames)


@dataclass
class FaceCutter:
    """Cuts the faces out of a video's frames and writes them into a folder."""

    folder: Path
    margin: float | str
    size: tuple[int, int]  # width and height of the original, where a frame of it does not tell its own
    count: int = 0
    unlike: list[str] = field(default_factory=list)  # frames that are not as large as the original's
    empty: list[str] = field(default_factory=list)  # boxes that leave nothing inside the frame
    seen: set[int] = field(default_factory=set)

    def cut(self, picture: np.ndarray, frame: dict) -> dict[str, np.ndarray]:
        """Write the crops of one frame, an entry of a boxes file; return them by name."""
        self.seen.add(frame["frame_idx"])
        crops, (height, width), (original_width, original_height) = {}, picture.shape[:2], frame.get("size", self.size)
        if (width, height) != (original_width, original_height):
            self.unlike.append(f"{width} x {height}, its original {original_width} x {original_height}")
            return crops
        for face_idx, box in zip(frame["face_idx"], frame["boxes"], strict=True):
            name = face_file(frame["frame_idx"], face_idx)
            try:
                crops[name] = cut_face(picture, box, self.margin)
            except ValueError:
                self.empty.append(name)
                continue
            write_png(self.folder / name, crops[name])
        self.count += len(crops)
        return crops

    def judge(self, wanted: dict[int, dict], n_frames: int) -> Made:
        """How it went. wanted: the frames that should have been seen; n_frames: what the video holds."""
        lost = sorted(set(wanted) - self.seen)
        if broken := [frame_idx for frame_idx in lost if frame_idx < n_frames]:
            reason = f"{len(broken)} of {len(wanted)} frames can't be decoded: {_list_some(broken)}"
            return Made(self.count, "decode_error", reason)
        if self.unlike:
            several = f"{len(self.unlike)} of {len(wanted)} frames are {self.unlike[0]}"
            return Made(self.count, "shape_mismatch", f"{several}: the original's boxes do not fit")
        if lost:
            return Made(self.count, "short", f"{n_frames} frames; its original's boxes go on to frame {lost[-1]}")
        if self.empty:
            reason = f"{len(self.empty)} boxes leave nothing inside the frame: {_list_some(self.empty)}"
            return Made(self.count, "empty_crop", reason)
        return Made(self.count)


def make_masks(fake_id: str, original_id: str, family: Family) -> Made:
    """Write masks/<fake_id>/: the SSIM difference of each pair of crops. Counts the masks."""
    if made := family.take_ahead(fake_id, "masks"):
        return made
    work = family.work
    with family.appear(work.masks(fake_id)) as folder:
        folder.mkdir()
        comparer = CropComparer(folder, work.crops(original_id))
        for name in work.crop_names(fake_id):
            try:
                comparer.compare(name, read_png(work.crops(fake_id) / name))
            except DamagedFile:  # this crop, or its partner; the others are compared all the same
                comparer.broken.append(name)
    return comparer.judge()


@dataclass
class CropComparer:
    """Compares a fake's crops with those of its original and writes the masks into a folder."""

    folder: Path
    real: Path  # the folder of the original's crops
    count: int = 0
    alone: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def compare(self, name: str, fake: np.ndarray) -> None:
        """Write the mask of one crop (H, W, 3) uint8 RGB."""
        if not (self.real / name).exists():
            self.alone.append(name)
            return
        real = read_png(self.real / name)
        if real.shape != fake.shape or min(real.shape[:2]) < 7:
            self.unlike.append(name)
            return
        write_png(self.folder / name, ssim_difference(real, fake))
        self.count += 1

    def judge(self) -> Made:
        """How it went."""
        if self.broken:
            reason = f"{len(self.broken)} crops or their partners can't be read: {_list_some(self.broken)}"
            mend = "delete them and run `dfdc preprocess` again"
            return Made(self.count, "broken_crop", f"{reason}; {mend}")
        if self.alone:
            reason = f"{len(self.alone)} crops without a real partner: {_list_some(self.alone)}"
            return Made(self.count, "missing_partner", reason)
        if self.unlike:
            reason = f"{len(self.unlike)} pairs too small or unlike in size: {_list_some(self.unlike)}"
            return Made(self.count, "shape_mismatch", reason)
        return Made(self.count)


def collect_status(work: WorkFolder, table: pd.DataFrame, config: PreprocessConfig) -> pd.DataFrame:
    """One row a video and stage, from the manifests: video_id, stage, status, count, reason.

    What was made with other settings than `config`'s is `stale`: it stands, and folds.csv does not name it.
    """
    rows, settings = [], {stage: config.of_stage(stage) for stage in STAGES if stage != "folds"}
    for video_id in table.video_id:
        for stage, entry in read_manifest(work, video_id).items():
            told = {name: entry[name] for name in ("status", "count", "reason")}
            if entry["settings"] not in ({}, settings[stage]):
                told |= {"status": "stale", "reason": f"made with other settings ({entry['status']})"}
            rows.append({"video_id": video_id, "stage": stage} | told)
    return pd.DataFrame(rows, columns=["video_id", "stage", "status", "count", "reason"])


def write_folds(work: WorkFolder, table: pd.DataFrame, config: PreprocessConfig) -> str:
    """Write folds.csv: one row a crop, in a fixed order, with its fold. Returns in words how the folds were cut.

    Raises ValueError where an original and its fakes would be split: nothing may be measured with such folds.
    """
    table = table.assign(fold=assign_folds(table, config.folds))
    if (table.groupby("original_id").fold.nunique() > 1).any():
        raise ValueError("a leak: an original and its fakes are in different folds")
    table = table.sort_values(["part", "video_id"], ignore_index=True)
    settings, faces = config.of_stage("crop"), []  # faces: of each video, (frame_idx, face_idx) of its crops
    for video_id in table.video_id:
        entry = read_manifest(work, video_id).get("crop", {"count": 0, "settings": None})
        current = entry["count"] and entry["settings"] == settings  # else what lies there is of an earlier run
        faces.append(np.array(list_faces(work.crops(video_id)) if current else [], int).reshape(-1, 2))
    counts = np.array([len(some) for some in faces], int)
    with appear_whole(work.folds) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        pd.DataFrame(columns=FOLD_COLUMNS).to_csv(file, index=False)
        for start in range(0, len(table), 10_000):  # all at once would be gigabytes
            some = slice(start, start + 10_000)
            places = np.concatenate(faces[some])
            rows = table.iloc[np.repeat(table.index[some], counts[some])]
            rows = rows.assign(frame_idx=places[:, 0], face_idx=places[:, 1])
            rows[FOLD_COLUMNS].to_csv(file, index=False, header=False)
    used = table[counts > 0]
    return f"{counts.sum()} crops; " + describe_folds(used, used.fold.to_numpy())
