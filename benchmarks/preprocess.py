"""Preprocessing an original: one pass against upstream's procedure, against decoding alone; its growth and memory."""

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
from dfdc_lib.config import TRAIN_THRESHOLDS, PreprocessConfig
from dfdc_lib.paths import WorkFolder
from dfdc_lib.preprocess import preprocess

PACKAGES = ("facenet-pytorch", "openvino", "numba", "opencv-python-headless")
STAGES = ("detect", "crop")


def run(repetitions: int = 3) -> list[dict]:
    """Seconds for a 1080p video of 300 frames in one process."""
    clip = make_clip()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        data, peer = make_data(root, clip), MTCNN(keep_all=True, thresholds=list(TRAIN_THRESHOLDS), device=device)
        rivals = {
            "one pass": lambda: preprocess(data, fresh(root), PreprocessConfig(), stages=STAGES),
            "decoding alone": lambda: decode(clip),
            "upstream's procedure": lambda: follow_upstream(clip, Path(tempfile.mkdtemp(dir=root)), peer),
        }
        seconds = alternate(rivals, repetitions)
        seconds["two workers"] = time_workers(root, clip, repetitions)
    line = {"benchmark": "preprocess"}
    return [
        line | {"ours": ours, "peer": peer} | compare(seconds, ours, peer)
        for ours in ("one pass", "two workers")
        for peer in list(rivals)[1:]
    ]


def time_workers(root: Path, clip: Path, repetitions: int, n_few: int = 4, n_many: int = 16) -> list[float]:
    """Seconds a video by two workers, once they run: what `n_many` videos take longer than `n_few`, by their number."""
    few, many = (make_data(root, clip, count) for count in (n_few, n_many))
    rivals = {
        name: lambda data=data: preprocess(data, fresh(root), PreprocessConfig(), workers=2, stages=STAGES)
        for name, data in (("few", few), ("many", many))
    }
    seconds = alternate(rivals, repetitions)
    return ((seconds.many - seconds.few) / (n_many - n_few)).tolist()


def fresh(root: Path) -> WorkFolder:
    return WorkFolder(Path(tempfile.mkdtemp(dir=root)))


def decode(clip: Path) -> None:
    """What no procedure can do without: every frame decoded in one thread, every tenth made a picture."""
    capture, number = cv2.VideoCapture(str(clip), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), 0
    while capture.grab():
        if number % 10 == 0:
            capture.retrieve()
        number += 1


def follow_upstream(clip: Path, out: Path, peer: MTCNN, batch: int = 32) -> None:
    """Upstream's two scripts: every frame held in memory, halved and searched; then decoded again and cropped."""
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
            crop = frame[max(int(y0) - pad_y, 0) : int(y1) + pad_y, max(int(x0) - pad_x, 0) : int(x1) + pad_x]
            cv2.imwrite(str(out / f"{number}_{face}.png"), crop)


def measure_growth(repetitions: int = 3) -> pd.DataFrame:
    """Seconds for 1, 2, 4 and 8 times as many videos, and as many frames: one line a size and repetition."""
    with tempfile.TemporaryDirectory() as folder:
        root, config, rivals = Path(folder), PreprocessConfig(), {}
        short = make_clip(75, 1280, 720)
        for times in (1, 2, 4, 8):
            videos = make_data(root, short, times)
            frames = make_data(root / f"long_{times}", make_clip(75 * times, 1280, 720))
            for kind, data in (("videos", videos), ("frames", frames)):
                rivals[f"{kind} {times}"] = lambda data=data: preprocess(data, fresh(root), config, stages=STAGES)
        seconds = alternate(rivals, repetitions).median()
    lines = [(*name.split(), value) for name, value in seconds.items()]
    table = pd.DataFrame(lines, columns=["grows", "times", "seconds"]).astype({"times": int})
    return table.assign(per_unit=table.seconds / table.times)


def measure_memory(n_videos: int = 100) -> pd.DataFrame:
    """Peak memory of a worker over many 1080p videos, in a process of its own: one line after each video."""
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder), make_clip(40), n_videos)
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.preprocess", str(data), str(Path(folder) / "work")]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    return pd.DataFrame([json.loads(line) for line in lines if line.startswith("{")])


def report_memory(data: Path, work: Path) -> None:
    """Be a worker; after each video print its memory in MB: all that is resident, and what it wrote itself.

    The difference is mostly the code of libraries, which every worker of a machine shares.
    """
    from dfdc_lib.tasks import use_cores

    def tell(done: int, total: int) -> None:
        lines = (line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().split("\n")[1:-1])
        megabytes = {name: int(value.split()[0]) / 1024 for name, value in lines}
        told = {"videos": done, "resident_mb": megabytes["Rss"], "own_mb": megabytes["Private_Dirty"]}
        print(json.dumps(told), flush=True)

    use_cores(1)
    preprocess(data, WorkFolder(work), PreprocessConfig(), stages=STAGES, progress=tell)


if __name__ == "__main__":
    report_memory(Path(sys.argv[1]), Path(sys.argv[2]))
