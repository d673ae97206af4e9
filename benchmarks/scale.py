"""The bookkeeping for the full challenge, simulated: seconds and memory, from an eighth to all.

119,154 videos in 50 parts, with a recipe, a journal, boxes and folders as preprocessing leaves
them. The videos are empty files, and the 6.6 million crops and masks are names (hard links) of a
few small pictures: every folder, name and record that a step reads is there, but the bytes are not,
and everything was written just before, so no step waits for the disk.
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
from matplotlib.axes import Axes

from benchmarks.clips import FOLDER
from benchmarks.measure import stamp
from dfdc_lib.config import DEMO_TRAINING, PreprocessConfig, TrainConfig
from dfdc_lib.dataset import check_files, epoch_order, pair, read_folds, split_fold
from dfdc_lib.metadata import read_metadata
from dfdc_lib.ops import pipeline
from dfdc_lib.ops.pipeline import Line, StatusTable, append_lines, preprocess, write_folds
from dfdc_lib.preprocess import Outcome
from dfdc_lib.store import WorkFolder, remove, write_png

HERE = Path(__file__).parent
PACKAGES = ("pandas", "numpy", "pyarrow")
N_ORIGINALS, N_FAKES, N_PARTS, N_FRAMES = 19_154, 100_000, 50, 30
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
# Targets for each step at full size.
LIMITS = {"resume": 10, "doctor": 30, "hand out": 0.003 * (N_ORIGINALS + N_FAKES)}  # seconds
LIMIT_SECONDS, LIMIT_GB = 60, 2  # for the other steps, and for all
CONFIG = PreprocessConfig()
STAGES = ("detect", "crop", "masks")
FACE_FILES = [f"{CONFIG.every * number}_0.png" for number in range(N_FRAMES)]
MAX_LINKS = 60_000  # of one file; ext4 takes 65,000


def peak_memory() -> int:
    """The most bytes that this process has held. (Linux's getrusage counts its parent's too.)"""
    status = Path("/proc/self/status")
    if status.exists():
        lines = (line.split() for line in status.read_text().splitlines())
        return next(int(line[1]) * 1024 for line in lines if line[0] == "VmHWM:")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def name_video(number: int) -> str:
    """Ten letters, as in DFDC, in no order."""
    mixed, letters = number * 6_364_136_223_846_793_005 % 26**10, []
    for _ in range(10):
        mixed, letter = divmod(mixed, 26)
        letters.append(chr(ord("a") + letter))
    return "".join(letters)


def families(first: int, last: int) -> Iterator[tuple[int, str, list[str]]]:
    """(part, original_id, fake_ids) of the originals first … last - 1; five or six fakes each."""
    for number in range(first, last):
        begin, end = (n * N_FAKES // N_ORIGINALS for n in (number, number + 1))
        fakes = [name_video(N_ORIGINALS + fake) for fake in range(begin, end)]
        yield number % N_PARTS, name_video(number), fakes


class Linker:
    """Gives a file new names; copies it whenever it has as many as a file system allows."""

    def __init__(self, source: Path):
        self.source, self.used, self.count = source, source, 1

    def link(self, path: str) -> None:
        if self.count % MAX_LINKS == 0:
            self.used = self.source.with_name(f"{self.source.name}.{self.count}")
            shutil.copy2(self.source, self.used)
        os.link(self.used, path)
        self.count += 1


class World:
    """A made-up data set and its work folder, both of which grow."""

    def __init__(self, root: Path):
        self.root, self.data, self.work = root, root / "data", WorkFolder(root / "work")
        self.n_originals = 0
        self.listed: list[dict] = [{} for _ in range(N_PARTS)]
        pipeline.require_recipe(self.data, self.work, CONFIG, overwrite=False)
        for folder in ("stand_ins", "work/boxes", "work/crops", "work/masks"):
            (root / folder).mkdir(parents=True)
        for part in range(N_PARTS):
            self._part(part).mkdir(parents=True)
        video, picture = root / "stand_ins" / "video", root / "stand_ins" / "picture"
        video.touch()
        write_png(picture, np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
        self.video, self.picture = Linker(video), Linker(picture)

    def grow(self, n_originals: int) -> None:
        """Add originals and their fakes, as if preprocessing had just seen them."""
        lines: list[Line] = []
        for part, original_id, fake_ids in families(self.n_originals, n_originals):
            write_boxes(self.work.boxes(original_id), original_id)
            lines += self._add_video(part, original_id, original_id)
            for video_id in fake_ids:
                lines += self._add_video(part, video_id, original_id)
        append_lines(self.work, lines)
        for part, entries in enumerate(self.listed):
            (self._part(part) / "metadata.json").write_text(json.dumps(entries))
        self.n_originals = n_originals

    def _part(self, part: int) -> Path:
        return self.data / f"dfdc_train_part_{part}"

    def _add_video(self, part: int, video_id: str, original_id: str) -> list[Line]:
        """Make a video and what preprocessing makes from it; return its lines of the journal."""
        fake = video_id != original_id
        self.video.link(f"{self._part(part)}/{video_id}.mp4")
        told = {"label": "FAKE", "original": f"{original_id}.mp4"} if fake else {"label": "REAL"}
        self.listed[part][f"{video_id}.mp4"] = told | {"split": "train"}
        for folder in [self.work.crops(video_id)] + [self.work.masks(video_id)] * fake:
            folder.mkdir()
            for name in FACE_FILES:
                self.picture.link(f"{folder}/{name}")
        stages = STAGES[1:] if fake else STAGES[:2]
        return [Line(video_id, stage, "ok", N_FRAMES, "", 0) for stage in stages]


def write_boxes(path: Path, original_id: str) -> None:
    """One face in each frame, as `preprocess.process_original` writes them."""
    face = {"size": [1920, 1080], "face_idx": [0], "scores": [0.9999]}
    face["boxes"] = [[810.1234, 204.5678, 1010.1234, 454.5678]]
    face["landmarks"] = [[[860.1234, 300.1234 + 10 * point] for point in range(5)]]
    face["places"] = [[770, 155, 1050, 505]]
    frames = [{"frame_idx": CONFIG.every * number} | face for number in range(N_FRAMES)]
    about = {"video_id": original_id, "width": 1920, "height": 1080, "scale": 0.33}
    path.write_text(json.dumps(about | {"frames": frames}, indent=1) + "\n")


# Each step takes a world, prepares what earlier steps would have made, and returns what to measure.
Step = Callable[[Path, WorkFolder], Callable[[], object]]


def prepare_resume(data: Path, work: WorkFolder) -> Callable[[], object]:
    def resume() -> None:
        actions = preprocess(data, work, CONFIG, stages=STAGES).actions
        if {action for _, action in actions} != {"kept"}:
            raise RuntimeError(f"the simulated artifacts are not complete: {actions}")

    return resume


def hand_over(path, work, config, video_id, original_id, stages) -> list[Outcome]:
    """What a worker does if videos take no time."""
    return [Outcome(stage, "ok", N_FRAMES) for stage in stages]


def prepare_hand_out(data: Path, work: WorkFolder) -> Callable[[], object]:
    """Hand out into an empty folder, to one worker, whose start counts."""
    empty = WorkFolder(work.root.with_name("empty"))
    remove(empty.root)
    pipeline.process_video = hand_over

    def hand_out() -> None:
        actions = preprocess(data, empty, CONFIG, workers=1, stages=STAGES).actions
        if {action for _, action in actions} != {"done"}:
            raise RuntimeError(f"not every video was handed out: {actions}")

    return hand_out


def prepare_folds(data: Path, work: WorkFolder) -> Callable[[], object]:
    table = read_metadata(data)
    status = StatusTable(work, table, data)
    return lambda: write_folds(work, table, 16, status)


def prepare_epoch(data: Path, work: WorkFolder, paired: bool) -> Callable[[], object]:
    rows, _ = split_fold(read_folds(work), 0)
    config = DEMO_TRAINING if paired else TrainConfig()
    rows = pair(rows) if paired else rows
    return lambda: epoch_order(rows, config, 3, 2500 * 16 // (2 if paired else 1))


def prepare_doctor(data: Path, work: WorkFolder) -> Callable[[], object]:
    from dfdc_lib.ops.integrity import check_work

    def check() -> None:
        if bad := [finding for finding in check_work(work) if not finding.ok]:
            raise RuntimeError(f"the simulated artifacts are not healthy: {bad}")

    return check


def prepare_rows(work: WorkFolder, step: Callable[[pd.DataFrame], object]) -> Callable[[], object]:
    rows = read_folds(work)
    return lambda: step(rows)


STEPS: dict[str, Step] = {
    "read_metadata": lambda data, work: lambda: read_metadata(data),
    "hand out": prepare_hand_out,
    "resume": prepare_resume,
    "read_status": lambda data, work: lambda: pipeline.read_status(work),
    "write_folds": prepare_folds,
    "read_folds": lambda data, work: lambda: read_folds(work),
    "split_fold": lambda data, work: prepare_rows(work, lambda rows: split_fold(rows, 0)),
    "check_files": lambda data, work: prepare_rows(work, lambda rows: check_files(rows, work)),
    "pair": lambda data, work: prepare_rows(work, pair),
    "epoch, single crops": lambda data, work: prepare_epoch(data, work, False),
    "epoch, pairs": lambda data, work: prepare_epoch(data, work, True),
    "doctor": prepare_doctor,
}


def run_step(name: str, root: Path) -> dict[str, float]:
    """Run a step in this process.

    peak_gb: all that was ever resident, including the libraries and what was prepared.
    """
    act = STEPS[name](root / "data", WorkFolder(root / "work"))
    started, worked = time.perf_counter(), time.process_time()
    act()
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}
    return spent | {"peak_gb": peak_memory() / 1e9}


def run_apart(name: str, root: Path) -> dict[str, float]:
    """Run a step in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scale", name, str(root)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(told.splitlines()[-1])


