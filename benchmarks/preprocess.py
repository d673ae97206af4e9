"""Preprocess an original: one pass against upstream's two scripts, and against decoding alone."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from facenet_pytorch import MTCNN

from benchmarks.clips import make_clip, make_data
from benchmarks.measure import alternate, compare
from dfdc_lib.config import TRAIN_THRESHOLDS
from dfdc_lib.jobs import use_cores
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.store import WorkFolder

PACKAGES = ("facenet-pytorch", "openvino", "numba", "opencv-python-headless")
STAGES = ("detect", "crop")


def run(repetitions: int = 3) -> list[dict]:
    """Seconds for a 1080p video of 300 frames in one process."""
    clip = make_clip()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = MTCNN(keep_all=True, thresholds=list(TRAIN_THRESHOLDS), device=device)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = make_data(root, clip)
        rivals = {
            "one pass": lambda: preprocess(data, fresh(root), stages=STAGES),
            "decoding alone": lambda: decode(clip),
            "upstream's procedure": lambda: follow_upstream(clip, fresh(root).root, peer),
        }
        seconds = alternate(rivals, repetitions)
        seconds["two workers"] = time_workers(root, clip, repetitions)
    line = {"benchmark": "preprocess"}
    return [
        line | {"ours": ours, "peer": peer} | compare(seconds, ours, peer)
        for ours in ("one pass", "two workers")
        for peer in list(rivals)[1:]
    ]


def time_workers(
    root: Path, clip: Path, repetitions: int, n_few: int = 4, n_many: int = 16
) -> list[float]:
    """Seconds per video with two workers once they run: what each further video takes."""
    data = {count: make_data(root, clip, count) for count in (n_few, n_many)}

    def run_over(count: int) -> None:
        preprocess(data[count], fresh(root), workers=2, stages=STAGES)

    rivals = {"few": lambda: run_over(n_few), "many": lambda: run_over(n_many)}
    seconds = alternate(rivals, repetitions)
    return ((seconds.many - seconds.few) / (n_many - n_few)).tolist()


def fresh(root: Path) -> WorkFolder:
    return WorkFolder(Path(tempfile.mkdtemp(dir=root)))


def decode(clip: Path) -> None:
    """What everyone must do: decode every frame in one thread, make every tenth a picture."""
    capture, number = cv2.VideoCapture(str(clip), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), 0
    while capture.grab():
        if number % 10 == 0:
            capture.retrieve()
        number += 1


def follow_upstream(clip: Path, out: Path, peer: MTCNN, batch: int = 32) -> None:
    """Upstream's two scripts: hold all frames, halve them, detect; decode again and crop."""
    capture, frames = cv2.VideoCapture(str(clip)), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    half = [cv2.resize(frame, (frame.shape[1] // 2, frame.shape[0] // 2)) for frame in frames]
    boxes = []
    for i in range(0, len(half), batch):
        boxes += list(peer.detect(np.stack(half[i : i + batch]))[0])
    found = {i: None if b is None else (b.astype(float) * 2).tolist() for i, b in enumerate(boxes)}
    (out / "boxes.json").write_text(json.dumps(found))
    capture = cv2.VideoCapture(str(clip))
    for number in range(len(frames)):
        _, frame = capture.read()
        for face, (x0, y0, x1, y1) in enumerate(found[number] or () if number % 10 == 0 else ()):
            pad_x, pad_y = (int(x1) - int(x0)) // 3, (int(y1) - int(y0)) // 3
            crop = frame[
                max(int(y0) - pad_y, 0) : int(y1) + pad_y, max(int(x0) - pad_x, 0) : int(x1) + pad_x
            ]
            cv2.imwrite(str(out / f"{number}_{face}.png"), crop)


def measure_growth(repetitions: int = 3) -> pd.DataFrame:
    """Seconds for 1, 2, 4 and 8 times as many videos, and frames: one line per size."""
    with tempfile.TemporaryDirectory() as folder:
        root, data = Path(folder), {}
        for times in (1, 2, 4, 8):
            data[f"videos {times}"] = make_data(root, make_clip(75, 1280, 720), times)
            long = make_clip(75 * times, 1280, 720)
            data[f"frames {times}"] = make_data(root / f"long_{times}", long)
        rivals = {
            name: lambda some=some: preprocess(some, fresh(root), stages=STAGES)
            for name, some in data.items()
        }
        seconds = alternate(rivals, repetitions).median()
    lines = [(*name.split(), value) for name, value in seconds.items()]
    table = pd.DataFrame(lines, columns=["grows", "times", "seconds"]).astype({"times": int})
    return table.assign(per_unit=table.seconds / table.times)


def measure_memory(n_videos: int = 100) -> pd.DataFrame:
    """Memory of a process after each of many 1080p videos: one line per video."""
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder), make_clip(40), n_videos)
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.preprocess"]
        command += [str(data), str(Path(folder) / "work")]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return pd.DataFrame([json.loads(line) for line in told.split("\n") if line.startswith("{")])


def report_memory(data: Path, work: Path) -> None:
    """Preprocess on one core; after each video print the memory in MB, resident and its own.

    The difference is mostly the code of libraries, which all workers of a machine share.
    """

    def tell(done: int, total: int) -> None:
        told = Path("/proc/self/smaps_rollup").read_text().split("\n")[1:-1]
        pairs = (line.split(":") for line in told)
        megabytes = {name: int(value.split()[0]) / 1024 for name, value in pairs}
        memory = {"resident_mb": megabytes["Rss"], "own_mb": megabytes["Private_Dirty"]}
        print(json.dumps({"videos": done} | memory), flush=True)

    use_cores(1)
    preprocess(data, WorkFolder(work), stages=STAGES, progress=tell)


if __name__ == "__main__":
    report_memory(Path(sys.argv[1]), Path(sys.argv[2]))
