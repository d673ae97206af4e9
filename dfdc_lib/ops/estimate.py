"""What preprocessing a data set will take: hours, disk and files, from a few of its videos."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from dfdc_lib.config import PreprocessConfig
from dfdc_lib.jobs import count_cores, use_cores
from dfdc_lib.metadata import read_metadata
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.store import WorkFolder

# A video's artifacts on disk at the default settings: 1080p, ten seconds, one face. Two real
# clips of DFDC had 1.2 and 3.6 MB of crops.
BYTES_A_VIDEO = 4_000_000


def estimate_run(
    data: Path, workers: int, n_originals: int = 4, config: PreprocessConfig = PreprocessConfig()
) -> pd.DataFrame:
    """What preprocessing a data set will take, from a few originals and their fakes on this disk.

    They go through all stages here, on one worker's share of the cores. One row: videos, measured
    ones, hours with all workers, gb and files on disk. Raises ValueError if none can be read.
    """
    n_videos, before = len(read_metadata(data)), count_cores()
    use_cores(max(before // max(workers, 1), 1))
    try:
        with TemporaryDirectory() as folder:
            first, work = WorkFolder(Path(folder) / "first"), WorkFolder(Path(folder) / "work")
            preprocess(data, first, config, originals=1, stages=["detect"])  # loads the networks
            started = time.perf_counter()
            status = preprocess(data, work, config, originals=n_originals).status
            seconds = time.perf_counter() - started
            made = list(work.root.glob("*/**/*.*"))
            size = sum(-(-path.stat().st_size // 4096) * 4096 for path in made)  # in whole blocks
    finally:
        use_cores(before)
    measured = status.video_id[status["count"] > 0].nunique()
    if not measured:
        raise ValueError(f"no video of {data} could be measured: {status.reason.iloc[0]}")
    share = n_videos / measured
    hours = seconds * share / 3600 / max(workers, 1)
    row = {"videos": n_videos, "measured": measured, "hours": hours, "gb": size * share / 1e9}
    return pd.DataFrame([row | {"files": round(len(made) * share)}])
