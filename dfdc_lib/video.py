"""Decode exact frames of a video, and write one. Frames are (H, W, 3) uint8 RGB."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np

from dfdc_lib.geometry import spread_indices


class VideoError(Exception):
    """A video that can't be used. `status` is the word that the artifacts record."""

    def __init__(self, status: str, path: Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.status = status


class VideoInfo(NamedTuple):
    """What a container says about its video. `n_frames` is a claim: only decoding tells."""

    width: int
    height: int
    n_frames: int
    fps: float


def open_video(path: Path) -> cv2.VideoCapture:
    """Open a video for decoding in one thread (worker processes must not fight for cores).

    Raises FileNotFoundError, or VideoError with status `unreadable`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such video: {path}")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not capture.isOpened():
        raise VideoError("unreadable", path, "not a video that FFmpeg can open")
    return capture


def probe(path: Path) -> VideoInfo:
    """Read a video's size, frame count and rate from its header; where that has no count, count the frames."""
    capture = open_video(path)
    try:
        width, height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        n_frames, fps = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS)
        if n_frames < 1:  # a file that was written live does not say
            n_frames = sum(1 for _ in iter(capture.grab, False))
        return VideoInfo(width, height, n_frames, fps)
    finally:
        capture.release()


def iterate_frames(path: Path, indices: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (frame_idx, frame) for the wanted frame numbers, in order, decoding the file once.

    Frames in between are decoded but not converted. Seeking by frame number would be faster to write and wrong on
    videos of variable frame rate. A video that ends early simply yields fewer frames.
    """
    wanted = sorted(set(int(i) for i in indices))
    capture = open_video(path)
    try:
        position = -1
        for frame_idx in wanted:
            while position < frame_idx:
                if not capture.grab():
                    return
                position += 1
            decoded, frame = capture.retrieve()
            if decoded:
                yield frame_idx, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


def read_spread_frames(path: Path, n_frames: int) -> tuple[list[int], list[np.ndarray]]:
    """Read `n_frames` frames spread evenly over a video: (frame numbers, frames).

    Raises VideoError with status `decode_error` where not one frame can be decoded.
    """
    if n_frames < 1:
        raise ValueError(f"at least one frame must be looked at, got {n_frames}")
    pairs = list(iterate_frames(path, spread_indices(max(probe(path).n_frames, 1), n_frames)))
    if not pairs:
        raise VideoError("decode_error", path, "no frame could be decoded")
    numbers, frames = zip(*pairs, strict=True)
    return list(numbers), list(frames)


def write_video(path: Path, frames: Iterable[np.ndarray], fps: int = 30, crf: int = 23) -> None:
    """Write frames as H.264 in yuv420p, at constant quality `crf` (lower is better; 23 is x264's default).

    Width and height must be even. The same frames give the same bytes: one encoder thread, and no macroblock
    tree, which made the first file of a process differ from the others (seen with the x264 of PyAV 18.1).
    """
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
