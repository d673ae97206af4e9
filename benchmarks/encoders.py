"""What a training step of each encoder costs on this machine, in seconds and in memory.

    python -m benchmarks.encoders [--encoders lite0,b5] [--seconds 600]

The loop of `train.Trainer.fit` in fp32 and channels last, with the encoder's own picture size and
batch. A batch goes through in as few parts as fit into --memory. Each encoder gets a process of its
own, so that the peak of memory, libraries included, is its own. Replaces the lines of these
encoders in benchmarks/encoders.csv (all of them: about 10 minutes on two CPU cores).
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.measure import stamp, time_call
from benchmarks.train_step import OurLoop, make_loop
from dfdc_lib.config import ENCODERS, TrainConfig
from dfdc_lib.ops.cost import cost_of

HERE = Path(__file__).parent
MOST_STEPS = 5
ALIKE = 1.05  # steps that differ by less than this factor need no repeating


def measure_encoder(encoder: str, batch: int, gigabytes: float, seconds: float) -> dict:
    """Measure for about `seconds`, at least one step; return a line of the table.

    gigabytes: for the activations of one part. Call it in a process of its own.
    """
    until, cost = time.perf_counter() + seconds, cost_of(encoder)
    pictures = max(int(gigabytes * 1e9 / cost.kept_bytes), 1)  # of one part
    config = TrainConfig(encoder=encoder, batch=batch, accumulate=-(-batch // pictures))
    with tempfile.TemporaryDirectory() as folder:
        loop = make_loop(config, Path(folder))
        warm_up(loop)
        taken = repeat_until(loop.take_step, until)
    line = {"encoder": encoder, "size": config.input_size, "batch": batch} | cost._asdict()
    line |= {"parts": config.accumulate, "steps": len(taken), "step_s": float(np.median(taken))}
    return line | {"low_s": min(taken), "high_s": max(taken), "peak_gb": peak_memory()}


def warm_up(loop: OurLoop) -> None:
    """Take a step with the first part of the batch alone."""
    config, given = loop.config, loop.given
    pictures, labels = (whole.tensor_split(config.accumulate)[0] for whole in given)
    loop.config, loop.given = replace(config, accumulate=1), (pictures, labels)
    loop.take_step()
    loop.config, loop.given = config, given


def repeat_until(run: Callable[[], object], until: float) -> list[float]:
    """Seconds per call: one call, and more of them until they agree or `until` is reached."""
    taken = [time_call(run)]
    while len(taken) < MOST_STEPS and time.perf_counter() + taken[-1] < until:
        taken.append(time_call(run))
        last = taken[-3:]
        if len(last) == 3 and max(last) < ALIKE * min(last):
            break
    return taken


def peak_memory() -> float:
    """The most GB that this process has held; with a GPU, of the GPU's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def measure_alone(encoder: str, *arguments: float) -> dict:
    """`measure_encoder` in a process of its own. Raises MemoryError if it dies."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure_encoder, encoder, *arguments).result()
        except BrokenProcessPool as error:
            fix = "most likely for lack of memory: give a smaller --memory"
            raise MemoryError(f"the process of {encoder} was killed, {fix}") from error


def write_line(path: Path, line: dict) -> None:
    """Put a line into the table in place of its encoder's old one, in the order of ENCODERS."""
    lines = [pd.DataFrame([line | stamp("timm", "accelerate")])]
    if path.exists():
        lines.append(pd.read_csv(path).query("encoder != @line['encoder']"))
    places = {name: place for place, name in enumerate(ENCODERS)}
    table = pd.concat(lines).sort_values("encoder", key=lambda names: names.map(places))
    table.to_csv(path, index=False, float_format="%.4g")


def main() -> None:
    """Measure the encoders that are named, and write the table after each of them."""
    everything = ",".join(name for name in ENCODERS if name != "tiny")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoders", default=everything)
    parser.add_argument("--batch", type=int, help="default: the encoder's own")
    parser.add_argument("--seconds", type=float, default=600, help="roughly, for all of them")
    parser.add_argument("--memory", type=float, default=8, help="GB for the activations of a part")
    parser.add_argument("--out", type=Path, default=HERE / "encoders.csv")
    args = parser.parse_args()
    names, until = args.encoders.split(","), time.perf_counter() + args.seconds
    if unknown := set(names) - set(ENCODERS):
        parser.error(f"--encoders: {', '.join(unknown)} must be among {', '.join(ENCODERS)}")
    for place, name in enumerate(names):
        share = (until - time.perf_counter()) / (len(names) - place)
        batch = args.batch or ENCODERS[name].batch
        line = measure_alone(name, batch, args.memory, share)
        write_line(args.out, line)
        print(line, flush=True)


if __name__ == "__main__":
    main()
