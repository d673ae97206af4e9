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
from dfdc_lib.config import Margin
from dfdc_lib.geometry import cut_face
from dfdc_lib.metadata import read_metadata
from dfdc_lib.metrics import auc
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint
from dfdc_lib.rehearsal.manipulate import eyes_to_mouth
from dfdc_lib.rehearsal.sample import LANDMARKS, PEOPLE, SIZES, Fake, Shot, falsify, film, portrait

UPSTREAM = "https://github.com/selimsef/dfdc_deepfake_challenge"
# Release 0.0.1: seven B7 from five seeds; a name ends with fold and epoch. Of each file its bytes
# and sha256, from the Git LFS pointers of the same files elsewhere: the release has none.
RELEASED = {
    f"final_{seed}_DeepFakeClassifier_tf_efficientnet_b7_ns_{epoch}": (266_910_600 + more, digest)
    for seed, epoch, more, digest in (
        (111, "0_36", 17, "9db77ab9318863e2f8ab287c8eb83c2232584b82dc2fb41f1d614ddd7900cccb"),
        (555, "0_19", 18, "e2f0066a8ff036add2f5b418d2eba1051c2d2788f84168f00a85207f3b666e04"),
        (777, "0_29", 17, "9fe4311d551a9cbaa1475dbcd6b15fccb31a1e17a8d63069e90a8899aef03b5c"),
        (777, "0_31", 17, "00dd6cd9466cddfd7da7c333d8fecae81593307827093deaf4d7cdf704bc8bfa"),
        (888, "0_37", 15, "d4a2bb4aefde59e045463ad469ed9660765beb086f65a09f9478ab060d403c7c"),
        (888, "0_40", 13, "c1d326a6651011390efe602e42cb8228232d6d18a15c404cf85d7233482f6d6d"),
        (999, "0_23", 15, "849036dc211387420412feb68c7451e98a948072b94e213e1104e2f2bf7791ad"),
    )
}
# The logits of the two packaged portraits by networks with `formula_weights`, computed in 64 bits,
# and the portraits' CRC.
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
    newer = "use Python 3.11 or newer"
    python = Finding("Python", sys.version_info >= (3, 11), platform.python_version(), newer)
    try:
        needed = importlib.metadata.requires("dfdc-lib") or []
    except importlib.metadata.PackageNotFoundError:
        needed = ["dfdc-lib"]
    names = [re.split(r"[^\w.-]", line)[0] for line in needed if "extra ==" not in line]
    cuda = torch.cuda.is_available()
    faster = "" if cuda else "finding faces and scoring are several times faster with it"
    openvino = _check_package("openvino", faster)._replace(ok=True)
    gpu = Finding("GPU", True, f"none: {os.cpu_count()} CPU cores do the work", "enough for a demo")
    if cuda:
        gpu = Finding("GPU", True, torch.cuda.get_device_name())
    free = shutil.disk_usage(".").free / 1e9
    needs = "the demo needs 2 GB, DFDC 470 GB and as much again for crops"
    disk = Finding("free disk", free > 2, f"{free:.0f} GB", needs)
    return [python, *map(_check_package, names), openvino, gpu, disk]


def _check_package(name: str, why: str = "./run_all.sh installs it") -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", why)


def check_data(data: Path) -> Finding:
    """Is this folder a DFDC data set, and is it all there?"""
    try:
        table = read_metadata(data)
    except (FileNotFoundError, ValueError) as error:
        how = "data/README.md says how to get DFDC; `dfdc sample` makes the sample"
        return Finding("data", False, str(error), how)
    present = sum(os.path.exists(Path(data) / file) for file in table.file)
    found = f"{present} of {len(table)} videos, {table.part.nunique()} parts"
    advice = "a partial download: what is here is used" if present < len(table) else ""
    return Finding("data", present > 0, found, advice)


def check_checkpoints(paths: Sequence[Path]) -> list[Finding]:
    """The libraries that will compute, then each checkpoint, of a folder all at any depth."""
    findings = [check_network(encoder) for encoder in GOLDEN] if paths else []
    for path in map(Path, paths):
        findings += _check_folder(path) if path.is_dir() else check_checkpoint(path)
    return findings


def _check_folder(path: Path) -> list[Finding]:
    """All checkpoints inside, and which of upstream's seven files are not there."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    inside = [file for file in files if file.suffix == ".pt" or file.name in RELEASED]
    absent = RELEASED.keys() - {file.name for file in inside}
    where = f"release 0.0.1 of {UPSTREAM} has the others" if absent else ""
    found = f"{len(RELEASED) - len(absent)} of {len(RELEASED)} by name"
    released = Finding(f"released weights in {path}", bool(inside), found, where)
    return [released, *(finding for file in inside for finding in check_checkpoint(file))]


def check_network(encoder: str) -> Finding:
    """Do the libraries here build the network that they should? Known weights: known answers."""
    timm = importlib.metadata.version("timm")
    what = f"{encoder} as timm {timm} and torch {torch.__version__} build it"
    crc = zlib.crc32(portrait("hopper").tobytes(), zlib.crc32(portrait("collins").tobytes()))
    if crc != PORTRAITS_CRC:
        unknown = "can't be told: the packaged portraits are read as other pixels than elsewhere"
        return Finding(what, True, unknown)
    advice = "not upstream's network, whose weights mean nothing to it: install requirements.lock"
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
    """The faces of the two portraits, cut out, not resized: (2, 3, size, size), normalised."""
    windows = []
    for person in PEOPLE:
        picture, centre = portrait(person), np.mean(LANDMARKS[person], axis=0).astype(int)
        x, y = np.clip(centre - size // 2, 0, np.array(picture.shape[1::-1]) - size)
        windows.append(valid_transforms(size)(image=picture[y : y + size, x : x + size])["image"])
    return torch.stack(windows)


def formula_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights for an EfficientNet without a download; its scores spread as if it were trained.

    They are the same everywhere: from each tensor's name and each value's place in it comes noise
    in [-1, 1), by splitmix64. Kernels are scaled by their fan-in, so that signals neither die nor
    blow up; blocks that are added to what came in (all but the first of a stage) add a little.
    """
    weights = {}
    for name, tensor in model.state_dict().items():
        # From 18, where the checksum starts, come logits of B3 and B7 around 0 for the portraits.
        start = np.uint64(zlib.crc32(name.encode(), 18)) << np.uint64(32)
        bits = np.arange(tensor.numel(), dtype=np.uint64) + start
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
        values = (bits >> np.uint64(11)) * 2.0**-52 - 1
        if tensor.ndim > 1:
            values *= np.sqrt((7.5 if tensor.ndim == 4 else 1.0) / tensor[0].numel())
        elif name.endswith(("weight", "running_var")):
            values = 1 + values / 3
            if re.search(r"blocks\.\d+\.[1-9].*weight", name):
                values *= 0.3
        else:
            values /= 10
        weights[name] = torch.from_numpy(values).reshape(tensor.shape).to(tensor.dtype)
    return weights