def measure(shares: tuple[float, ...] = SHARES) -> pd.DataFrame:
    """Each step at each size: step, videos, crops, seconds, cpu_seconds, peak_gb, limit.

    cpu_seconds: of this process alone. limit: in seconds, at full size.
    """
    root, lines = FOLDER / "scale", []
    shutil.rmtree(root, ignore_errors=True)
    try:
        world = World(root)
        for share in shares:
            world.grow(round(share * N_ORIGINALS))
            n_videos = sum(map(len, world.listed))
            for name in STEPS:
                line = {"step": name, "videos": n_videos, "crops": n_videos * N_FRAMES}
                line |= run_apart(name, root) | {"limit": LIMITS.get(name, LIMIT_SECONDS)}
                print(line, flush=True)
                lines.append(line)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return pd.DataFrame(lines)


def run() -> int:
    """Measure, and write benchmarks/scale.csv, the page's table and its figure.

    Returns 1 if a step exceeds a limit.
    """
    table = measure().assign(**stamp(*PACKAGES))
    table.to_csv(HERE / "scale.csv", index=False, float_format="%.4g")
    static = HERE.parent / "docs" / "_static"
    write_site_table(table, static / "scale.csv")
    draw(table, static / "scale.png")
    beyond = table[(table.seconds > table.limit) | (table.peak_gb > LIMIT_GB)]
    print(beyond.to_string() if len(beyond) else "every step is within its limits")
    return int(len(beyond) > 0)


