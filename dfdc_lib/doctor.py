"""What works here, what does not, and what to do about it."""

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import zlib
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dfdc_lib.augment import valid_transforms
from dfdc_lib.geometry import cut_face
from dfdc_lib.manipulate import eyes_to_mouth
from dfdc_lib.metadata import read_metadata
from dfdc_lib.metrics import auc
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint
from dfdc_lib.sample import LANDMARKS, PEOPLE, SIZES, Fake, Shot, falsify, film, portrait

UPSTREAM = "https://github.com/selimsef/dfdc_deepfake_challenge"
# Release 0.0.1: seven B7 from five seeds; the name ends with fold and epoch. Of each file its bytes and sha256: the
# release has none, these are from the Git LFS pointers of the same files in another public repository.
RELEASED = {
    f"final_{seed}_DeepFakeClassifier_tf_efficientnet_b7_ns_{fold_epoch}": (266_910_600 + more, digest)
    for seed, fold_epoch, more, digest in (
        (111, "0_36", 17, "9db77ab9318863e2f8ab287c8eb83c2232584b82dc2fb41f1d614ddd7900cccb"),
        (555, "0_19", 18, "e2f0066a8ff036add2f5b418d2eba1051c2d2788f84168f00a85207f3b666e04"),
        (777, "0_29", 17, "9fe4311d551a9cbaa1475dbcd6b15fccb31a1e17a8d63069e90a8899aef03b5c"),
        (777, "0_31", 17, "00dd6cd9466cddfd7da7c333d8fecae81593307827093deaf4d7cdf704bc8bfa"),
        (888, "0_37", 15, "d4a2bb4aefde59e045463ad469ed9660765beb086f65a09f9478ab060d403c7c"),
        (888, "0_40", 13, "c1d326a6651011390efe602e42cb8228232d6d18a15c404cf85d7233482f6d6d"),
        (999, "0_23", 15, "849036dc211387420412feb68c7451e98a948072b94e213e1104e2f2bf7791ad"),
    )
}
# The logits of two packaged portraits by networks with `formula_weights`, computed in 64 bits; and the portraits' CRC.
GOLDEN = {"b3": (0.059343, 1.473675), "b7": (2.365832, -0.473770)}
PORTRAITS_CRC = 1223003119


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


def check_checkpoints(paths: Sequence[Path]) -> list[Finding]:
    """First the libraries that will compute; then each checkpoint, and of a folder all, at any depth."""
    findings = [check_network(encoder) for encoder in GOLDEN] if paths else []
    for path in map(Path, paths):
        findings += _check_folder(path) if path.is_dir() else check_checkpoint(path)
    return findings


def _check_folder(path: Path) -> list[Finding]:
    """All checkpoints inside, and which of upstream's seven files are not there."""
    inside = sorted(p for p in path.rglob("*") if p.is_file() and (p.suffix == ".pt" or p.name in RELEASED))
    absent = RELEASED.keys() - {p.name for p in inside}
    where = f"release 0.0.1 of {UPSTREAM} has the others" if absent else ""
    found = f"{len(RELEASED) - len(absent)} of {len(RELEASED)} by name"
    released = Finding(f"released weights in {path}", bool(inside), found, where)
    return [released, *(finding for file in inside for finding in check_checkpoint(file))]


def check_network(encoder: str) -> Finding:
    """Do the libraries of this machine build the network that they should? With known weights: known answers."""
    what = f"{encoder} as timm {importlib.metadata.version('timm')} and torch {torch.__version__} build it"
    if zlib.crc32(portrait("hopper").tobytes(), zlib.crc32(portrait("collins").tobytes())) != PORTRAITS_CRC:
        return Finding(what, True, "can't be told: the packaged portraits are read as other pixels than elsewhere")
    advice = "another network than upstream's: its weights mean nothing here; install what requirements.lock says"
    try:
        model = DeepfakeClassifier(encoder).eval()
    except RuntimeError as error:  # timm does not know the name
        return Finding(what, False, str(error).splitlines()[0], advice)
    model.load_state_dict(formula_weights(model))
    with torch.inference_mode():
        logits = model(portrait_windows(model.card.size)).numpy()
    off = np.abs(logits - GOLDEN[encoder]).max()
    found = f"with weights from a formula, its logits are {off:.0e} off the known ones"
    return Finding(what, bool(off <= 1e-4), found, "" if off <= 1e-4 else advice)


