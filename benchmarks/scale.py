"""The bookkeeping of a full challenge, simulated: seconds and peak memory of each step at an eighth of it up to all.

119,154 videos in 50 parts, with manifests, boxes and folders as preprocessing leaves them. The videos are empty files,
and the 6.6 million crops and masks are names (hard links) of a few small pictures: every folder, name and record that
a step looks at is there, but their bytes are not, and all was written just before, so no step waits for the disk.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from benchmarks.clips import FOLDER
from benchmarks.measure import stamp
from dfdc_lib.config import DEMO_TRAINING, PreprocessConfig, TrainConfig
from dfdc_lib.dataset import check_files, epoch_order, pair, read_folds, split_fold
from dfdc_lib.estimate import peak_memory
from dfdc_lib.metadata import assign_folds, read_metadata
from dfdc_lib.paths import WorkFolder, write_png
from dfdc_lib.preprocess import Family, collect_status, write_folds

HERE = Path(__file__).parent
PACKAGES = ("pandas", "numpy", "pyarrow")
N_ORIGINALS, N_FAKES, N_PARTS, N_FRAMES = 19_154, 100_000, 50, 30
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
LIMIT_SECONDS, LIMIT_GB = 60, 2  # aimed at, of each step at full size
CONFIG = PreprocessConfig()
FACE_FILES = [f"{CONFIG.every * number}_0.png" for number in range(N_FRAMES)]
MAX_LINKS = 60_000  # of one file; ext4 takes 65,000
TIME = 10**18  # every video's time of change, ns


def name_video(number: int) -> str:
    """Ten letters, as DFDC has them, without order."""
    mixed, letters = number * 6_364_136_223_846_793_005 % 26**10, []
    for _ in range(10):
        mixed, letter = divmod(mixed, 26)
        letters.append(chr(ord("a") + letter))
    return "".join(letters)


def families(first: int, last: int) -> Iterator[tuple[int, str, list[str]]]:
    """(part, original_id, fake_ids) of the originals first … last - 1; each has five or six fakes."""
    for number in range(first, last):
        begin, end = (n * N_FAKES // N_ORIGINALS for n in (number, number + 1))
        fakes = [name_video(N_ORIGINALS + fake) for fake in range(begin, end)]
        yield number % N_PARTS, name_video(number), fakes


class Linker:
    """Gives a file new names, and copies it whenever a file has as many as a file system takes."""

    def __init__(self, source: Path):
        self.source, self.used, self.count = source, source, 1

    def link(self, path: str) -> None:
        if self.count % MAX_LINKS == 0:
            self.used = self.source.with_name(f"{self.source.name}.{self.count}")
            shutil.copy2(self.source, self.used)
        os.link(self.used, path)
        self.count += 1


class World:
    """A made-up data set and its work folder, which grow."""

    def __init__(self, root: Path):
        self.root, self.data, self.work, self.n_originals = root, root / "data", WorkFolder(root / "work"), 0
        self.listed: list[dict] = [{} for _ in range(N_PARTS)]
        for folder in ("data", "stand_ins", *(f"work/{kind}" for kind in ("manifest", "boxes", "crops", "masks"))):
            (root / folder).mkdir(parents=True)
        video, picture = root / "stand_ins" / "video", root / "stand_ins" / "picture"
        video.write_bytes(b"")
        os.utime(video, ns=(TIME, TIME))
        write_png(picture, np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
        self.video, self.picture = Linker(video), Linker(picture)

    def grow(self, n_originals: int) -> None:
        """Add originals and their fakes, as if preprocessing had just seen them."""
        for part, original_id, fake_ids in families(self.n_originals, n_originals):
            self._write(self.work.boxes(original_id), self._tell_boxes(original_id))
            for video_id in (original_id, *fake_ids):
                self._add_video(part, video_id, original_id)
        for part, entries in enumerate(self.listed):
            (self._part(part) / "metadata.json").write_text(json.dumps(entries))
        source = {"trained_on": "data", "margin": CONFIG.margin, "settings": CONFIG.of_stage("crop")}
        self.work.source.write_text(json.dumps(source))
        self.n_originals = n_originals

    def _part(self, part: int) -> Path:
        folder = self.data / f"dfdc_train_part_{part}"
        folder.mkdir(exist_ok=True)
        return folder

    def _add_video(self, part: int, video_id: str, original_id: str) -> None:
        fake = video_id != original_id
        self.video.link(f"{self._part(part)}/{video_id}.mp4")
        told = {"label": "FAKE", "original": f"{original_id}.mp4"} if fake else {"label": "REAL"}
        self.listed[part][f"{video_id}.mp4"] = told | {"split": "train"}
        stages = ("crop", "masks") if fake else ("detect", "crop")
        self._write(self.work.manifest(video_id), {stage: self._tell_entry(stage) for stage in stages})
        for folder in [self.work.crops(video_id)] + [self.work.masks(video_id)] * fake:
            folder.mkdir()
            for name in FACE_FILES:
                self.picture.link(f"{folder}/{name}")

    def _write(self, path: Path, value: dict) -> None:
        path.write_text(json.dumps(value, indent=1) + "\n")

    def _tell_entry(self, stage: str) -> dict:
        entry = {"count": N_FRAMES, "status": "ok", "reason": "", "complete": True}
        return entry | {"settings": CONFIG.of_stage(stage), "inputs": [[0, TIME]] * (1 if stage == "detect" else 2)}

    def _tell_boxes(self, original_id: str) -> dict:
        face = {"face_idx": [0], "boxes": [[810.1234, 204.5678, 1010.1234, 454.5678]], "scores": [0.9999]}
        face["landmarks"] = [[[860.1234, 300.1234 + 10 * point] for point in range(5)]]
        frames = [{"frame_idx": CONFIG.every * number} | face for number in range(N_FRAMES)]
        return {"video_id": original_id, "width": 1920, "height": 1080, "scale": 0.33, "frames": frames}


# Each step takes a world, gets ready what another step has made before, and returns what is measured.
Step = Callable[[Path, WorkFolder], Callable[[], object]]


def prepare_resume(data: Path, work: WorkFolder) -> Callable[[], object]:
    table = read_metadata(data)

    def scan() -> None:
        rows = (rows.to_dict("records") for _, rows in table.groupby("original_id"))
        for family in (Family(data, work, CONFIG, ("detect", "crop", "masks"), some) for some in rows):
            if set(family.run().values()) != {"kept"}:
                raise RuntimeError("the simulated artifacts are not current: this measures something else")

    return scan


def prepare_epoch(data: Path, work: WorkFolder, paired: bool) -> Callable[[], object]:
    rows, _ = split_fold(read_folds(work), 0)
    config = DEMO_TRAINING if paired else TrainConfig()
    rows = pair(rows) if paired else rows
    return lambda: epoch_order(rows, config, 3, 2500 * 16 // (2 if paired else 1))


def prepare_doctor(data: Path, work: WorkFolder) -> Callable[[], object]:
    from dfdc_lib.integrity import check_work

    def check() -> None:
        if bad := [finding for finding in check_work(work, data) if not finding.ok]:
            raise RuntimeError(f"the simulated artifacts are not healthy: {bad}")

    return check


def prepare_rows(work: WorkFolder, step: Callable[[pd.DataFrame], object]) -> Callable[[], object]:
    rows = read_folds(work)
    return lambda: step(rows)


def prepare_table(data: Path, step: Callable[[pd.DataFrame], object]) -> Callable[[], object]:
    table = read_metadata(data)
    return lambda: step(table)


STEPS: dict[str, Step] = {
    "read_metadata": lambda data, work: lambda: read_metadata(data),
    "assign_folds": lambda data, work: prepare_table(data, assign_folds),
    "resume scan": prepare_resume,
    "collect_status": lambda data, work: prepare_table(data, lambda table: collect_status(work, table, CONFIG)),
    "write_folds": lambda data, work: prepare_table(data, lambda table: write_folds(work, table, CONFIG)),
    "read_folds": lambda data, work: lambda: read_folds(work),
    "split_fold": lambda data, work: prepare_rows(work, lambda rows: split_fold(rows, 0)),
    "check_files": lambda data, work: prepare_rows(work, lambda rows: check_files(rows, work)),
    "pair": lambda data, work: prepare_rows(work, pair),
    "epoch, single crops": lambda data, work: prepare_epoch(data, work, False),
    "epoch, pairs": lambda data, work: prepare_epoch(data, work, True),
    "doctor": prepare_doctor,
}


def run_step(name: str, root: Path) -> dict[str, float]:
    """Run a step in this process. peak_gb: all that was ever resident, with the libraries and what was made ready."""
    act = STEPS[name](root / "data", WorkFolder(root / "work"))
    started, worked = time.perf_counter(), time.process_time()
    act()
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}
    return spent | {"peak_gb": peak_memory() / 1e9}


def run_apart(name: str, root: Path) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scale", name, str(root)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(shares: tuple[float, ...] = SHARES, steps: tuple[str, ...] = tuple(STEPS)) -> pd.DataFrame:
    """Each step at each size: step, videos, crops, seconds, cpu_seconds (of this process alone), peak_gb."""
    root, lines = FOLDER / "scale", []
    shutil.rmtree(root, ignore_errors=True)
    try:
        world = World(root)
        for share in shares:
            world.grow(round(share * N_ORIGINALS))
            n_videos = sum(map(len, world.listed))
            for name in steps:
                line = {"step": name, "videos": n_videos, "crops": n_videos * N_FRAMES} | run_apart(name, root)
                print(line, flush=True)
                lines.append(line)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return pd.DataFrame(lines)


def run() -> int:
    """Measure, and write benchmarks/scale.csv, the page's table and its figure."""
    table = measure().assign(**stamp(*PACKAGES))
    table.to_csv(HERE / "scale.csv", index=False, float_format="%.4g")
    static = HERE.parent / "docs" / "_static"
    write_site_table(table, static / "scale.csv")
    draw(table, static / "scale.png")
    return 0


