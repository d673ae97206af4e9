"""Turn one video into boxes, crops and masks.

As upstream does, find faces only in originals: their boxes cut the same pixels out of the fakes.
"""

import errno
import os
import shutil
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dfdc_lib.config import Margin, PreprocessConfig
from dfdc_lib.faces import DETECT_AT_ONCE, FaceDetector, FaceLinker, shared_detector
from dfdc_lib.geometry import add_margin, crop_box, detector_scale
from dfdc_lib.jobs import count_cores
from dfdc_lib.ssim import ssim_difference
from dfdc_lib.store import DamagedFile, WorkFolder, face_file, read_png, write_json, write_png
from dfdc_lib.video import VideoError, in_groups, probe, read_frames

PROBLEMS = {  # stage → status → what is wrong, the worst first
    "detect": {
        "decode_error": "of {} frames can't be decoded",
        "short": "frames that the header promises are missing",
        "no_face": "frames show no face",
    },
    "crop": {
        "decode_error": "of {} frames can't be decoded",
        "shape_mismatch": "of {} frames are not as large as the original's",
        "short": "of {} frames lie beyond the end",
        "empty_crop": "boxes leave nothing inside the frame",
    },
    "masks": {
        "broken_crop": "crops or their partners can't be read",
        "missing_partner": "crops have no real partner",
        "shape_mismatch": "pairs are too small or differ in size",
    },
}
Problems = defaultdict[str, list]  # status → the frames or files where it occurred


class Outcome(NamedTuple):
    """What a stage made from a video: how many faces, crops or masks, and the worst problem."""

    stage: str
    status: str
    count: int = 0  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    reason: str = ""


def detect_faces(
    frames: Iterable[tuple[int, np.ndarray]], detector: FaceDetector, margin: Margin
) -> Iterator[tuple[np.ndarray, dict]]:
    """Find faces in frames (frame_idx, picture): yield each picture and its entry in a boxes file.

    The entry holds frame_idx, size (width, height) and, per face, face_idx (who it is), the boxes,
    scores and landmarks of `Faces`, and places (see `place_crop`).
    """
    linker = FaceLinker()
    for several in in_groups(frames, DETECT_AT_ONCE):
        found = detector.detect_resized([picture for _, picture in several])
        for (frame_idx, picture), faces in zip(several, found, strict=True):
            height, width = picture.shape[:2]
            who = linker.link(faces.scaled(1 / height), frame_idx)  # in heights: sizes may change
            plain = {k: v.astype(float).round(4).tolist() for k, v in faces._asdict().items()}
            places = [place_crop(box, margin, width, height) for box in plain["boxes"]]
            entry = {"frame_idx": frame_idx, "size": [width, height], "face_idx": who.tolist()}
            yield picture, entry | plain | {"places": places}


def place_crop(box, margin: Margin, width: int, height: int) -> list[int] | None:
    """Place the crop of a box as `add_margin` does; None if none of it is in the frame."""
    try:
        return list(add_margin(box, margin, width, height))
    except ValueError:
        return None


def cut_faces(picture: np.ndarray, frame: dict, folder: Path, problems: Problems) -> None:
    """Write the crops of `frame`, an entry of a boxes file; record what can't be cut."""
    size, expected = picture.shape[1::-1], tuple(frame["size"])
    if size != expected:
        told = "{} ({} x {}, its original {} x {})".format(frame["frame_idx"], *size, *expected)
        problems["shape_mismatch"].append(told)
        return
    for face_idx, place in zip(frame["face_idx"], frame["places"], strict=True):
        name = face_file(frame["frame_idx"], face_idx)
        if place is None:
            problems["empty_crop"].append(name)
        else:
            write_png(folder / name, crop_box(picture, place))


def describe(stage: str, count: int, problems: Mapping[str, Sequence], n: int = 0) -> Outcome:
    """Report the worst problem. n: how many frames were wanted."""
    for status, words in PROBLEMS[stage].items():
        if places := problems.get(status):
            some = ", ".join(map(str, places[:5])) + ", …" * (len(places) > 5)
            return Outcome(stage, status, count, f"{len(places)} {words.format(n)}: {some}")
    return Outcome(stage, "ok", count)


def process_original(
    path: Path, folder: Path, original_id: str, config: PreprocessConfig, stages: Sequence[str]
) -> list[Outcome]:
    """Decode an original once; write its boxes and, if asked for, its crops."""
    info, crops = probe(path), folder / "crop"
    crops.mkdir()
    wanted = range(0, info.n_frames, config.every)
    frames, uncut = [], Problems(list)
    detector = shared_detector(config.thresholds, count_cores())
    for picture, frame in detect_faces(read_frames(path, wanted, info), detector, config.margin):
        frames.append(frame)
        if "crop" in stages:
            cut_faces(picture, frame, crops, uncut)
    if not frames:
        raise VideoError("decode_error", path, "no frame could be decoded")
    stored = {"video_id": original_id, "width": info.width, "height": info.height}
    stored |= {"scale": detector_scale(info.width, info.height), "frames": frames}
    write_json(folder / "detect", stored)
    seen, count = [f["frame_idx"] for f in frames], sum(len(f["boxes"]) for f in frames)
    problems = {"decode_error": sorted(set(wanted) - set(seen)), "no_face": [] if count else seen}
    missing = range(info.n_frames, info.n_frames + info.n_missing)  # by a header: maybe billions
    outcomes = [describe("detect", count, problems | {"short": missing}, len(wanted))]
    if "crop" in stages and count:
        outcomes.append(describe("crop", len(os.listdir(crops)), uncut))
    return outcomes


