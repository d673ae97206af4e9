"""The name of every artifact; reading one, and writing one so that it appears whole or not at all."""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np


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
    """Remove what killed processes of this machine left half written in a folder; others' work is not touched.

    Call it before writing: what bears this process's number is then a dead one's, too.
    """
    mine = f".{platform.node()}-"
    for path in Path(folder).glob(f".*{mine}*.part"):
        owner = path.name.rsplit(mine, 1)[1].removesuffix(".part")
        if owner.isdecimal() and (int(owner) == os.getpid() or not is_running(int(owner))):
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


def write_json(path: Path, value) -> None:
    """Write a value as indented JSON, whole or not at all."""
    with appear_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


@dataclass(frozen=True)
class WorkFolder:
    """Where the artifacts of one data set lie. Nothing is created until a stage writes."""

    root: Path

    @classmethod
    def beside(cls, data: Path) -> "WorkFolder":
        """The default: `work/<name of the data folder>` beside the data folder."""
        data = Path(data).resolve()
        return cls(data.parent / "work" / data.name)

    @property
    def folds(self) -> Path:
        return self.root / "folds.csv"

    @property
    def source(self) -> Path:
        return self.root / "source.json"

    def read_source(self) -> dict:
        """What the crops were made from: trained_on (the data set's name), margin, and all settings of that stage."""
        return json.loads(self.source.read_text())

    @property
    def status(self) -> Path:
        return self.root / "status.csv"

    def manifest(self, video_id: str) -> Path:
        return self.root / "manifest" / f"{video_id}.json"

    def boxes(self, original_id: str) -> Path:
        return self.root / "boxes" / f"{original_id}.json"

    def read_faces(self, original_id: str) -> dict[str, tuple[int, list[float]]]:
        """The stored boxes of an original: name of the crop → (frame_idx, box). Empty where nothing is stored."""
        path = self.boxes(original_id)
        frames = json.loads(path.read_text())["frames"] if path.exists() else []
        return {
            face_file(frame["frame_idx"], face_idx): (frame["frame_idx"], box)
            for frame in frames
            for face_idx, box in zip(frame["face_idx"], frame["boxes"], strict=True)
        }

    def crops(self, video_id: str) -> Path:
        return self.root / "crops" / video_id

    def crop_names(self, video_id: str) -> list[str]:
        """The file names of a video's crops, by frame and face. Empty where there are none."""
        return sorted((path.name for path in self.crops(video_id).glob("*.png")), key=parse_face_file)

    def masks(self, fake_id: str) -> Path:
        return self.root / "masks" / fake_id

    def run(self, name: str) -> Path:
        if Path(name).name != name or not name.strip("."):
            raise ValueError(f"a run's name is a plain word, got {name!r}")
        return self.root / "runs" / name


def face_file(frame_idx: int, face_idx: int) -> str:
    """The name of a crop or a mask: `<frame_idx>_<face_idx>.png`."""
    return f"{frame_idx}_{face_idx}.png"


def parse_face_file(name: str) -> tuple[int, int]:
    """Undo `face_file`: return (frame_idx, face_idx)."""
    frame_idx, face_idx = Path(name).stem.split("_")
    return int(frame_idx), int(face_idx)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a crop (H, W, 3) uint8 RGB or a mask (H, W) uint8."""
    picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    _, encoded = cv2.imencode(".png", picture)
    Path(path).write_bytes(encoded)  # says when the disk is full; cv2.imwrite does not always


def read_png(path: Path) -> np.ndarray:
    """Read a crop (H, W, 3) uint8 RGB. Raises FileNotFoundError, or ValueError for a broken file."""
    return _read(path, cv2.IMREAD_COLOR_RGB)


def read_mask(path: Path) -> np.ndarray:
    """Read a mask (H, W) uint8. Raises as `read_png`."""
    return _read(path, cv2.IMREAD_GRAYSCALE)


def _read(path: Path, how: int) -> np.ndarray:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such picture: {path}")
    picture = cv2.imread(str(path), how)
    if picture is None:
        raise ValueError(f"not a readable picture: {path}")
    return picture