WHAT = {
    "read_metadata": "the JSON files to one table",
    "hand out": "every video planned, given to a worker that does nothing, its line written",
    "resume": "preprocessing with nothing to do: what is still to be made?",
    "read_status": "the journal to a table",
    "write_folds": "folds.csv from the folders of crops and the boxes",
    "read_folds": "folds.csv to a table",
    "split_fold": "training and validation rows",
    "check_files": "before training: is each crop of folds.csv there?",
    "pair": "each fake crop with its real one",
    "epoch, single crops": "40,000 crops (of one process), drawn and shuffled",
    "epoch, pairs": "20,000 pairs, each original equally likely",
    "doctor": "`dfdc doctor --work`: is every crop, mask and box there that the journal counts?",
}


def write_site_table(table: pd.DataFrame, path: Path) -> None:
    """Write the full size, and how time grows: 1.0 is in proportion to the number of videos."""
    seconds = table.pivot(index="step", columns="videos", values="seconds").loc[list(WHAT)]
    largest, smallest = seconds.columns[-1], seconds.columns[0]
    growth = np.log(seconds[largest] / seconds[smallest]) / np.log(largest / smallest)
    full = table[table.videos == largest].set_index("step").loc[list(WHAT)]
    columns = {"step": WHAT.keys(), "what": WHAT.values()}
    columns |= {f"s for {n:,} videos": seconds[n].map("{:.2g}".format) for n in (smallest, largest)}
    columns["s aimed at"] = full.limit.map("{:.0f}".format)
    columns["grows with the videos, to the power of"] = growth.map("{:.1f}".format)
    columns[f"GB at most, {largest:,} videos"] = full.peak_gb.map("{:.1f}".format)
    pd.DataFrame({name: list(values) for name, values in columns.items()}).to_csv(path, index=False)


