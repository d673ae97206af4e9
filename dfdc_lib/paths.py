"""The name of every artifact; reading one, and writing one so that it appears whole or not at all."""

import fcntl
import json
import os
import platform
import re
import reprlib
import shutil
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np

LARGEST_JSON = 2**28  # bytes. The largest metadata.json of DFDC has under 1 MB
LARGEST_CROP = 2**26  # pixels: a frame of cinema's 8K, and as much again
OLD = 86_400  # seconds after which what another machine left half written is nobody's work any more
DISK_BLOCK = 4096  # bytes: disks give a file whole ones
BYTES_A_VIDEO = 4_000_000  # on disk, of a video's artifacts; see `estimate_space`
LARGEST_NUMBER = 10**8  # of a frame, a person or a pixel
_shorten = reprlib.Repr()  # of anything, however deep or long, for a message
_shorten.maxstring = _shorten.maxother = 80


class DamagedFile(ValueError):
    """A file that holds something else than it must; the message names the file and what to do."""


def show(value) -> str:
    """A value from a file in an error message: as Python writes it, but never long."""
    return _shorten.repr(value)


@contextmanager
def appear_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes the name `path` when the block succeeds.

    Works for files and folders. A failed block leaves what stood there before, and nothing else behind.
    """
    temporary = hidden_beside(path)
    try:
        yield temporary
        take_place(temporary, path)
    finally:
        remove(temporary)


def hidden_beside(path: Path) -> Path:
    """A temporary path beside `path`, where nothing stands; `sweep_leftovers` knows such names."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.part")
    remove(temporary)  # left by a process of the same number that was killed
    return temporary


def take_place(temporary: Path, path: Path) -> None:
    """Give what stands at `temporary` the name `path`; a folder that had the name goes."""
    if temporary.is_dir() and Path(path).exists():
        shutil.rmtree(path)
    os.replace(temporary, path)


