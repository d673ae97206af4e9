"""What works here, what does not, and what to do about it."""

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import load_checkpoint

PACKAGES = (
    "torch", "torchvision", "timm", "facenet-pytorch", "albumentations", "opencv-python-headless",
    "scikit-image", "numpy", "pandas", "papermill", "jupyterlab",
)  # fmt: skip


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    ok: bool
    found: str
    advice: str = ""


def check_environment() -> list[Finding]:
    """Python, the packages that scores depend on, the processor or GPU, the disk."""
    import torch

    python = Finding("Python", sys.version_info >= (3, 11), platform.python_version(), "use Python 3.11 or newer")
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"none: {os.cpu_count()} CPU cores do the work"
    free = shutil.disk_usage(".").free / 1e9
    return [
        python,
        *map(_check_package, PACKAGES),
        Finding("GPU", True, device, "" if cuda else "enough for the demo; the full training needs GPUs"),
        Finding(
            "free disk", free > 2, f"{free:.0f} GB", "the demo needs 2 GB, DFDC 470 GB and as much again for crops"
        ),
    ]


def _check_package(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", "./run_all.sh installs everything")


def check_data(data: Path) -> Finding:
    """Is this folder a DFDC data set, and is it all there?"""
    try:
        table = read_metadata(data)
    except (FileNotFoundError, ValueError) as error:
        return Finding("data", False, str(error), "data/README.md says how to get DFDC; `dfdc sample` makes the sample")
    present = sum((Path(data) / file).exists() for file in table.file)
    found = f"{present} of {len(table)} videos, {table.part.nunique()} parts"
    return Finding(
        "data", present > 0, found, "" if present == len(table) else "a partial download: what is here is used"
    )


def check_checkpoint(path: Path) -> Finding:
    """Does this checkpoint load, strictly, and what has it learned?"""
    try:
        card = load_checkpoint(path).card
    except (FileNotFoundError, ValueError) as error:
        return Finding(str(path), False, str(error).splitlines()[0], "train one with `dfdc train`")
    return Finding(str(path), True, f"{card.encoder} at {card.size} px, trained on {card.trained_on}")