def crop_by_boxes(path: Path, frames: Iterable[dict], folder: Path) -> Outcome:
    """Decode a video once; cut it by `frames` of its original's boxes file into a new folder."""
    folder.mkdir()
    info, problems = probe(path), Problems(list)
    wanted = {frame["frame_idx"]: frame for frame in frames if frame["boxes"]}
    seen = set()
    for frame_idx, picture in read_frames(path, wanted, info):
        seen.add(frame_idx)
        cut_faces(picture, wanted[frame_idx], folder, problems)
    absent = sorted(set(wanted) - seen)
    problems["decode_error"] = [i for i in absent if i < info.n_frames]
    problems["short"] = [i for i in absent if i >= info.n_frames]
    return describe("crop", len(os.listdir(folder)), problems, len(wanted))


def compare_crops(fake: Path, real: Path, folder: Path) -> Outcome:
    """Compare each crop in `fake` with its partner in `real`; write masks to a new folder."""
    folder.mkdir()
    problems = Problems(list)
    for name in sorted(path.name for path in fake.glob("*.png")):
        try:
            mask = ssim_difference(read_png(real / name), read_png(fake / name))
        except FileNotFoundError:
            problems["missing_partner"].append(name)
        except DamagedFile:
            problems["broken_crop"].append(name)
        except ValueError:
            problems["shape_mismatch"].append(name)
        else:
            write_png(folder / name, mask)
    return describe("masks", len(os.listdir(folder)), problems)


def process_video(
    path: Path,
    work: WorkFolder,
    config: PreprocessConfig,
    video_id: str,
    original_id: str,
    stages: Sequence[str],  # of an original: detect and crop; of a fake: crop and masks
) -> list[Outcome]:
    """Take one video through some stages: a worker's job. A failure becomes a status.

    Raises OSError if nothing can be written: no video is to blame, so the run ends.
    """
    folder = work.unfinished / f"{video_id}.{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True)
        crops, outcomes = work.crops(video_id), []
        if "detect" in stages:
            outcomes = process_original(path, folder, video_id, config, stages)
        elif "crop" in stages:
            crops, frames = folder / "crop", work.read_boxes(original_id)["frames"]
            outcomes = [crop_by_boxes(path, frames, crops)]
        if "masks" in stages and all(outcome.count for outcome in outcomes):
            outcomes.append(compare_crops(crops, work.crops(original_id), folder / "masks"))
        _take_place(folder, work, video_id)
        return outcomes
    except VideoError as error:
        return [Outcome(stages[0], error.status, 0, error.reason)]
    except FileNotFoundError as error:
        return [Outcome(stages[0], "missing_file", 0, str(error))]
    except MemoryError:
        return [Outcome(stages[0], "out_of_memory", 0, "it doesn't fit into this machine's memory")]
    except (ValueError, RuntimeError, OSError, cv2.error) as error:
        _blame_disk(error, work)
        return [Outcome(stages[0], "error", 0, f"{type(error).__name__}: {error}")]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _take_place(folder: Path, work: WorkFolder, video_id: str) -> None:
    """Move what a job made into place, unless a worker that seemed dead came first."""
    stages = [name for name in os.listdir(folder) if name == "detect" or os.listdir(folder / name)]
    made = [(folder / stage, work.artifact(stage, video_id)) for stage in stages]
    if all(path.exists() for _, path in made):
        return
    for temporary, path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        if temporary.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)


def _blame_disk(error: Exception, work: WorkFolder) -> None:
    """Raise OSError if a job failed because nothing can be written."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    own = isinstance(error, PermissionError) and str(work.root) in str(error.filename)
    if full or own:
        fix = "what is done is kept; fix that and run the same command again"
        raise OSError(f"can't write to {work.root}: {error}; {fix}") from error


def read_places(work: WorkFolder, original_id: str) -> dict[tuple[int, int], list[int]]:
    """Map (frame_idx, face_idx) to x0, y0, x1, y1 of the crop, for an original and its fakes."""
    return {
        (frame["frame_idx"], face_idx): place
        for frame in work.read_boxes(original_id)["frames"]
        for face_idx, place in zip(frame["face_idx"], frame["places"], strict=True)
        if place
    }
