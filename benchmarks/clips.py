"""What the benchmarks work on: a 1080p clip of 10 seconds, filmed once as the sample is."""

from pathlib import Path

import numpy as np

from dfdc_lib.faces import resize_for_detection
from dfdc_lib.rehearsal.film import Shot, perform, write_video
from dfdc_lib.rehearsal.sample import VERSION
from dfdc_lib.store import appear_whole, write_json
from dfdc_lib.video import iterate_frames

FOLDER = Path(__file__).parent.parent / "data" / "benchmark"


def make_clip(n_frames: int = 300, width: int = 1920, height: int = 1080) -> Path:
    """Film one person at DFDC's size and rate, or keep the clip; it takes half a minute."""
    path = FOLDER / f"{width}x{height}_{n_frames}_{VERSION}.mp4"
    if not path.exists():
        shot = Shot(1, ("hopper",), width, height, n_frames, crf=23)
        with appear_whole(path) as temporary:
            write_video(temporary, (frame for frame, _ in perform(shot)), crf=shot.crf)
    return path


def make_data(folder: Path, clip: Path, n_videos: int = 1) -> Path:
    """Make a data set of `n_videos` originals, each a link to the clip."""
    part = folder / f"data_{n_videos}" / "dfdc_train_part_0"
    part.mkdir(parents=True)
    names = [f"video{number:04d}.mp4" for number in range(n_videos)]
    for name in names:
        (part / name).symlink_to(clip)
    entry = {"label": "REAL", "split": "train", "original": None}
    write_json(part / "metadata.json", dict.fromkeys(names, entry))
    return part.parent


def detector_frames(clip: Path, every: int = 10) -> list[np.ndarray]:
    """Every n-th frame at the size that the detector gets."""
    frames = iterate_frames(clip, range(0, 10_000, every))
    return [resize_for_detection(frame) for _, frame in frames]