def check_checkpoint(path: Path) -> list[Finding]:
    """Which bytes is it, does it load strictly, what has it learned, what does it say of faces?"""
    digest, (n_bytes, wanted) = "", RELEASED.get(path.name, (0, ""))
    if path.is_file() and os.access(path, os.R_OK):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    source = next((name for name, (_, sha256) in RELEASED.items() if sha256 == digest), "")
    wrong = ""
    if digest and wanted not in ("", digest):
        original = f"{n_bytes} bytes with sha256 {wanted}"
        wrong = f"not what upstream released under this name, {original}: download it again"
    try:
        model = load_checkpoint(path)
    except (OSError, RuntimeError, ValueError) as error:
        advice = f"train one with `dfdc train`, or take one of release 0.0.1 of {UPSTREAM}"
        if source:
            released = f"it is {source} as upstream released it"
            advice = f"{released}: the libraries do not build its network"
        return [Finding(str(path), False, str(error).splitlines()[0], wrong or advice)]
    card = model.card
    about = f"{card.encoder} at {card.size} px, margin {card.margin}, trained on {card.trained_on}"
    about += f"; sha256 {digest}" + (f", as upstream released {source}" if source else "")
    scores = check_scores(model, path.name, bool(source))
    return [Finding(str(path), not wrong, about, wrong), scores]


def check_scores(model: DeepfakeClassifier, name: str, released: bool = False) -> Finding:
    """What does it say of known faces? A released file is never faulted for its answer."""
    crops, labels = known_crops(model.card.margin)
    transform = valid_transforms(model.card.size)
    with torch.inference_mode():
        logits = torch.cat([model(transform(image=crop)["image"][None]) for crop in crops])
    groups = [logits[labels == label].sigmoid() for label in (0, 1)]
    reals, fakes = (f"{p.min():.2f} to {p.max():.2f}" for p in groups)
    found = f"of {len(crops)} faces of the sample, reals score {reals}, fakes {fakes}"
    fault, advice = name_fault(logits.numpy(), labels)
    if released:
        fault, advice = "", "it never saw the sample: these scores are no sign of a fault"
    return Finding(f"scores of {name}", not fault, f"{fault}: {found}" if fault else found, advice)


def name_fault(logits: np.ndarray, labels: np.ndarray) -> tuple[str, str]:
    """What is wrong with a network that answers so, "" for nothing that shows, and what to do.

    Measured: logits of untrained networks of six kinds spread by 0.00001 to 0.03, after 15 steps of
    the demo by 0.04, after 60 by 2. The AUC was 0.39 to 0.64 for 84 networks that know nothing,
    0.81 after 60 steps and 1 after all 450.
    """
    if not np.isfinite(logits).all():
        return "no numbers", "its weights overflow: take an earlier checkpoint"
    spread, most = float(np.ptp(logits)), np.abs(logits).max()
    if spread < 0.1 and (spread == 0 or most > 0.2):
        return "constant", "one answer to every face: take an earlier checkpoint, or train again"
    if spread < 0.1:
        return "untrained", "about 0.5 for every face: was this file saved before the first step?"
    order = auc(labels, logits)
    if order <= 0.2:
        return "inverted", "it takes reals for fakes: in training 1 must be fake, 0 real"
    if order < 0.8 and most < 1.5:
        return "unsure", "hardly trained, or computed by libraries that build another network"
    if order < 0.8:
        return "", "it can't tell these apart: no fault in a network that learned from other data"
    return "", ""


@cache
def known_crops(margin: Margin) -> tuple[list[np.ndarray], np.ndarray]:
    """Faces as the sample films and fakes them: crops (H, W, 3) uint8 RGB, and labels, 1 = fake.

    Each of both people with each kind of fake, all crude; nothing is read but the two portraits.
    """
    crops = []
    for seed, (person, method) in enumerate(product(PEOPLE, ("swap", "mouth", "rewarp"))):
        filmed = list(film(Shot(seed, (person,), *SIZES[seed], n_frames=1, crf=0)))
        (frame, people), (fake, _) = filmed[0], *falsify(filmed, Fake(seed, method, 1, crf=0))
        landmarks = people[0].landmarks
        centre, size = landmarks.mean(axis=0), eyes_to_mouth(landmarks)
        low, high = centre - size * np.array([1.1, 1.4]), centre + size * np.array([1.1, 1.2])
        box = (*low, *high)  # as MTCNN's, about
        crops += [cut_face(picture, box, margin) for picture in (frame, fake)]
    return crops, np.arange(len(crops)) % 2
