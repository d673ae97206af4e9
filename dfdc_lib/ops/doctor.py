"""What works here, what does not, and what to do about it."""

import importlib.metadata
import os
import platform
import re
import shutil
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
from dfdc_lib.fast.scorers import has_bf16
from dfdc_lib.geometry import cut_face
from dfdc_lib.metadata import read_metadata
from dfdc_lib.metrics import auc
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint
from dfdc_lib.ops.weights import RELEASED, UPSTREAM
from dfdc_lib.rehearsal.film import Shot, film
from dfdc_lib.rehearsal.manipulate import eyes_to_mouth
from dfdc_lib.rehearsal.people import LANDMARKS
from dfdc_lib.rehearsal.sample import METHODS, SIZES, Fake, falsify
from dfdc_lib.store import digest_file

# The logits of `draw_rings` from networks with `formula_weights`, computed in 64 bits.
GOLDEN = {"b3": (1.838554, 0.340911), "b7": (-0.368270, 2.170032)}


class Finding(NamedTuple):
    """One thing that was checked."""

    what: str
    ok: bool
    found: str
    advice: str = ""


def check_environment(place: Path | str = ".") -> list[Finding]:
    """Check Python, the packages that the library needs, the GPU and the disk of `place`."""
    python = Finding("Python", True, platform.python_version())
    needed = importlib.metadata.requires("dfdc-lib") or []
    names = [re.split(r"[^\w.-]", line)[0] for line in needed if "extra ==" not in line]
    faster = "without a GPU, finding faces and scoring are several times faster with it"
    openvino = check_package("openvino", faster)._replace(ok=True)
    free = shutil.disk_usage(place).free / 1e9
    needs = "the demo needs 2 GB, DFDC 470 GB and as much again for crops"
    disk = Finding("free disk", free > 2, f"{free:.0f} GB at {place}", needs)
    return [python, *map(check_package, names), openvino, check_gpu(), disk]


def check_gpu() -> Finding:
    """Check that the installed torch was built for this machine's GPU, if there is one."""
    if not torch.cuda.is_available():
        cores = f"none: {os.cpu_count()} CPU cores do the work, enough for a demo"
        return Finding("GPU", True, cores)
    major, minor = torch.cuda.get_device_capability()
    built = torch.cuda.get_arch_list()
    numbers = "fp16 and bf16" if has_bf16(torch.device("cuda")) else "fp16, not bf16"
    found = f"{torch.cuda.get_device_name()}, {major}.{minor}: computes in {numbers}"
    if any(runs_on(architecture, major, minor) for architecture in built):
        return Finding("GPU", True, found)
    fix = f"torch {torch.__version__} was built for {', '.join(built)}: install another release"
    return Finding("GPU", False, found, fix)


def runs_on(architecture: str, major: int, minor: int) -> bool:
    """Does code built for an architecture, such as sm_75, run on a GPU of this capability?

    sm_75 is for GPUs from 7.5 to 7.9; compute_75 is compiled on the spot, for any from 7.5 on.
    """
    kind, _, number = architecture.partition("_")
    built = divmod(int(re.sub(r"\D", "", number)), 10)
    return built <= (major, minor) and (kind == "compute" or built[0] == major)


def check_package(name: str, why: str = "./run_all.sh installs it") -> Finding:
    """Check that a package is installed, and give its version."""
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", why)


def check_data(data: Path) -> Finding:
    """Check that a folder is a DFDC data set, and that all of it is there."""
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
    """Check the libraries, then each checkpoint; a folder stands for all it holds, at any depth."""
    findings = [check_network(encoder) for encoder in GOLDEN] if paths else []
    for path in map(Path, paths):
        files = [path]
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file())
            files = [file for file in inside if file.suffix == ".pt" or file.name in RELEASED]
            n_here = len(RELEASED.keys() & {file.name for file in files})
            found = f"{n_here} of {len(RELEASED)} by name"
            where = "`dfdc weights` downloads them" if n_here < len(RELEASED) else ""
            findings.append(Finding(f"released weights in {path}", bool(files), found, where))
        for file in files:
            findings += check_checkpoint(file)
    return findings


def check_network(encoder: str) -> Finding:
    """Check, with known weights, that the libraries here build the right network."""
    timm = importlib.metadata.version("timm")
    what = f"{encoder} as timm {timm} and torch {torch.__version__} build it"
    advice = "not upstream's network, so its weights mean nothing here: install requirements.lock"
    try:
        model = DeepfakeClassifier(encoder).eval()
    except RuntimeError as error:  # timm does not know the name
        return Finding(what, False, str(error).splitlines()[0], advice)
    model.load_state_dict(formula_weights(model))
    with torch.inference_mode():
        logits = model(draw_rings(model.card.size)).numpy()
    off = np.abs(logits - GOLDEN[encoder]).max()
    found = f"with weights from a formula, its logits are {off:.0e} off the known ones"
    return Finding(what, bool(off <= 1e-4), found, "" if off <= 1e-4 else advice)


