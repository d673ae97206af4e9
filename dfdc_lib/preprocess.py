"""Videos to boxes, crops, masks and folds: one task an original and its fakes, resumable, nothing lost in silence.

The original is the key: faces are looked for in it alone, and its boxes serve its fakes too (as upstream does), so
that the crops of a pair show the same pixels and can be compared.

Each stage of each video ends in a status. It says the worst that happened; what could be made is there all the same
(a video with one broken frame keeps its other crops), and `count` says how much that is.
"""

import importlib.metadata
import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from dfdc_lib.config import STAGES, PreprocessConfig
from dfdc_lib.faces import FaceDetector, link_faces
from dfdc_lib.geometry import add_margin, crop_box, detector_scale
from dfdc_lib.metadata import assign_folds, describe_folds, read_metadata
from dfdc_lib.paths import (
    WorkFolder,
    appear_whole,
    face_file,
    parse_face_file,
    read_png,
    sweep_leftovers,
    write_json,
    write_png,
)
from dfdc_lib.ssim import ssim_difference
from dfdc_lib.video import VideoError, iterate_frames, probe

FOLD_COLUMNS = ["video_id", "file", "label", "original_id", "frame_idx", "face_idx", "part", "fold"]


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
    workers: int = 1,
    originals: int = 0,
    stages: Sequence[str] = STAGES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Bring a data set, or some originals of it, through the stages.

    What is complete and was made with the same settings from the same files is kept, so an interrupted run goes on
    where it stopped; what was made with others is made again. originals: take only so many, evenly over the parts; 0
    takes all. workers: processes, 0 for one a core. stages: some of `config.STAGES`. progress(done, total) is called
    after each original.
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise ValueError(f"stages must be some of {', '.join(STAGES)}, got {', '.join(unknown) or 'none'}")
    table = read_metadata(data)
    chosen = choose_originals(table, originals, Path(data))
    for folder in ("", "manifest", "boxes", "crops", "masks"):
        sweep_leftovers(work.root / folder)
    families = [
        Family(Path(data), work, config, tuple(stages), rows.to_dict("records"))
        for _, rows in chosen.groupby("original_id")
    ]
    done = _run(families, workers or os.cpu_count() or 1, progress) if set(stages) - {"folds"} else {}
    actions = pd.DataFrame([(*key, action) for key, action in done.items()], columns=["video_id", "stage", "action"])
    status = collect_status(work, table, config)
    if {"crop", "folds"} & set(stages):
        source = {"trained_on": _name(data), "margin": config.margin, "settings": config.of_stage("crop")}
        write_json(work.source, source)
    announced = write_folds(work, table, config) if "folds" in stages else ""
    with appear_whole(work.status) as temporary:
        status.to_csv(temporary, index=False)
    return Summary(status, actions.groupby(["stage", "action"], sort=False).size().rename("videos"), announced)


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
    present = [row.label == 0 and (data / row.file).exists() for row in first.itertuples()]
    parts = sorted(first.part.unique())
    order = dict(zip(parts, np.random.default_rng(0).permutation(len(parts)), strict=True))
    first = first.assign(absent=~np.array(present), order=first.part.map(order))
    first = first.assign(turn=first.groupby(["absent", "part"]).cumcount())
    chosen = first.sort_values(["absent", "turn", "order"], kind="stable").original_id[:count]
    return table[table.original_id.isin(chosen)].reset_index(drop=True)


def _run(families: list["Family"], workers: int, progress: Callable[[int, int], None]) -> dict[tuple[str, str], str]:
    """Run every family, here or in processes; return what was done: (video_id, stage) → action."""
    actions: dict[tuple[str, str], str] = {}
    if workers <= 1:
        for done, family in enumerate(families, 1):
            actions |= family.run()
            progress(done, len(families))
        return actions
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
        tasks = [pool.submit(family.run) for family in families]
        try:
            for done, task in enumerate(as_completed(tasks), 1):
                actions |= task.result()
                progress(done, len(families))
        except BrokenProcessPool as error:
            lost = "a worker process died, most often for want of memory: run again, what is done is kept"
            raise OSError(lost) from error
        except BaseException:  # Ctrl-C above all: do not go on with what is waiting
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return actions


def _start_worker() -> None:
    """One thread, since the pool has a process for each core; and no life after the parent's."""
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)

    def follow_parent() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


@cache
def _detector(thresholds: tuple[float, float, float]) -> FaceDetector:
    return FaceDetector(thresholds)