WHAT = {
    "read_metadata": "the JSON files to one table",
    "assign_folds": "its folds",
    "resume scan": "preprocessing with nothing to do: is every artifact still current?",
    "collect_status": "status.csv from the manifests",
    "write_folds": "folds.csv from the folders of crops",
    "read_folds": "folds.csv to a table",
    "split_fold": "training and validation rows",
    "check_files": "before training: is each crop of folds.csv there?",
    "pair": "each fake crop with its real one",
    "epoch, single crops": "40,000 crops (of one process), drawn and shuffled",
    "epoch, pairs": "20,000 pairs, each original equally likely",
    "doctor": "`dfdc doctor --work`: all of it, every picture's ends read",
}


def write_site_table(table: pd.DataFrame, path: Path) -> None:
    """The full size, and how the time grows: 1.0 is in proportion to the number of videos."""
    seconds = table.pivot(index="step", columns="videos", values="cpu_seconds").loc[list(WHAT)]
    largest, smallest = seconds.columns[-1], seconds.columns[0]
    growth = np.log(seconds[largest] / seconds[smallest]) / np.log(largest / smallest)
    memory = table[table.videos == largest].set_index("step").peak_gb
    columns = {"step": WHAT.keys(), "what": WHAT.values()}
    columns |= {f"s for {n:,} videos": seconds[n].map("{:.2g}".format) for n in (smallest, largest)}
    columns["grows with the videos, to the power of"] = growth.map("{:.1f}".format)
    columns[f"GB at most, {largest:,} videos"] = memory[list(WHAT)].map("{:.1f}".format)
    pd.DataFrame({name: list(values) for name, values in columns.items()}).to_csv(path, index=False)


