"""Gather what a card's machine needs and can't fetch there: crops, clips and wheels.

    python -m benchmarks gpu-prepare [--python 3.12] [--no-wheels]

Two minutes, and a network for the wheels. Carry the folder, of at most 60 MiB, to the machine
together with the repository, and start there what this command prints at its end.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks.clips import make_clip
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.rehearsal.sample import make_sample
from dfdc_lib.store import WorkFolder

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "data" / "gpu"
MOST_BYTES, CLIPS_BYTES = 60 * 2**20, 6 * 2**20
# What an image with PyTorch, timm and pandas usually lacks, and what that needs in turn.
WHEELS = ("facenet-pytorch", "av", "pebble", "albumentations", "albucore", "stringzilla", "simsimd")
WHEELS += ("pydantic", "pydantic-core", "annotated-types", "typing-inspection")
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)] + ["manylinux2014_x86_64"]
FAMILIES = 8  # originals whose crops are taken, with their fakes


def prepare(folder: Path, data: Path, clips: list[Path], families: int = FAMILIES) -> None:
    """Make work/ (crops of some originals of a data set, and of their fakes) and clips/."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "clips").mkdir(parents=True)
    for number, clip in enumerate(clips):
        shutil.copy(clip, folder / "clips" / f"{number:02d}{clip.suffix}")
    stages = ("detect", "crop", "folds")
    work = WorkFolder(folder / "work")
    done = preprocess(data, work, workers=2, originals=families, stages=stages)
    if (done.status.status != "ok").any():
        raise RuntimeError(f"some videos of {data} could not be read: see {folder}/work/status.csv")


def find_clips() -> list[Path]:
    """A clip of our own and, if DFDC_TEST_VIDEOS names a folder, its smallest ones that fit."""
    folder, clips = os.environ.get("DFDC_TEST_VIDEOS"), [make_clip()]
    left = CLIPS_BYTES - size_of(clips[0])
    for clip in sorted(Path(folder).rglob("*.mp4"), key=size_of) if folder else ():
        left -= size_of(clip)
        clips += [clip] if left >= 0 else []
    return clips


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def download_wheels(folder: Path, python: str) -> None:
    """Fetch the wheels of WHEELS for another Python, in the versions of requirements.lock."""
    has_pip = importlib.util.find_spec("pip")
    alone = ["uv", "run", "--no-project", "--with", "pip", "python", "-m", "pip"]
    command = [sys.executable, "-m", "pip"] if has_pip else alone
    command += ["download", "-qq", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--python-version", python, "--implementation", "cp"]
    command += [word for name in PLATFORMS for word in ("--platform", name)]
    subprocess.run([*command, *pin_versions(python)], check=True)


def pin_versions(python: str) -> list[str]:
    """Each of WHEELS with its version in requirements.lock for a Python such as "3.12"."""
    place = {"python_full_version": f"{python}.0", "python_version": python}
    place |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line[:1].isalpha()]
    here = {r.name: r for r in pinned if not r.marker or r.marker.evaluate(place)}
    return [f"{name}{here[name].specifier}" for name in WHEELS]


def main(arguments: list[str]) -> int:
    """Make the folder, and say how to use it."""
    parser = argparse.ArgumentParser(
        "benchmarks gpu-prepare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--python", default="3.12", help="the version of Python on that machine")
    parser.add_argument("--no-wheels", action="store_true", help="all packages are there already")
    args = parser.parse_args(arguments)
    prepare(FOLDER, make_sample(ROOT / "data" / "sample"), find_clips())
    if not args.no_wheels:
        download_wheels(FOLDER / "wheels", args.python)
    size = size_of(FOLDER)
    print(f"{FOLDER}: {size / 2**20:.0f} MiB. On the machine with the card:\n")
    if not args.no_wheels:
        print("python3 -m pip install -q --no-index --no-deps --target /tmp/site", end=" ")
        print("data/gpu/wheels/*.whl && export PYTHONPATH=/tmp/site")
    print("python3 -m benchmarks gpu")
    if size > MOST_BYTES:
        print(f"that is more than {MOST_BYTES / 2**20:.0f} MiB", file=sys.stderr)
    return int(size > MOST_BYTES)