# The steps that the figure names, and how they are drawn. The others are light grey; handing out is
# not drawn, since it waits for a worker.
NEAR = {"doctor": "o-", "resume": "s--", "write_folds": "^-", "read_folds": "D--", "pair": "v-"}
PANELS = (
    ("seconds", "seconds", "s", LIMIT_SECONDS, (0.01, 0.1, 1, 10, 60)),
    ("peak_gb", "peak memory, GB", "GB", LIMIT_GB, (0.5, 1, 2, 3)),
)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Seconds and memory against the number of videos."""
    table = table[table.step != "hand out"]
    fig, axes = plt.subplots(2, 1, figsize=(7.1, 8), layout="constrained")
    for axis, panel in zip(axes, PANELS, strict=True):
        draw_panel(axis, table, panel)
    fig.savefig(path, dpi=200)
    plt.close(fig)


def draw_panel(axis: Axes, table: pd.DataFrame, panel: tuple) -> None:
    """One quantity of each step against the number of videos, both logarithmic."""
    column, name, unit, limit, ticks = panel
    sizes, ends = sorted(table.videos.unique()), {}
    for step, rows in table.groupby("step", sort=False):
        if step in NEAR:
            axis.plot(rows.videos, rows[column], NEAR[step], color="black", lw=1, ms=5)
            ends[step] = rows[column].iloc[-1]
        else:
            axis.plot(rows.videos, rows[column], color="#CCCCCC", lw=1)
    axis.axhline(limit, color="#777777", lw=3, zorder=0)
    axis.set(xscale="log", yscale="log", xlabel="videos", ylabel=name)
    axis.set_xlim(sizes[0] / 1.15, sizes[-1] * 2.6)
    axis.set_ylim(None, limit * 2)
    offset = {"xytext": (0, 5), "textcoords": "offset points"}
    axis.annotate(f"limit: {limit} {unit}", (sizes[0], limit), color="#555555", **offset)
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    label_ends(axis, ends, sizes[-1])


def label_ends(axis: Axes, ends: dict[str, float], x: float) -> None:
    """Write each line's name to the right of its end, moved so that no two names touch."""
    low, high = np.log(axis.get_ylim())
    order, gap = sorted(ends, key=lambda name: ends[name]), (high - low) / 15
    places = np.log([ends[step] for step in order])
    for _ in range(1000):  # neighbours that are too close push each other away
        push = np.maximum(gap - np.diff(places), 0) / 2
        places += np.append(0, push) - np.append(push, 0)
        places = np.clip(places, low + gap / 2, high - gap / 2)
    style = {"va": "center", "fontsize": 10}
    style["arrowprops"] = {"arrowstyle": "-", "color": "#777777", "lw": 0.7, "shrinkA": 0}
    style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for step, place in zip(order, places, strict=True):
        axis.annotate(step, (x, ends[step]), xytext=(x * 1.3, np.exp(place)), **style)


if __name__ == "__main__":
    print(json.dumps(run_step(sys.argv[1], Path(sys.argv[2]))))
