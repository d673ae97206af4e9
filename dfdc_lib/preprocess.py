"""Videos to boxes, crops, masks and folds: one task an original and its fakes, resumable, nothing lost in silence.

The original is the key: faces are looked for in it alone, and its boxes serve its fakes too (as upstream does), so
that the crops of a pair show the same pixels and can be compared.
"""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from dfdc_lib.config import PreprocessConfig
from dfdc_lib.faces import FaceDetector, link_faces
from dfdc_lib.geometry import add_margin, crop_box, detector_scale
from dfdc_lib.metadata import assign_folds, read_metadata
from dfdc_lib.paths import WorkFolder, appear_whole, face_file, parse_face_file, read_png, write_json, write_png
from dfdc_lib.ssim import ssim_difference
from dfdc_lib.video import VideoError, iterate_frames, probe

FOLD_COLUMNS = ["video_id", "file", "label", "original_id", "frame_idx", "face_idx", "part", "fold"]


def preprocess(
    data: Path,
    work: WorkFolder,
    config: PreprocessConfig = PreprocessConfig(),
    workers: int = 1,
    originals: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """Run all stages on a data set; return the status table: one row a video and stage (also `status.csv`).

    What is complete and was made with the same settings is kept, so an interrupted run goes on where it stopped.
    originals: take only so many, evenly over the parts; 0 takes all. progress(done, total) is called after each.
    """
    table = read_metadata(data)
    chosen = choose_originals(table, originals)
    groups = [(Path(data), work, config, rows.to_dict("records")) for _, rows in chosen.groupby("original_id")]
    if workers <= 1:
        for done, group in enumerate(groups, 1):
            preprocess_original(*group)
            progress(done, len(groups))
    else:
        _run_in_processes(groups, workers, progress)
    name = "sample" if (Path(data) / "sample.json").exists() else Path(data).resolve().name
    write_json(work.source, {"trained_on": name, "margin": config.margin})
    status = collect_status(work, table)
    write_folds(work, table)
    with appear_whole(work.status) as temporary:
        status.to_csv(temporary, index=False)
    return status


def choose_originals(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """The rows of `count` originals and their fakes, taken in turn from each part; 0 keeps every row."""
    if count < 0:
        raise ValueError(f"a number of originals must not be negative, got {count}")
    if count == 0:
        return table
    first = table.drop_duplicates("original_id")
    turn = first.groupby("part").cumcount()
    chosen = first.assign(turn=turn).sort_values(["turn", "part"], kind="stable").original_id[:count]
    return table[table.original_id.isin(chosen)].reset_index(drop=True)


def _run_in_processes(groups: list[tuple], workers: int, progress: Callable[[int, int], None]) -> None:
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_use_one_thread) as pool:
        tasks = [pool.submit(preprocess_original, *group) for group in groups]
        for done, task in enumerate(as_completed(tasks), 1):
            task.result()
            progress(done, len(groups))


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@cache
def _detector(thresholds: tuple[float, float, float]) -> FaceDetector:
    return FaceDetector(thresholds)


def preprocess_original(data: Path, work: WorkFolder, config: PreprocessConfig, rows: list[dict]) -> None:
    """Bring one original and its fakes through detect, crop and masks. rows: their lines of the metadata table."""
    original_id = rows[0]["original_id"]
    original = next((row for row in rows if row["video_id"] == original_id), None)
    if original is None or not (data / original["file"]).exists():
        _record_family(work, rows, "missing_original", f"{original_id} is not in {data}")
        return
    settings = json.loads(json.dumps(asdict(config)))
    detect = partial(detect_faces, data / original["file"], work, original_id, config)
    if not _run_stage(work, original_id, "detect", settings | _fingerprint(data, original), detect):
        status = read_manifest(work, original_id)["detect"]["status"]
        _record_family(work, rows, status, f"face detection in the original, {original_id}, ended with {status}")
        return
    for row in sorted(rows, key=lambda row: row["label"]):
        video_id, made_from = row["video_id"], settings | _fingerprint(data, original, row)
        crop = partial(crop_faces, data / row["file"], work, video_id, original_id, config)
        cropped = _run_stage(work, video_id, "crop", made_from, crop)
        if cropped and row["label"]:
            _run_stage(work, video_id, "masks", made_from, partial(make_masks, work, video_id, original_id))


def _record_family(work: WorkFolder, rows: list[dict], status: str, reason: str) -> None:
    """Without boxes of the original nobody can be cropped: say so for each video, with no settings to be kept by."""
    for row in rows:
        _record(work, row["video_id"], "crop", {}, status, reason=reason)


def _fingerprint(data: Path, *rows: dict) -> dict:
    """Which files a stage read: size and time of change of each video that is there."""
    present = [data / row["file"] for row in rows if (data / row["file"]).exists()]
    return {"inputs": [[path.stat().st_size, path.stat().st_mtime_ns] for path in present]}


def _run_stage(work: WorkFolder, video_id: str, stage: str, settings: dict, run: Callable[[], int]) -> bool:
    """Run a stage unless it is complete and was made with the same settings and inputs; say whether it is ok.

    A failure becomes a status with its reason: one video never stops the others.
    """
    known = read_manifest(work, video_id).get(stage)
    if known and known["settings"] == settings and known["status"] in ("ok", "no_face"):
        return known["status"] == "ok"
    status, count, reason = "ok", 0, ""
    try:
        count = run()
        status = "ok" if count else "no_face"
    except VideoError as error:
        status, reason = error.status, str(error)
    except FileNotFoundError as error:
        status, reason = "missing_file", str(error)
    except (ValueError, RuntimeError, OSError, cv2.error) as error:
        status, reason = "error", f"{type(error).__name__}: {error}"
    _record(work, video_id, stage, settings, status, count, reason)
    return status == "ok"


def read_manifest(work: WorkFolder, video_id: str) -> dict:
    """Read what is known of a video: stage → status, count, reason, settings. Empty for a new one."""
    path = work.manifest(video_id)
    return json.loads(path.read_text()) if path.exists() else {}


def _record(
    work: WorkFolder, video_id: str, stage: str, settings: dict, status: str, count: int = 0, reason: str = ""
) -> None:
    entry = {"status": status, "count": count, "reason": reason, "settings": settings}
    write_json(work.manifest(video_id), read_manifest(work, video_id) | {stage: entry})


def detect_faces(path: Path, work: WorkFolder, original_id: str, config: PreprocessConfig) -> int:
    """Write boxes/<original_id>.json: the faces in every n-th frame, in pixels of the original. Returns their count."""
    info = probe(path)
    pairs = list(iterate_frames(path, range(0, info.n_frames, config.every)))
    if not pairs:
        raise VideoError("decode_error", path, "no frame could be decoded")
    found = _detector(config.thresholds).detect_resized([frame for _, frame in pairs])
    people = link_faces(found)
    frames = [
        {"frame_idx": frame_idx, "face_idx": who.tolist()}
        | {k: np.round(v, 4).tolist() for k, v in faces._asdict().items()}
        for (frame_idx, _), faces, who in zip(pairs, found, people, strict=True)
    ]
    scale = detector_scale(info.width, info.height)
    header = {"video_id": original_id, "scale": scale, "thresholds": config.thresholds, "every": config.every}
    write_json(work.boxes(original_id), header | {"frames": frames})
    return sum(len(faces.boxes) for faces in found)


def crop_faces(path: Path, work: WorkFolder, video_id: str, original_id: str, config: PreprocessConfig) -> int:
    """Write crops/<video_id>/: each face of the original's boxes with its margin, as PNG. Returns their count."""
    boxes = json.loads(work.boxes(original_id).read_text())
    wanted = {frame["frame_idx"]: frame for frame in boxes["frames"] if frame["boxes"]}
    count = 0
    with appear_whole(work.crops(video_id)) as folder:
        folder.mkdir()
        for frame_idx, frame in iterate_frames(path, wanted):
            height, width = frame.shape[:2]
            for face_idx, box in zip(wanted[frame_idx]["face_idx"], wanted[frame_idx]["boxes"], strict=True):
                crop = crop_box(frame, add_margin(box, config.margin, width, height))
                write_png(folder / face_file(frame_idx, face_idx), crop)
                count += 1
    if wanted and not count:
        raise VideoError("decode_error", path, "none of the wanted frames could be decoded")
    return count


def make_masks(work: WorkFolder, fake_id: str, original_id: str) -> int:
    """Write masks/<fake_id>/: the SSIM difference of each pair of crops. Returns their count."""
    count = 0
    with appear_whole(work.masks(fake_id)) as folder:
        folder.mkdir()
        for fake in sorted(work.crops(fake_id).glob("*.png")):
            write_png(
                folder / fake.name, ssim_difference(read_png(work.crops(original_id) / fake.name), read_png(fake))
            )
            count += 1
    return count


def collect_status(work: WorkFolder, table: pd.DataFrame) -> pd.DataFrame:
    """One row a video and stage, from the manifests: video_id, stage, status, count, reason."""
    rows = [
        {"video_id": video_id, "stage": stage} | {k: entry[k] for k in ("status", "count", "reason")}
        for video_id in table.video_id
        for stage, entry in read_manifest(work, video_id).items()
    ]
    return pd.DataFrame(rows, columns=["video_id", "stage", "status", "count", "reason"])


def write_folds(work: WorkFolder, table: pd.DataFrame) -> None:
    """Write folds.csv: one row a crop, in a fixed order, with the fold of its part."""
    table = table.assign(fold=assign_folds(table))
    rows = []
    for video in table.to_dict("records"):
        if read_manifest(work, video["video_id"]).get("crop", {}).get("status") != "ok":
            continue  # what lies there, if anything, is of an earlier run
        for crop in work.crops(video["video_id"]).glob("*.png"):
            frame_idx, face_idx = parse_face_file(crop.name)
            rows.append(video | {"frame_idx": frame_idx, "face_idx": face_idx})
    folds = pd.DataFrame(rows, columns=FOLD_COLUMNS).sort_values(["part", "video_id", "frame_idx", "face_idx"])
    with appear_whole(work.folds) as temporary:
        folds.to_csv(temporary, index=False)