@dataclass
class Family:
    """An original and its fakes on their way through detect, crop and masks: the unit of work."""

    data: Path
    work: WorkFolder
    config: PreprocessConfig
    stages: tuple[str, ...]
    rows: list[dict]  # their lines of the metadata table
    actions: dict[tuple[str, str], str] = field(default_factory=dict)
    forgotten: set[tuple[str, str]] = field(default_factory=set)  # complete ones that had to go

    def run(self) -> dict[tuple[str, str], str]:
        """Run the stages; return what was done: (video_id, stage) → action, as in `Summary`."""
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
            lost = "missing_original" if found.status == "missing_file" else found.status
            for row in fakes:
                self._give_up(row, lost, f"face detection in the original, {original_id}, ended with {found.status}")
            return self.actions
        real_crops = self._crop(original, original)
        for row in fakes:
            crops = self._crop(row, original)
            if "not_ready" in (real_crops.status, crops.status):
                self._mark_not_ready(row, "masks")
            elif crops.count and real_crops.count:
                self._compare(row, original)
            elif crops.count and "masks" in self.stages:
                lost = Made(
                    0, "missing_partner", f"cropping the original, {original_id}, ended with {real_crops.status}"
                )
                _record(self.work, row["video_id"], "masks", lost)
        return self.actions

    def _crop(self, row: dict, original: dict) -> Made:
        video_id, original_id = row["video_id"], original["video_id"]
        return self._stage("crop", row, [original, row], lambda path: crop_faces(path, video_id, original_id, self))

    def _compare(self, row: dict, original: dict) -> Made:
        video_id, original_id = row["video_id"], original["video_id"]
        return self._stage("masks", row, [original, row], lambda path: make_masks(video_id, original_id, self))

    def _give_up(self, row: dict, status: str, reason: str) -> None:
        """Without boxes of its original a video can't be cropped: what was made earlier goes, and it is said why."""
        if "crop" in self.stages:
            self.work.folds.unlink(missing_ok=True)
            _forget(self.work, row["video_id"], "crop")
            _record(self.work, row["video_id"], "crop", Made(0, status, reason))

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
        if known and known.get("complete") and stage != "masks" and not (self.data / row["file"]).exists():
            self.actions[video_id, stage] = "stale, and the video is gone"  # what can't be made again is left alone
            return Made(0, "not_ready")
        self.work.folds.unlink(missing_ok=True)  # before anything that it names may change
        self.forgotten |= {(video_id, name) for name in _forget(self.work, video_id, stage)}
        complete, made = True, Made(0)
        try:
            made = run(self.data / row["file"])
        except VideoError as error:
            complete, made = error.status != "unreadable", Made(0, error.status, str(error))
        except FileNotFoundError as error:  # it may come
            complete, made = False, Made(0, "missing_file", str(error))
        except (ValueError, RuntimeError, OSError, cv2.error) as error:
            complete, made = False, Made(0, "error", f"{type(error).__name__}: {error}")
        _record(self.work, video_id, stage, made, settings, files, complete)
        self.actions[video_id, stage] = "made again" if (video_id, stage) in self.forgotten else "made"
        return made

    def _fingerprint(self, rows: list[dict]) -> list:
        """Which files a stage reads: size and time of change of each, or None for one that is not there."""
        paths = [self.data / row["file"] for row in rows]
        return [[p.stat().st_size, p.stat().st_mtime_ns] if p.exists() else None for p in paths]


def _is_current(work: WorkFolder, video_id: str, stage: str, known: dict, settings: dict, files: list) -> bool:
    """Complete, of the same settings and files, and still on disk. A video deleted since then changes nothing."""
    if not known.get("complete") or known["settings"] != settings:
        return False
    if any(now not in (None, then) for now, then in zip(files, known["inputs"], strict=True)):
        return False
    if stage == "detect":
        try:
            return known["count"] == len(work.read_faces(video_id))
        except (ValueError, KeyError, TypeError):  # damaged
            return False
    folder = work.crops(video_id) if stage == "crop" else work.masks(video_id)
    return known["count"] == (sum(1 for _ in folder.glob("*.png")) if folder.is_dir() else 0)


def read_manifest(work: WorkFolder, video_id: str) -> dict:
    """Read what is known of a video: stage → status, count, reason, settings, inputs. Empty for a new one.

    A damaged manifest tells nothing, so its stages are made again.
    """
    path = work.manifest(video_id)
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        return {}


def _record(
    work: WorkFolder, video_id: str, stage: str, made: Made,
    settings: dict | None = None, inputs: Sequence = (), complete: bool = False,
) -> None:  # fmt: skip
    entry = made._asdict() | {"complete": complete, "settings": settings or {}, "inputs": list(inputs)}
    write_json(work.manifest(video_id), read_manifest(work, video_id) | {stage: entry})


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
    """Write boxes/<original_id>.json: the faces in every n-th frame, in pixels of the original. Counts the faces."""
    config, info = family.config, probe(path)
    wanted = range(0, info.n_frames, config.every)
    numbers, found = [], []
    for frame_idx, frame in iterate_frames(path, wanted):
        numbers.append(frame_idx)
        found += _detector(config.thresholds).detect_resized([frame])
    if not numbers:
        raise VideoError("decode_error", path, "no frame could be decoded")
    frames = [
        {"frame_idx": frame_idx, "face_idx": who.tolist()}
        | {k: v.astype(float).round(4).tolist() for k, v in faces._asdict().items()}
        for frame_idx, faces, who in zip(numbers, found, link_faces(found, numbers), strict=True)
    ]
    header = {"video_id": original_id, "width": info.width, "height": info.height}
    header |= {"scale": detector_scale(info.width, info.height), "thresholds": config.thresholds}
    header |= {"every": config.every, "versions": _versions()}
    write_json(family.work.boxes(original_id), header | {"frames": frames})
    count, lost = sum(len(faces.boxes) for faces in found), sorted(set(wanted) - set(numbers))
    if lost:
        return Made(count, "decode_error", f"{len(lost)} of {len(wanted)} frames can't be decoded: {_list_some(lost)}")
    if info.n_missing:
        return Made(count, "short", f"the file ends {info.n_missing} frames before its header says")
    return Made(count) if count else Made(0, "no_face", f"no face in {len(numbers)} frames")


@cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("facenet-pytorch", "torch", "opencv-python-headless")}


def crop_faces(path: Path, video_id: str, original_id: str, family: Family) -> Made:
    """Write crops/<video_id>/: each face of the original's boxes with its margin, as PNG. Counts the crops."""
    boxes = json.loads(family.work.boxes(original_id).read_text())
    wanted = {frame["frame_idx"]: frame for frame in boxes["frames"] if frame["boxes"]}
    info = probe(path)
    width, height = boxes["width"], boxes["height"]
    if (info.width, info.height) != (width, height):
        size = f"{info.width} x {info.height}, its original {width} x {height}"
        return Made(0, "shape_mismatch", f"{path} is {size}: the original's boxes do not fit")
    count, empty, lost = 0, [], set(wanted)
    with appear_whole(family.work.crops(video_id)) as folder:
        folder.mkdir()
        for frame_idx, frame in iterate_frames(path, wanted):
            lost.discard(frame_idx)
            for face_idx, box in zip(wanted[frame_idx]["face_idx"], wanted[frame_idx]["boxes"], strict=True):
                try:
                    grown = add_margin(box, family.config.margin, width, height)
                except ValueError:
                    empty.append(face_file(frame_idx, face_idx))
                    continue
                write_png(folder / face_file(frame_idx, face_idx), crop_box(frame, grown))
                count += 1
    return _judge_crops(count, sorted(lost), empty, len(wanted), info.n_frames)


def _judge_crops(count: int, lost: list[int], empty: list[str], n_wanted: int, n_frames: int) -> Made:
    broken = [frame_idx for frame_idx in lost if frame_idx < n_frames]
    if broken:
        return Made(count, "decode_error", f"{len(broken)} of {n_wanted} frames can't be decoded: {_list_some(broken)}")
    if lost:
        return Made(count, "short", f"{n_frames} frames; its original's boxes go on to frame {lost[-1]}")
    if empty:
        return Made(count, "empty_crop", f"{len(empty)} boxes leave nothing inside the frame: {_list_some(empty)}")
    return Made(count)


def make_masks(fake_id: str, original_id: str, family: Family) -> Made:
    """Write masks/<fake_id>/: the SSIM difference of each pair of crops. Counts the masks."""
    work, count, alone, unlike = family.work, 0, [], []
    with appear_whole(work.masks(fake_id)) as folder:
        folder.mkdir()
        for name in work.crop_names(fake_id):
            if not (work.crops(original_id) / name).exists():
                alone.append(name)
                continue
            real, fake = (read_png(work.crops(video_id) / name) for video_id in (original_id, fake_id))
            if real.shape != fake.shape or min(real.shape[:2]) < 7:
                unlike.append(name)
                continue
            write_png(folder / name, ssim_difference(real, fake))
            count += 1
    if alone:
        return Made(count, "missing_partner", f"{len(alone)} crops without a real partner: {_list_some(alone)}")
    if unlike:
        return Made(count, "shape_mismatch", f"{len(unlike)} pairs too small or unlike in size: {_list_some(unlike)}")
    return Made(count)


def collect_status(work: WorkFolder, table: pd.DataFrame, config: PreprocessConfig) -> pd.DataFrame:
    """One row a video and stage, from the manifests: video_id, stage, status, count, reason.

    What was made with other settings than `config`'s is `stale`: it stands, and folds.csv does not name it.
    """
    rows = []
    for video_id in table.video_id:
        for stage, entry in read_manifest(work, video_id).items():
            told = {name: entry[name] for name in ("status", "count", "reason")}
            if entry["settings"] not in ({}, config.of_stage(stage)):
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
    rows, settings = [], config.of_stage("crop")
    for video in table.to_dict("records"):
        entry = read_manifest(work, video["video_id"]).get("crop", {"count": 0, "settings": None})
        if not entry["count"] or entry["settings"] != settings:
            continue  # what lies there, if anything, is of an earlier run
        for name in work.crop_names(video["video_id"]):
            frame_idx, face_idx = parse_face_file(name)
            rows.append(video | {"frame_idx": frame_idx, "face_idx": face_idx})
    folds = pd.DataFrame(rows, columns=FOLD_COLUMNS).sort_values(["part", "video_id", "frame_idx", "face_idx"])
    with appear_whole(work.folds) as temporary:
        folds.to_csv(temporary, index=False)
    used = table[table.video_id.isin(folds.video_id)]
    return f"{len(folds)} crops; " + describe_folds(used, used.fold.to_numpy())
