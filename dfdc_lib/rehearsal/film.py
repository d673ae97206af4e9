"""Write a video."""

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np


def write_video(path: Path, frames: Iterable[np.ndarray], crf: int = 23) -> None:
    """Write frames (H, W, 3) uint8 RGB, of even H and W, as H.264 in yuv420p, 30 a second.

    crf: x264's constant rate factor; lower is better. The same frames give the same bytes.
    """
    # One thread, and no macroblock tree: with it a process's first file differed from the others.
    options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options=options, pix_fmt="yuv420p")
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