def remove(path: Path) -> None:
    """Remove a file, or a folder and all that is in it, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep_leftovers(folder: Path) -> None:
    """Remove what killed processes left half written in a folder; what living ones are at is not touched.

    Call it before writing: what bears this process's number is then a dead one's, too. Of another machine's processes
    only their age tells.
    """
    mine = f".{platform.node()}-"
    for path in Path(folder).glob(".*.part"):
        owner = path.name.rsplit(mine, 1)[-1].removesuffix(".part")
        if mine not in path.name:
            dead = time.time() - path.stat().st_mtime > OLD
        else:
            dead = owner.isdecimal() and (int(owner) == os.getpid() or not is_running(int(owner)))
        if dead:
            remove(path)


def is_running(pid: int) -> bool:
    """Does a process of this number exist on this machine?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def describe_file(path: Path) -> list[int] | None:
    """Size and time of change (ns) of a file; None where it is not there, or may not be looked at."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return [about.st_size, about.st_mtime_ns]


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep a folder to oneself: only one run may write to it at a time. Raises ValueError for the second.

    The system gives the lock up when its process ends, however it ends. Where machines share a disk, the name in the
    file keeps those apart that the disk's own locks do not.
    """
    path = Path(folder) / ".running"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path) as file:
        host, _, pid = file.read().rpartition("-")
        if host not in ("", platform.node()):
            owner = f"process {pid} on {host}"
            raise ValueError(f"{folder} is being written by {owner}; if that is gone, delete {path}")
        file.truncate(0)
        file.write(f"{platform.node()}-{os.getpid()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _lock(path: Path) -> Iterator[TextIO]:
    """Open a file that no other process has locked, created where need be. Raises ValueError where one has."""
    while True:
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                host, _, pid = file.read().rpartition("-")
                owner = f"process {pid} on {host}" if pid else "another process"
                raise ValueError(f"{path.parent} is being written by {owner}: let that end first") from None
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:  # not just deleted by its owner
                file.seek(0)
                yield file
                return


def write_json(path: Path, value) -> None:
    """Write a value as indented JSON, whole or not at all."""
    with appear_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def write_csv(path: Path, table) -> None:
    """Write a pandas table without its index, whole or not at all."""
    with appear_whole(path) as temporary:
        table.to_csv(temporary, index=False)


def read_json(path: Path):
    """Read a JSON file. Raises FileNotFoundError, or DamagedFile for what is none, or gives a name two values."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if not path.is_file():  # a pipe would block, a device never end
        raise DamagedFile(f"{path} is a folder, a pipe or a device, and not a file")
    if path.stat().st_size > LARGEST_JSON:
        raise DamagedFile(f"{path} is not JSON that can be used: it has {path.stat().st_size:,} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_refuse_repeats)
    except OSError as error:
        raise DamagedFile(f"{path} can't be read ({error.strerror}): mend its rights, or bring it anew") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is not JSON that can be used: {error}") from error


def _refuse_repeats(pairs: list[tuple]) -> dict:
    entries: dict = {}
    for name, value in pairs:
        if name in entries:
            raise ValueError(f"{show(name)} is listed twice")
        entries[name] = value
    return entries


def _is_count(value) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_NUMBER  # True is no number here


def _is_array(value, *shape: int) -> bool:
    """Lists in lists of this shape, with numbers of a sane size inside; NaN is none."""
    if shape:
        return isinstance(value, list) and len(value) == shape[0] and all(_is_array(v, *shape[1:]) for v in value)
    return type(value) in (int, float) and -LARGEST_NUMBER <= value <= LARGEST_NUMBER


def _is_frame(frame) -> bool:
    """Is this what detection writes of a frame: frame_idx, and of each person face_idx, box and landmarks?"""
    if not isinstance(frame, dict) or not isinstance(people := frame.get("face_idx"), list):
        return False
    counted = _is_count(frame.get("frame_idx")) and all(map(_is_count, people)) and len(set(people)) == len(people)
    boxes, landmarks = frame.get("boxes"), frame.get("landmarks")
    return counted and _is_array(boxes, len(people), 4) and _is_array(landmarks, len(people), 5, 2)


@dataclass(frozen=True)
class WorkFolder:
    """Where the artifacts of one data set lie. Nothing is created until a stage writes."""

    root: Path

    @classmethod
    def beside(cls, data: Path) -> "WorkFolder":
        """The default: `work/<name of the data folder>` beside the data folder; of a single part, beside all data."""
        data = Path(data).resolve()
        beside = data.parent if data.name.startswith("dfdc_train_part_") else data
        return cls(beside.parent / "work" / data.name)

    @property
    def folds(self) -> Path:
        return self.root / "folds.csv"

    @property
    def source(self) -> Path:
        return self.root / "source.json"

    def read_source(self) -> dict:
        """What the crops were made from: trained_on (the data set's name), margin, all settings of that stage, and
        the last run's folds and originals (0: all).
        """
        source = read_json(self.source)
        margin = source.get("margin") if isinstance(source, dict) else None
        sane = margin == "upstream" or (_is_array(margin) and margin >= 0)
        if (
            not sane
            or "trained_on" not in source
            or not all(_is_count(source.get(n, 0)) for n in ("folds", "originals"))
        ):
            raise DamagedFile(f"{self.source} does not say what the crops were made from: run `dfdc preprocess` again")
        return source

    @property
    def status(self) -> Path:
        return self.root / "status.csv"

    @property
    def attempts(self) -> Path:
        """While a run goes on: what its workers are at. See `tasks.watched`."""
        return self.root / "attempts"

    def manifest(self, video_id: str) -> Path:
        return self.root / "manifest" / f"{video_id}.json"

    def boxes(self, original_id: str) -> Path:
        return self.root / "boxes" / f"{original_id}.json"

    def read_boxes(self, original_id: str) -> dict:
        """The stored boxes of an original: width, height and frames, in rising order (see `_is_frame`).

        A box may lie outside the frame, or leave nothing inside it. Raises FileNotFoundError, or DamagedFile.
        """
        path = self.boxes(original_id)
        stored = read_json(path)
        frames = stored.get("frames") if isinstance(stored, dict) else None
        mend = "delete it and run `dfdc preprocess` again"
        if not isinstance(frames, list) or not all(_is_count(stored.get(name)) for name in ("width", "height")):
            raise DamagedFile(f"{path} holds no width, height and frames: {mend}")
        last = -1
        for number, frame in enumerate(frames):
            if not _is_frame(frame) or frame["frame_idx"] <= last:
                raise DamagedFile(f"{path}: entry {number} of its frames is not what face detection writes: {mend}")
            last = frame["frame_idx"]
        return stored

    def read_faces(self, original_id: str) -> dict[str, tuple[int, list[float]]]:
        """The stored boxes of an original: name of the crop → (frame_idx, box). Empty where nothing is stored."""
        frames = self.read_boxes(original_id)["frames"] if self.boxes(original_id).exists() else []
        return {
            face_file(frame["frame_idx"], face_idx): (frame["frame_idx"], box)
            for frame in frames
            for face_idx, box in zip(frame["face_idx"], frame["boxes"], strict=True)
        }

    def crops(self, video_id: str) -> Path:
        return self.root / "crops" / video_id

    def crop_names(self, video_id: str) -> list[str]:
        """The file names of a video's crops, by frame and face. Empty where there are none."""
        return [path.name for path in sorted(self.crops(video_id).glob("*.png"), key=parse_face_file)]

    def masks(self, fake_id: str) -> Path:
        return self.root / "masks" / fake_id

    def artifact(self, stage: str, video_id: str) -> Path:
        """What a stage makes of a video: its boxes file, or its folder of crops or masks."""
        return {"detect": self.boxes, "crop": self.crops, "masks": self.masks}[stage](video_id)

    def run(self, name: str) -> Path:
        if Path(name).name != name or not name.strip("."):
            raise ValueError(f"a run's name is a plain word, got {name!r}")
        return self.root / "runs" / name


def face_file(frame_idx: int, face_idx: int) -> str:
    """The name of a crop or a mask: `<frame_idx>_<face_idx>.png`."""
    return f"{frame_idx}_{face_idx}.png"


def parse_face_file(path: Path | str) -> tuple[int, int]:
    """Undo `face_file`: return (frame_idx, face_idx). Raises DamagedFile for any other name."""
    found = re.fullmatch(r"(\d{1,9})_(\d{1,9})\.png", Path(path).name, re.ASCII)
    if found is None:
        raise DamagedFile(f"{path} is no crop, which are named <frame_idx>_<face_idx>.png: move it elsewhere")
    return int(found[1]), int(found[2])


_parse_once = lru_cache(100_000)(parse_face_file)


def list_faces(folder: Path) -> list[tuple[int, int]]:
    """(frame_idx, face_idx) of each crop or mask in a folder, in order; none where there is no such folder.

    Quick: a data set has millions of them, of few names. Raises DamagedFile for a picture of another name.
    """
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".png")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return sorted(map(_parse_once, names))
    except DamagedFile:
        return sorted(parse_face_file(Path(folder) / name) for name in names)  # raises it with the folder's name


def measure_folder(folder: Path) -> tuple[int, int]:
    """(bytes on disk, files) of all that lies in a folder; (0, 0) where there is none."""
    sizes = [os.stat(os.path.join(where, name)).st_size for where, _, names in os.walk(folder) for name in names]
    return sum(-(-size // DISK_BLOCK) * DISK_BLOCK for size in sizes), len(sizes)


def estimate_space(n_videos: int, work: WorkFolder, enough: int = 50) -> int:
    """About how many bytes the crops, masks and boxes of so many videos will take on disk.

    From what is in `work` already, where it has the crops of `enough` videos (at most 500 of them are looked at,
    evenly over their names, so it takes a moment only); else `BYTES_A_VIDEO`. That is for 1080p, ten seconds and one
    face: of two real DFDC clips one had 1.2 and one 3.6 MB of crops at the default settings (30 each), and their
    re-encoded copies, as stand-ins for fakes, 0.4 and 1.0 MB of masks; 4 MB is nearer to the larger.
    """
    crops = work.root / "crops"
    video_ids = sorted(name for name in os.listdir(crops) if not name.startswith(".")) if crops.is_dir() else []
    if len(video_ids) < enough:
        return n_videos * BYTES_A_VIDEO
    some = video_ids[:: -(-len(video_ids) // 500)]
    files = [path for video_id in some for path in (work.boxes(video_id), work.manifest(video_id)) if path.exists()]
    folders = [folder(video_id) for video_id in some for folder in (work.crops, work.masks)]
    pictures = sum(measure_folder(folder)[0] for folder in folders)
    records = sum(-(-path.stat().st_size // DISK_BLOCK) * DISK_BLOCK for path in files)
    return round(n_videos * (pictures + records) / len(some))


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a crop (H, W, 3) uint8 RGB or a mask (H, W) uint8."""
    picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    _, encoded = cv2.imencode(".png", picture)
    Path(path).write_bytes(encoded)  # says when the disk is full; cv2.imwrite does not always


def read_png(path: Path) -> np.ndarray:
    """Read a crop (H, W, 3) uint8 RGB. Raises FileNotFoundError, or DamagedFile for a broken file."""
    return _read(path, cv2.IMREAD_COLOR_RGB)


def read_mask(path: Path) -> np.ndarray:
    """Read a mask (H, W) uint8. Raises as `read_png`."""
    return _read(path, cv2.IMREAD_GRAYSCALE)


def _read(path: Path, how: int) -> np.ndarray:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such picture: {path}")
    data = Path(path).read_bytes()
    head = re.match(rb"\x89PNG\r\n\x1a\n.{4}IHDR(.{8})", data, re.DOTALL)
    width, height = struct.unpack(">II", head[1]) if head else (0, 0)
    # Some kilobytes can stand for a picture that fills the memory; and of a file that was cut off, decoders make a
    # picture with a black rest.
    whole = 0 < width * height <= LARGEST_CROP and data.endswith(b"IEND\xaeB`\x82")
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), how) if whole else None
    if picture is None:
        raise DamagedFile(f"not a readable picture: {path}; delete it and run `dfdc preprocess` again")
    return picture
