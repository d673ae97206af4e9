"""The plan, part by part, most valuable first; a table for each, written as it grows."""

import argparse
import faulthandler
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from benchmarks.gpu import correctness, detector, encoders, predict, training
from benchmarks.gpu.figure import draw
from benchmarks.gpu.prepare import FOLDER
from benchmarks.gpu.setting import Setting
from benchmarks.measure import stamp

HERE = Path(__file__).parent
PACKAGES = ("torchvision", "timm", "accelerate", "facenet-pytorch", "albumentations")


class Part(NamedTuple):
    """One table: what it answers, which share of the time it may take, what measures it."""

    name: str
    question: str
    share: float
    measures: tuple[Callable[[Setting], Iterator[dict]], ...]


CHECKS = (
    correctness.check_detector,
    correctness.check_scores,
    correctness.check_training,
    correctness.check_sync_batchnorm,
)
PLAN = (
    Part("correctness", "are the card's answers the CPU's?", 0.18, CHECKS),
    Part("training", "how many pictures a second?", 0.22, (training.measure_steps,)),
    Part("loader", "how many processes feed it?", 0.05, (training.measure_loader,)),
    Part("predict", "how many videos a second?", 0.22, (predict.measure_videos,)),
    Part("stages", "what bounds a verdict?", 0.04, (predict.measure_stages,)),
    Part("detector", "how many frames a second?", 0.05, (detector.measure_detector,)),
    Part("encoders", "do all five train?", 0.24, (encoders.measure_runs,)),
)


def run_plan(setting: Setting, minutes: float, out: Path) -> list[str]:
    """Run the parts, each until its share of the time is over; return what failed.

    What a part leaves of its time goes to those after it. A table replaces its old one when its
    first line is there, and grows line by line.
    """
    out.mkdir(parents=True, exist_ok=True)
    end, failed = time.perf_counter() + 60 * minutes, []
    for number, part in enumerate(PLAN):
        now, rest = time.perf_counter(), sum(later.share for later in PLAN[number:])
        own = replace(setting, until=now + max(end - now, 0) * part.share / rest)
        print(f"\n{part.name}: {part.question} ({(own.until - now) / 60:.1f} minutes)", flush=True)
        lines: list[dict] = []
        for measure in part.measures:
            try:
                for line in measure(own):
                    lines.append(line)
                    print("  " + describe(line), flush=True)
                    write_table(out / f"{part.name}.csv", lines)
            except Exception:  # the other parts' answers must not be lost
                traceback.print_exc()
                failed.append(f"{part.name}: {measure.__name__}")
        print(f"  {(time.perf_counter() - now) / 60:.1f} minutes", flush=True)
    return failed


def describe(line: dict) -> str:
    """A line of a table, to read while it is made."""
    values = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in line.items()}
    return " · ".join(f"{name}: {value}" for name, value in values.items())


def write_table(path: Path, lines: list[dict]) -> None:
    """Write the lines with card, driver, date and versions."""
    about = stamp(*PACKAGES)
    about["machine"] += driver()
    pd.DataFrame(lines).assign(**about).to_csv(path, index=False, float_format="%.4g")


@cache
def driver() -> str:
    """The driver's version, as nvidia-smi says it; "" where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if not (torch.cuda.is_available() and shutil.which(command[0])):
        return ""
    told = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return f", driver {told[0]}" if told else ""


def list_plan(minutes: float) -> str:
    """The plan with the minutes that each part may take."""
    lines = [f"  {p.name:12} {p.share * minutes:4.1f} minutes  {p.question}" for p in PLAN]
    return "\n".join([f"{minutes:g} minutes:", *lines])


def main(arguments: list[str]) -> int:
    """Measure what the time allows; 1 if a part failed, or a check doesn't hold."""
    parser = argparse.ArgumentParser(
        "benchmarks gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5, help="for all parts")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="what `gpu-prepare` made")
    parser.add_argument("--pretrained", type=Path, help="a folder with timm's weights of B3 to B7")
    parser.add_argument("--out", type=Path, help="where the tables go; default: beside this file")
    parser.add_argument("--rehearse", action="store_true", help="every part in small, on the CPU")
    args = parser.parse_args(arguments)
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("there is no graphics card here: --rehearse runs every part on the CPU")
    if not (args.folder / "work").is_dir():
        parser.error(f"{args.folder} holds no crops: run `python -m benchmarks gpu-prepare` first")
    print(*stamp(*PACKAGES).values(), driver(), sep=" · ")
    print(list_plan(args.minutes))
    out = args.out or (args.folder / "rehearsal" if args.rehearse else HERE)
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(args.folder / "work", Path(scratch) / "work")
        setting = Setting(args.folder, Path(scratch), args.rehearse, args.pretrained)
        if not args.rehearse:  # a lent card must not wait: say where it hangs, and end
            hung = 60 * args.minutes + 120
            faulthandler.dump_traceback_later(hung, exit=True, file=sys.__stderr__)
        failed = run_plan(setting, args.minutes, out)
        faulthandler.cancel_dump_traceback_later()
    draw(out, out / "gpu.png")
    checks = out / "correctness.csv"
    if checks.exists() and not (table := pd.read_csv(checks)).holds.all():
        failed += [f"doesn't hold: {check}" for check in table[~table.holds].check]
    print(f"\ntables: {out}", *failed, sep="\n", file=sys.stderr if failed else sys.stdout)
    return int(bool(failed))