# The steps that the figure names: those that come nearest to a limit.
NEAR = ("doctor", "resume scan", "write_folds", "split_fold", "pair", "epoch, pairs")
STYLES = ("o-", "s--", "^-", "D--", "v-", "P--")


def draw(table: pd.DataFrame, path: Path) -> None:
    """Seconds and memory against the number of videos: a few steps by name, the others in light grey."""
    fig, axes = plt.subplots(2, 1, figsize=(7.1, 8), layout="constrained")
    panels = (
        ("cpu_seconds", "seconds of one core", LIMIT_SECONDS, "s", (0.01, 0.1, 1, 10, 60)),
        ("peak_gb", "peak memory, GB", LIMIT_GB, "GB", (0.5, 1, 2, 3)),
    )
    sizes = sorted(table.videos.unique())
    for axis, (column, name, limit, unit, ticks) in zip(axes, panels, strict=True):
        ends = {}
        for step, rows in table.groupby("step", sort=False):
            if step not in NEAR:
                axis.plot(rows.videos, rows[column], color="#CCCCCC", lw=1)
                continue
            axis.plot(rows.videos, rows[column], STYLES[NEAR.index(step)], color="black", lw=1, ms=5)
            ends[step] = rows[column].iloc[-1]
        axis.axhline(limit, color="#777777", lw=3, zorder=0)
        axis.set(xscale="log", yscale="log", xlabel="videos", ylabel=name)
        axis.set_xlim(sizes[0] / 1.15, sizes[-1] * 2.6)
        axis.set_ylim(None, limit * 2)
        axis.annotate(f"limit: {limit} {unit}", (sizes[0], limit), xytext=(0, 5),
                      textcoords="offset points", color="#555555")  # fmt: skip
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        label_ends(axis, ends, sizes[-1])
    fig.savefig(path, dpi=150)
    plt.close(fig)


def label_ends(axis, ends: dict[str, float], x: float) -> None:
    """Write each line's name right of its end, moved up or down so that no two names touch."""
    low, high = np.log(axis.get_ylim())
    order, gap = sorted(ends, key=lambda name: ends[name]), (high - low) / 15
    places = np.log([ends[step] for step in order])
    for _ in range(1000):  # neighbours that are too close push each other away
        push = np.maximum(gap - np.diff(places), 0) / 2
        places += np.append(0, push) - np.append(push, 0)
        places = np.clip(places, low + gap / 2, high - gap / 2)
    for step, place in zip(order, places, strict=True):
        line = {"arrowstyle": "-", "color": "#777777", "lw": 0.7, "shrinkA": 0, "shrinkB": 2}
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axis.annotate(
            step, (x, ends[step]), xytext=(x * 1.3, np.exp(place)), va="center", fontsize=10,
            arrowprops=line, bbox=behind,
        )  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(run_step(sys.argv[1], Path(sys.argv[2]))))
