"""Write a video."""

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np


def write_video(path: Path, frames: Iterable[np.ndarray], crf: int = 23) -> None:
    """Write frames, 30 a second, as H.264 in yuv420p.

    crf: the constant quality, lower is better. Width and height must be even. The same frames give
    the same bytes: by one thread, and without x264's macroblock tree, which made the first file of
    a process differ from the others.
    """
    options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options=options, pix_fmt="yuv420p")
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
