"""The name of every artifact; how one is read, and how it appears whole or not at all."""

import errno
import hashlib
import json
import os
import re
import reprlib
import shutil
import struct
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock, Timeout

LARGEST_JSON = 2**28  # bytes. The largest metadata.json of DFDC has under 1 MB
LARGEST_CROP = 2**26  # pixels: a frame of cinema 8K, and as much again
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)  # what a disk without locks answers
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 80
show = _shorten.repr  # a file's value for a message: as Python writes it, but never long


class DamagedFile(ValueError):
    """A file that doesn't hold what it must; the message names the file and what to do."""


@contextmanager
def appear_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file or folder made there then takes that name.

    A block that fails leaves what was there before, and nothing else.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    remove(temporary)  # left by a process that was killed
    try:
        yield temporary
        if temporary.is_dir():
            remove(path)
        os.replace(temporary, path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file, or a folder and everything in it, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Let only this process write a file, with <path>.lock. Raises ValueError in a second one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is writing {path}: let it finish first") from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        warning = "this disk has no locks: make sure that nothing else writes there"
        print(f"warning: {path.parent}: {warning}", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()


def digest_file(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_size(path: Path) -> int | None:
    """Bytes; None if there is no such file, or we may not look at it."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def write_text(path: Path, text: str) -> Path:
    """Write a text whole or not at all, and return its path. What is not Unicode becomes "?"."""
    with appear_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return Path(path)


def write_json(path: Path, value) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_csv(path: Path, table) -> None:
    """Write a pandas table without its index, whole or not at all."""
    write_text(path, table.to_csv(index=False))


def read_json(path: Path):
    """Read a JSON file. Raises FileNotFoundError, or DamagedFile if it can't be used."""
    path, size = Path(path), os.stat(path).st_size
    if not path.is_file():  # a pipe would block, a device never end
        raise DamagedFile(f"{path} is a folder, a pipe or a device, not a file")
    if size > LARGEST_JSON:
        raise DamagedFile(f"{path} is too large for JSON: it has {size:,} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_refuse_repeats)
    except OSError as error:
        raise DamagedFile(f"{path} can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is not usable JSON: {error}") from error


def _refuse_repeats(pairs: list[tuple]) -> dict:
    if len(entries := dict(pairs)) < len(pairs):  # which one counts is anybody's guess
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{show(name)} is listed twice")
    return entries


def read_record(path: Path, names: set[str], fix: str) -> dict:
    """Read a JSON object that we wrote, with at least these names. Raises what `read_json` does."""
    stored = read_json(path)
    if not isinstance(stored, dict) or not names <= set(stored):
        raise DamagedFile(f"{path} is not what `dfdc` writes: {fix}")
    return stored


class Journal:
    """A text file to which one process adds lines. A last line that a crash cut off is dropped."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def lines(self) -> list[str]:
        """The complete lines, oldest first; none if there is no such file."""
        if not self.path.exists():
            return []
        return self.path.read_text(encoding="utf-8").split("\n")[:-1]

    def append(self, lines: Iterable[str]) -> None:
        """Add lines. None may hold a line break."""
        with open(self.path, "a+b") as file:
            file.seek(max(file.tell() - 1, 0))
            if file.read(1) not in (b"\n", b""):  # the last line was cut off: remove it
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write("".join(f"{line}\n" for line in lines).encode())


class WorkFolder:
    """Where the artifacts of one data set are. Nothing is created until a stage writes."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self.recipe = self.root / "recipe.json"  # what everything else was made with
        self.status = self.root / "status.csv"  # the journal
        self.folds = self.root / "folds.csv"
        self.unfinished = self.root / ".unfinished"  # where workers write first

    @classmethod
    def beside(cls, data: Path) -> "WorkFolder":
        """The default: `work/<name>` beside the data folder; for a single part, beside all data."""
        data = Path(data).resolve()
        beside = data.parent if data.name.startswith("dfdc_train_part_") else data
        return cls(beside.parent / "work" / data.name)

    def read_recipe(self) -> dict:
        """The data set's name, the settings (`PreprocessConfig.to_json`) and library versions."""
        if not self.recipe.exists():
            raise FileNotFoundError(f"{self.recipe} is missing: run `dfdc preprocess` first")
        fix = "make the folder again, with `dfdc preprocess --overwrite`"
        return read_record(self.recipe, {"data", "settings", "versions"}, fix)

    def boxes(self, original_id: str) -> Path:
        return self.root / "boxes" / f"{original_id}.json"

    def read_boxes(self, original_id: str) -> dict:
        """The faces of an original: its video_id, and frames (see `preprocess.detect_faces`)."""
        fix = "`dfdc doctor --work` says how to make it again"
        return read_record(self.boxes(original_id), {"frames"}, fix)

    def crops(self, video_id: str) -> Path:
        return self.root / "crops" / video_id

    def crop_names(self, video_id: str) -> list[str]:
        """The file names of a video's crops, in the order of frames and faces."""
        return [face_file(*face) for face in list_faces(self.crops(video_id))]

    def masks(self, fake_id: str) -> Path:
        return self.root / "masks" / fake_id

    def artifact(self, stage: str, video_id: str) -> Path:
        """What a stage makes from a video: its boxes file, or its folder of crops or masks."""
        return {"detect": self.boxes, "crop": self.crops, "masks": self.masks}[stage](video_id)

    def run(self, name: str) -> Path:
        if Path(name).name != name or not name.strip("."):
            raise ValueError(f"a run's name must be a plain word, got {name!r}")
        return self.root / "runs" / name


def face_file(frame_idx: int, face_idx: int) -> str:
    """The name of a crop or a mask: `<frame_idx>_<face_idx>.png`."""
    return f"{frame_idx}_{face_idx}.png"


@lru_cache(100_000)  # a data set has millions of files, but few names
def parse_face_file(name: str) -> tuple[int, int]:
    """Undo `face_file`: return (frame_idx, face_idx). Raises DamagedFile for any other name."""
    found = re.fullmatch(r"(\d{1,9})_(\d{1,9})\.png", name, re.ASCII)
    if found is None:
        raise DamagedFile(f"{name} is not a crop: those are named <frame_idx>_<face_idx>.png")
    return int(found[1]), int(found[2])


def list_faces(folder: Path) -> list[tuple[int, int]]:
    """(frame_idx, face_idx) of each picture in a folder, in order; none if it doesn't exist."""
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".png")]
        return sorted(map(parse_face_file, names))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except DamagedFile as error:
        raise DamagedFile(f"{folder}: {error}; move it elsewhere") from error


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a crop (H, W, 3) uint8 RGB or a mask (H, W) uint8."""
    picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    _, encoded = cv2.imencode(".png", picture)  # imwrite does not always say that a disk is full
    Path(path).write_bytes(encoded.tobytes())


def read_mask(path: Path) -> np.ndarray:
    """Read a mask (H, W) uint8. Raises as `read_png`."""
    return read_png(path, cv2.IMREAD_GRAYSCALE)


def read_png(path: Path, how: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray:
    """Read a crop (H, W, 3) uint8 RGB. Raises FileNotFoundError, or DamagedFile."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such picture: {path}")
    data = Path(path).read_bytes()
    head = re.match(rb"\x89PNG\r\n\x1a\n.{4}IHDR(.{8})", data, re.DOTALL)
    width, height = struct.unpack(">II", head[1]) if head else (0, 0)
    # A tiny file can declare a picture that fills the memory, and decoders fill the missing part of
    # a truncated one with black.
    whole = 0 < width * height <= LARGEST_CROP and data.endswith(b"IEND\xaeB`\x82")
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), how) if whole else None
    if picture is None:
        fix = "`dfdc doctor --work WORK --pictures --strike` marks it to be made again"
        raise DamagedFile(f"not a readable picture: {path}; {fix}")
    return picture