def draw_rings(size: int) -> Tensor:
    """Draw zone plates (2, 3, size, size): edges of all directions and widths."""
    y, x = np.mgrid[-0.7 : 1.3 : size * 1j, -0.7 : 1.3 : size * 1j]
    waves = [2 * np.cos(speed * (x**2 + y**2) + hue) for speed in (20, 80) for hue in range(3)]
    return torch.tensor(np.array(waves, np.float32)).reshape(2, 3, size, size)


def formula_weights(model: nn.Module) -> dict[str, Tensor]:
    """Make weights for an EfficientNet, the same everywhere: scores spread as if it were trained.

    splitmix64 turns each tensor's name and value's place into noise in [-1, 1). So that signals
    neither die nor blow up, kernels are scaled by their fan-in, and residual blocks add little.
    """
    weights = {}
    for name, tensor in model.state_dict().items():
        # 18, where the checksum starts, gives logits of B3 and B7 around 0 for faces.
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
    """Check a checkpoint: its bytes, does it load, what did it learn, how does it score faces?"""
    digest, wrong = "", ""
    if path.is_file() and os.access(path, os.R_OK):
        digest = digest_file(path)
        if path.name in RELEASED and RELEASED[path.name].sha256 != digest:
            wrong = "not what upstream released under this name: `dfdc weights` downloads it"
    source = next((name for name, released in RELEASED.items() if released.sha256 == digest), "")
    try:
        model = load_checkpoint(path)
    except (OSError, RuntimeError, ValueError) as error:
        advice = f"train one with `dfdc train`, or take one from release 0.0.1 of {UPSTREAM}"
        if source:
            advice = f"upstream released it as {source}: the libraries do not build its network"
        return [Finding(str(path), False, str(error).splitlines()[0], wrong or advice)]
    card = model.card
    about = f"{card.encoder} at {card.size} px, margin {card.margin}, trained on {card.trained_on}"
    about += f"; sha256 {digest}" + (f", as upstream released {source}" if source else "")
    return [Finding(str(path), not wrong, about, wrong), check_scores(model, path.name)]


def check_scores(model: DeepfakeClassifier, name: str) -> Finding:
    """Check what a network says about known faces."""
    crops, labels = known_crops(model.card.margin)
    transform = valid_transforms(model.card.size)
    with torch.inference_mode():
        logits = torch.cat([model(transform(image=crop)["image"][None]) for crop in crops])
    groups = [logits[labels == label].sigmoid() for label in (0, 1)]
    reals, fakes = (f"{p.min():.2f} to {p.max():.2f}" for p in groups)
    found = f"of {len(crops)} faces of the sample, reals score {reals}, fakes {fakes}"
    knows = model.card.trained_on == "sample"
    fault = name_fault(logits.numpy(), labels, knows)
    advice = "" if knows else "it learned from other data: it need not tell these apart"
    return Finding(f"scores of {name}", not fault, found, fault or advice)


def name_fault(logits: np.ndarray, labels: np.ndarray, knows: bool) -> str:
    """What is wrong with a network that gives these logits; "" if nothing is.

    knows: it learned from the sample. Measured: logits spread by 0.001 to 0.01 in untrained tiny
    networks and by 0.3 to 1.5 in untrained lite0, by 2.6 after 20 steps of the demo, by 7 after all
    75. The AUC was 0.31 to 0.69 for 60 networks that know nothing, 0.83 after 20 steps, 0.95 after
    all.
    """
    if not np.isfinite(logits).all():
        return "not finite: its weights overflow; take an earlier checkpoint"
    if np.ptp(logits) < 0.1:
        return "one answer for every face: it is untrained, or its training diverged"
    if knows and auc(labels, logits) < 0.8:
        return "it learned such faces but can't tell them apart: hardly trained, or labels swapped"
    return ""


@cache
def known_crops(margin: Margin) -> tuple[list[np.ndarray], np.ndarray]:
    """Film both people with each crude fake: crops (H, W, 3) uint8 RGB, and labels (1 = fake)."""
    crops = []
    for seed, (person, method) in enumerate(product(LANDMARKS, METHODS)):
        shot = Shot(seed, (person,), *SIZES[seed], n_frames=1, crf=0, camera_crf=0)
        (filmed,) = film(shot)
        ((fake, _),) = falsify(shot, [filmed], Fake(seed, method, 1, crf=0))
        frame, (landmarks,) = filmed
        centre, size = landmarks.mean(axis=0), eyes_to_mouth(landmarks)
        low, high = centre - size * np.array([1.1, 1.4]), centre + size * np.array([1.1, 1.2])
        box = (*low, *high)  # roughly as MTCNN's
        crops += [cut_face(picture, box, margin) for picture in (frame, fake)]
    return crops, np.arange(len(crops)) % 2
