"""What all benchmarks share: rivals that take turns, and tables that name the machine."""

import datetime
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch


def wait() -> None:
    """Let the GPU finish, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Compute fp32 in 24 bits: convolutions on a card keep ten (TF32) unless they are told."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def time_call(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def alternate(rivals: dict[str, Callable[[], object]], repetitions: int) -> pd.DataFrame:
    """Seconds of each rival: columns are the rivals, rows the repetitions.

    The rivals take turns, so that what slows the machine down for a while slows all of them. A
    first round is not counted.
    """
    seconds = []
    for _ in range(repetitions + 1):
        seconds.append({name: time_call(run) for name, run in rivals.items()})
    return pd.DataFrame(seconds[1:])


def compare(seconds: pd.DataFrame, ours: str, peer: str) -> dict[str, float]:
    """Medians, and how many times as fast `ours` is: the rounds' median ratio, with the range."""
    ratios = seconds[peer] / seconds[ours]
    return {
        "ours_s": seconds[ours].median(),
        "peer_s": seconds[peer].median(),
        "ratio": float(np.median(ratios)),
        "ratio_low": ratios.min(),
        "ratio_high": ratios.max(),
    }


def stamp(*packages: str) -> dict[str, str]:
    """The machine, the date and the versions, for each line of a table."""
    device = f"{_processor()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    versions = " ".join(f"{name} {_version(name)}" for name in ("torch", *packages))
    return {"machine": device, "date": datetime.date.today().isoformat(), "versions": versions}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