def portrait_windows(size: int) -> Tensor:
    """The two packaged portraits around the face (2, 3, size, size), normalised: cut, never resized."""
    windows = []
    for person in PEOPLE:
        picture, centre = portrait(person), np.mean(LANDMARKS[person], axis=0).astype(int)
        x, y = np.clip(centre - size // 2, 0, np.array(picture.shape[1::-1]) - size)
        windows.append(valid_transforms(size)(image=picture[y : y + size, x : x + size])["image"])
    return torch.stack(windows)


def formula_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights for an EfficientNet that need no download and are the same everywhere: its scores spread as if trained.

    From each tensor's name and each value's place in it comes noise in [-1, 1), by splitmix64. Kernels are scaled by
    their fan-in, so that signals neither die nor blow up; blocks that are added to what came in (all but the first of
    a stage) add a little.
    """
    weights = {}
    for name, tensor in model.state_dict().items():
        # 18, where the checksum starts, makes the logits of B3 and B7 for the packaged faces lie around 0.
        bits = np.arange(tensor.numel(), dtype=np.uint64) + (np.uint64(zlib.crc32(name.encode(), 18)) << np.uint64(32))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
        values = (bits >> np.uint64(11)) * 2.0**-52 - 1
        if tensor.ndim > 1:
            values *= np.sqrt((7.5 if tensor.ndim == 4 else 1.0) / tensor[0].numel())
        elif name.endswith(("weight", "running_var")):
            values = (1 + values / 3) * (0.3 if re.search(r"blocks\.\d+\.[1-9].*weight", name) else 1)
        else:
            values /= 10
        weights[name] = torch.from_numpy(values).reshape(tensor.shape).to(tensor.dtype)
    return weights


def check_checkpoint(path: Path) -> list[Finding]:
    """Which bytes is this checkpoint, does it load strictly, what has it learned, and what does it say of faces?"""
    digest, (n_bytes, wanted) = "", RELEASED.get(path.name, (0, ""))
    if path.is_file() and os.access(path, os.R_OK):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    source = next((name for name, (_, sha256) in RELEASED.items() if sha256 == digest), "")
    wrong = ""
    if digest and wanted not in ("", digest):
        wrong = f"not what upstream released under this name, {n_bytes} bytes with sha256 {wanted}: download it again"
    try:
        model = load_checkpoint(path)
    except (OSError, RuntimeError, ValueError) as error:
        advice = f"train one with `dfdc train`, or take one of release 0.0.1 of {UPSTREAM}"
        if source:
            advice = f"it is {source} as upstream released it: the libraries do not build its network"
        return [Finding(str(path), False, str(error).splitlines()[0], wrong or advice)]
    card = model.card
    margin = f"margin {card.margin}" if card.margin != "upstream" else "margin a third of the box, as upstream"
    about = f"{card.encoder} at {card.size} px, {margin}, trained on {card.trained_on}; sha256 {digest}"
    about += f", as upstream released {source}" * bool(source)
    return [Finding(str(path), not wrong, about, wrong), check_scores(model, path.name, bool(source))]


def check_scores(model: DeepfakeClassifier, name: str, released: bool = False) -> Finding:
    """What does it say of faces that are known to be real or fake? A released file is never faulted for its answer."""
    crops, labels = known_crops(model.card.margin)
    transform = valid_transforms(model.card.size)
    with torch.inference_mode():
        logits = torch.cat([model(transform(image=crop)["image"][None]) for crop in crops])
    spans = [f"{p.min():.2f} to {p.max():.2f}" for p in (logits[labels == label].sigmoid() for label in (0, 1))]
    found = f"of {len(crops)} faces of the sample, reals score {spans[0]}, fakes {spans[1]}"
    fault, advice = name_fault(logits.numpy(), labels)
    if released:
        fault, advice = "", "the released file, which never saw the sample: these scores are no sign of a fault"
    return Finding(f"scores of {name}", not fault, f"{fault}: {found}" if fault else found, advice)


def name_fault(logits: np.ndarray, labels: np.ndarray) -> tuple[str, str]:
    """What is wrong with a network that gives these answers ("" for nothing that shows), and what to do about it.

    Measured: logits of untrained networks of six kinds spread by 0.00001 to 0.03, after 15 steps of the demo by 0.04,
    after 60 by 2. The AUC was 0.39 to 0.64 for 84 networks that know nothing, 0.81 after 60 steps and 1 after all 450.
    """
    if not np.isfinite(logits).all():
        return "no numbers", "its weights are so large that they overflow: take an earlier checkpoint"
    spread, most = np.ptp(logits), np.abs(logits).max()
    if spread < 0.1 and (spread == 0 or most > 0.2):
        return "constant", "it gives every face the same answer: take an earlier checkpoint, or train it again"
    if spread < 0.1:
        return "untrained", "it gives every face about 0.5, as before the first step: was this file saved too early?"
    order = auc(labels, logits)
    if order <= 0.2:
        return "inverted", "it takes reals for fakes and fakes for reals: in training 1 must be fake, 0 real"
    if order < 0.8 and most < 1.5:
        return "unsure", "it is sure of nothing: hardly trained, or computed by libraries that build another network"
    return "", "" if order >= 0.8 else "it can't tell these apart: no fault in a network that learned from other data"


@cache
def known_crops(margin: float | str) -> tuple[list[np.ndarray], np.ndarray]:
    """Faces as the sample films and fakes them: crops (H, W, 3) uint8 RGB, and their labels, 1 = fake.

    Each of both people with each kind of fake, all crude; nothing is read but the two packaged portraits.
    """
    crops = []
    for seed, (person, method) in enumerate(product(PEOPLE, ("swap", "mouth", "rewarp"))):
        filmed = list(film(Shot(seed, (person,), *SIZES[seed], n_frames=1, crf=0)))
        ((frame, people),), ((fake, _),) = filmed, falsify(filmed, Fake(seed, method, strength=1, crf=0))
        landmarks = people[0].landmarks
        centre, size = landmarks.mean(axis=0), eyes_to_mouth(landmarks)
        box = (*(centre - size * np.array([1.1, 1.4])), *(centre + size * np.array([1.1, 1.2])))  # as MTCNN's, about
        crops += [cut_face(picture, box, margin) for picture in (frame, fake)]
    return crops, np.arange(len(crops)) % 2
