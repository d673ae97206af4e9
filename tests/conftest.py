"""What several tests share: a very small sample, made once, real clips, and a browser."""

import importlib.util
import os
import shutil
import struct
import sys
from fractions import Fraction
from itertools import count
from pathlib import Path

import av
import pandas as pd
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from playwright.sync_api import sync_playwright

from dfdc_lib.config import PreprocessConfig
from dfdc_lib.metadata import read_metadata
from dfdc_lib.ops.pipeline import Line, append_lines, preprocess, read_status
from dfdc_lib.rehearsal.sample import make_sample
from dfdc_lib.store import WorkFolder, remove

ROOT = Path(__file__).resolve().parent.parent
EVERY_6 = PreprocessConfig(every=6)
# Torch, imported later, computes by one thread here and in what tests start: on a busy machine the
# threads of a small network wait for each other, and take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The time of an example says nothing where cores are busy.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def load_runner():
    """A fresh copy of notebooks/run.py as a module: the folder is no package."""
    spec = importlib.util.spec_from_file_location("notebook_runner", ROOT / "notebooks" / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def write_intra_video(
    path, frames, times=None, drop=(), options=None, form="mp4", codec="libx264", aspect=0, **coder
):
    """Frames that need no other, shown at `times` (1/600 s); packets `drop` are filled with ones.

    options: further ones of encoder and container. form: the container; None tells it by the file's
    name. aspect: of a pixel, width by height; 0 says nothing. coder: attributes of PyAV's encoder.
    """
    options = {"g": "1", "crf": "10", "bf": "0"} | (options or {})
    usual = {"pix_fmt": "yuv420p", "sample_aspect_ratio": aspect, "time_base": Fraction(1, 600)}
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        for name, value in (usual | coder).items():
            setattr(stream.codec_context, name, value)
        for picture, time in zip(frames, times or count(0, 20), strict=False):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for number in drop:
        position, size = packets[number]
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)


def set_matrix(path, a: int, b: int, c: int, d: int) -> None:
    """Write a matrix into an mp4's track header: (x, y) is shown at (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    # after version, times, track number, duration, layer and volume
    place = data.index(b"tkhd") + 4 + 40
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    data[place : place + 36] = struct.pack(">9i", *values)
    path.write_bytes(data)


def files_of(work: WorkFolder) -> dict[Path, bytes]:
    """Everything in a work folder but its lock: name → content."""
    files = (p for p in sorted(work.root.rglob("*")) if p.is_file() and p.suffix != ".lock")
    return {p.relative_to(work.root): p.read_bytes() for p in files}


def edit(change):
    """A damage of a file: what it does to the bytes."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def done_with(data, work: WorkFolder, config=EVERY_6, **amount) -> pd.DataFrame:
    """Preprocess: (video_id, stage) → status, count, reason."""
    return preprocess(data, work, config, **amount).status.set_index(["video_id", "stage"])


def strike(work: WorkFolder, video_id: str, stage: str) -> None:
    """Let the next run do a stage of a video again."""
    append_lines(work, [Line(video_id, stage, "pending", 0, "", None)])


@pytest.fixture(scope="session")
def small_sample(tmp_path_factory) -> Path:
    """Two parts of two originals and four fakes, twelve frames each; made once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with FileLock(folder / "small.lock"):
        return make_sample(folder / "small", n_parts=2, originals_per_part=2, n_frames=12)


@pytest.fixture(scope="session")
def originals(small_sample) -> list[Path]:
    """The small sample's originals, each of another size."""
    return [small_sample / file for file in read_metadata(small_sample).query("label == 0").file]


@pytest.fixture(scope="session")
def small_work(small_sample, tmp_path_factory) -> WorkFolder:
    """The small sample, preprocessed at every 6th frame."""
    work = WorkFolder(tmp_path_factory.mktemp("small") / "work")
    preprocess(small_sample, work, EVERY_6)
    return work


@pytest.fixture
def work_copy(small_work, tmp_path) -> WorkFolder:
    """A copy of the small sample's artifacts, to be changed."""
    shutil.copytree(small_work.root, tmp_path / "copy", ignore=shutil.ignore_patterns("runs"))
    return WorkFolder(tmp_path / "copy")


@pytest.fixture
def uncropped(work_copy) -> WorkFolder:
    """The small sample's boxes without crops and masks: to make those takes no network."""
    detected = [line for line in read_status(work_copy).values() if line.stage == "detect"]
    for path in (work_copy.root / "crops", work_copy.root / "masks", work_copy.status):
        remove(path)
    append_lines(work_copy, detected)
    return work_copy


@pytest.fixture(scope="session")
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    return path or pytest.skip("Chromium is not installed: pages were not opened")


@pytest.fixture
def browser(chromium):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context()
        context.set_default_timeout(600_000)  # milliseconds: only what never comes fails
        yield context


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The folder of real DFDC clips that DFDC_TEST_VIDEOS names."""
    folder = os.environ.get("DFDC_TEST_VIDEOS")
    if not folder:
        pytest.skip("DFDC_TEST_VIDEOS is not set: no real DFDC clips to test with")
    return Path(folder)
