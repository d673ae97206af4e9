"""What works here, what does not, and what to do about it."""

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from dfdc_lib.augment import valid_transforms
from dfdc_lib.manipulate import replace_region
from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint
from dfdc_lib.sample import LANDMARKS, eyes_to_mouth, portrait

UPSTREAM = "https://github.com/selimsef/dfdc_deepfake_challenge"
# Seven B7 from five seeds. The name ends with fold and epoch.
RELEASED = tuple(
    f"final_{seed}_DeepFakeClassifier_tf_efficientnet_b7_ns_{fold_epoch}"
    for seed, fold_epoch in ((111, "0_36"), (555, "0_19"), (777, "0_29"), (777, "0_31"), (888, "0_37"), (888, "0_40"),
                             (999, "0_23"))
)  # fmt: skip


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    ok: bool
    found: str
    advice: str = ""


def check_environment() -> list[Finding]:
    """Python, the packages that the library needs, the processor or GPU, the disk."""
    python = Finding("Python", sys.version_info >= (3, 11), platform.python_version(), "use Python 3.11 or newer")
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"none: {os.cpu_count()} CPU cores do the work"
    free = shutil.disk_usage(".").free / 1e9
    return [
        python,
        *_check_packages(),
        _check_openvino(cuda),
        Finding("GPU", True, device, "" if cuda else "enough for the demo; the full training needs GPUs"),
        Finding(
            "free disk", free > 2, f"{free:.0f} GB", "the demo needs 2 GB, DFDC 470 GB and as much again for crops"
        ),
    ]


def _check_packages() -> list[Finding]:
    """What the library needs: its requirements, without those of extras."""
    try:
        needed = importlib.metadata.requires("dfdc-lib") or []
    except importlib.metadata.PackageNotFoundError:
        return [_check_package("dfdc-lib")]
    return [_check_package(re.match(r"[\w.-]+", line)[0]) for line in needed if "extra ==" not in line]


def _check_openvino(cuda: bool) -> Finding:
    try:
        return Finding("openvino", True, importlib.metadata.version("openvino"))
    except importlib.metadata.PackageNotFoundError:
        advice = "" if cuda else "detection and scoring are several times faster with it: pip install openvino"
        return Finding("openvino", True, "not installed", advice)


def _check_package(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", "./run_all.sh installs all; or: pip install -e .")


def check_data(data: Path) -> Finding:
    """Is this folder a DFDC data set, and is it all there?"""
    try:
        table = read_metadata(data)
    except (FileNotFoundError, ValueError) as error:
        return Finding("data", False, str(error), "data/README.md says how to get DFDC; `dfdc sample` makes the sample")
    present = sum(os.path.exists(Path(data) / file) for file in table.file)
    found = f"{present} of {len(table)} videos, {table.part.nunique()} parts"
    return Finding(
        "data", present > 0, found, "" if present == len(table) else "a partial download: what is here is used"
    )


def check_checkpoints(path: Path) -> list[Finding]:
    """A checkpoint; or of a folder all, at any depth, and which of upstream's seven files are not there."""
    path = Path(path)
    if not path.is_dir():
        return check_checkpoint(path)
    inside = sorted(p for p in path.rglob("*") if p.is_file() and (p.suffix == ".pt" or p.name in RELEASED))
    absent = [name for name in RELEASED if name not in {p.name for p in inside}]
    where = f"release 0.0.1 of {UPSTREAM} has them; a third of the box as margin goes with them, and is used"
    released = Finding(
        f"released weights in {path}", bool(inside), f"{len(RELEASED) - len(absent)} of 7", where if absent else ""
    )
    return [released, *(finding for file in inside for finding in check_checkpoint(file))]


def check_checkpoint(path: Path) -> list[Finding]:
    """Does this checkpoint load strictly, which bytes is it, what has it learned, and does it say anything?"""
    try:
        model = load_checkpoint(path)
    except (FileNotFoundError, ValueError) as error:
        advice = f"train one with `dfdc train`, or take one of release 0.0.1 of {UPSTREAM}"
        return [Finding(str(path), False, str(error).splitlines()[0], advice)]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    card = model.card
    margin = f"margin {card.margin}" if card.margin != "upstream" else "margin a third of the box, as upstream"
    about = f"{card.encoder} at {card.size} px, {margin}, trained on {card.trained_on}; sha256 {digest}"
    return [Finding(str(path), True, about), check_scores(model, path)]


def check_scores(model: DeepfakeClassifier, path: Path) -> Finding:
    """Is the model sure of anything? Weights that were read wrongly give about the same to every picture."""
    transform = valid_transforms(model.card.size)
    scores = model.predict(torch.stack([transform(image=crop)["image"] for crop in known_crops()]))
    found = f"{len(scores)} known faces score {scores.min():.2f} to {scores.max():.2f}"
    sure = bool((scores - 0.5).abs().max() > 0.3)
    advice = "" if sure else "sure of nothing: untrained, or read by a library that builds another network"
    return Finding(f"scores of {Path(path).name}", sure, found, advice)


def known_crops() -> list[np.ndarray]:
    """Two portraits and the two faces swapped, each also small and blurred: (H, W, 3) uint8 RGB."""
    crops = []
    for name, other in (("collins", "hopper"), ("hopper", "collins")):
        picture, landmarks = portrait(name), np.array(LANDMARKS[name])
        swapped, _ = replace_region(picture, landmarks, portrait(other), np.array(LANDMARKS[other]))
        centre, reach = landmarks.mean(axis=0), 2.2 * eyes_to_mouth(landmarks)
        x0, y0, x1, y1 = (int(value) for value in (*(centre - reach), *(centre + reach)))
        for seen in (picture, swapped):
            crop = seen[max(y0, 0) : y1, max(x0, 0) : x1]
            crops += [crop, cv2.resize(cv2.GaussianBlur(crop, (0, 0), 2), None, fx=0.5, fy=0.5)]
    return crops
