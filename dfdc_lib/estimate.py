"""What preprocessing a whole data set will take: hours, disk and memory, from a few of its videos."""

import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd

from dfdc_lib.config import STAGES, PreprocessConfig
from dfdc_lib.metadata import read_metadata
from dfdc_lib.paths import WorkFolder, measure_folder
from dfdc_lib.preprocess import Family, choose_originals, read_manifest
from dfdc_lib.tasks import Lane, WorkerDied, count_cores


def estimate_run(
    data: Path, workers: int, n_originals: int = 4, config: PreprocessConfig = PreprocessConfig()
) -> pd.DataFrame:
    """What preprocessing a whole data set will take, from a few of its originals and their fakes that are here.

    They go through every stage in one process of as many cores as one of `workers` has, into a folder that is removed.
    One row a stage by itself, and one, "together", for a usual run, which decodes each video once. Columns: stage;
    videos, in all; seconds, of one video in one process; hours, of all with `workers`, if each is as fast as this one;
    gb and files, on disk; memory_gb, of all workers. A stage of which nothing could be measured has NaN. `attrs`
    says what was measured. Raises ValueError where no original is here.
    """
    if workers < 1:
        raise ValueError(f"an estimate needs one worker or more, got {workers}")
    data = Path(data).absolute()
    table = read_metadata(data)
    table = table[table.original_id.isin(table.video_id)]  # the others can't be cropped
    chosen = choose_originals(table, n_originals, data)
    originals = chosen[chosen.label == 0]
    here = originals.original_id[[os.path.exists(data / file) for file in originals.file]]
    if here.empty:
        raise ValueError(f"no original video of {data} is here: there is nothing to measure")
    families = [rows.to_dict("records") for _, rows in chosen[chosen.original_id.isin(here)].groupby("original_id")]
    lane = Lane(max(count_cores() // workers, 1))
    with tempfile.TemporaryDirectory() as folder:
        try:
            measured, memory = lane.run(_measure_families, (data, Path(folder), config, families))
        except WorkerDied as error:
            raise OSError(f"the measurement did not end: {error}") from error
        except BaseException:  # Ctrl-C above all
            lane.kill()
            raise
        finally:
            lane.close()
    n_videos = {"detect": int((table.label == 0).sum()), "crop": len(table), "masks": int((table.label == 1).sum())}
    return _extrapolate(measured, n_videos, memory, workers)


def _measure_families(task: tuple) -> tuple[pd.DataFrame, int]:
    """Run families through the stages: (stage → videos, seconds, bytes, files of the sample, bytes of memory)."""
    data, root, config, families = task
    apart, together, stages = WorkFolder(root / "apart"), WorkFolder(root / "together"), STAGES[:-1]

    def run(work: WorkFolder, names: tuple[str, ...], some: list[list[dict]]) -> float:
        started = time.perf_counter()
        for rows in some:
            Family(data, work, config, names, rows).run()
        return time.perf_counter() - started

    run(WorkFolder(root / "first"), ("detect",), families)  # loads and compiles the networks, for each size of video
    seconds = {stage: run(apart, (stage,), families) for stage in stages}
    seconds["together"] = run(together, stages, families)
    video_ids = [row["video_id"] for rows in families for row in rows]
    done = [stage for v in video_ids for stage, entry in read_manifest(together, v).items() if entry.get("complete")]
    videos = Counter(done) | {"together": len({v for v in video_ids if together.crops(v).exists()})}
    folders = {"detect": ("boxes", "manifest"), "crop": ("crops",), "masks": ("masks",)}
    sizes = {stage: [measure_folder(together.root / name) for name in names] for stage, names in folders.items()}
    sizes["together"] = [size for some in sizes.values() for size in some]
    lines = [(s, videos.get(s, 0), seconds[s], *map(sum, zip(*sizes[s], strict=True))) for s in seconds]
    return pd.DataFrame(lines, columns=["stage", "videos", "seconds", "bytes", "files"]), peak_memory()


def _extrapolate(measured: pd.DataFrame, n_videos: dict[str, int], memory: int, workers: int) -> pd.DataFrame:
    """From what a sample took to what the data set takes; see `estimate_run`."""
    sample = measured.set_index("stage")
    of_each = sample.loc[list(n_videos)]
    counts = pd.Series(n_videos)
    each = of_each[["seconds", "bytes", "files"]].div(of_each.videos.where(of_each.videos > 0), axis=0)
    total = each.mul(counts, axis=0).where(counts > 0, 0.0, axis=0)  # a stage that has nothing to do takes nothing
    both = total.sum(skipna=False)
    both["seconds"] *= sample.seconds["together"] / of_each.seconds.sum()
    total.loc["together"], each.loc["together"] = both, both / n_videos["crop"]
    table = pd.DataFrame({"stage": total.index, "videos": [*n_videos.values(), n_videos["crop"]]})
    table["seconds"] = each.seconds.to_numpy()
    table["hours"] = total.seconds.to_numpy() / 3600 / workers
    table["gb"], table["files"] = total.bytes.to_numpy() / 1e9, total.files.to_numpy()
    table["memory_gb"] = [float("nan")] * len(n_videos) + [memory * workers / 1e9]
    n_detected = int(sample.videos["detect"])
    table.attrs = {"originals": n_detected, "fakes": int(sample.videos["crop"]) - n_detected, "workers": workers}
    return table


def peak_memory() -> int:
    """Bytes that this process has held at most. (Linux counts into getrusage's what the parent held.)"""
    status = Path("/proc/self/status")
    if status.exists():
        lines = (line.split() for line in status.read_text().splitlines())
        return next(int(line[1]) * 1024 for line in lines if line[0] == "VmHWM:")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes
