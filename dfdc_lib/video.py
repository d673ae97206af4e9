"""Decode exact frames of a video, and write one. Frames are (H, W, 3) uint8 RGB."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np


def printable(path: Path | str) -> str:
    """A path that every terminal and table takes: bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode(errors="replace")


class VideoError(Exception):
    """A video that can't be used: `status` is the word that the artifacts record, `reason` a sentence."""

    def __init__(self, status: str, path: Path, reason: str):
        super().__init__(f"{printable(path)}: {reason}")
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class VideoInfo:
    """A video's size in pixels, how many frames its packets hold, and how many more its header promises."""

    width: int
    height: int
    n_frames: int
    fps: float
    n_missing: int = 0  # a download that broke off
    times: np.ndarray | None = field(default=None, compare=False, repr=False)  # (n_frames,) ms: see `frame_times`


def open_video(path: Path) -> cv2.VideoCapture:
    """Open a video for decoding in one thread (worker processes must not fight for cores).

    Raises FileNotFoundError, or VideoError with status `unreadable`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such video: {path}")
    if printable(path) != str(path):  # OpenCV 5 crashes on such a name, and takes the process with it
        raise VideoError("unreadable", path, "its name is not UTF-8: rename the file")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not capture.isOpened():
        raise VideoError(*_why_closed(path))
    return capture


def _why_closed(path: Path) -> tuple[str, Path, str]:
    """Status, path and reason of a file that OpenCV can't open."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
                return "no_video_stream", path, f"it holds {', '.join(kinds)} and no video"
    except av.error.FFmpegError as error:
        return "unreadable", path, f"not a video that FFmpeg can open ({error.strerror})"
    return "unreadable", path, "not a video that OpenCV can open"


def probe(path: Path) -> VideoInfo:
    """Read a video's size and rate from its header, and count its frames without decoding them."""
    capture = open_video(path)
    try:
        width, height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        times, n_missing = frame_times(path)
        return VideoInfo(width, height, len(times), capture.get(cv2.CAP_PROP_FPS), n_missing, times)
    finally:
        capture.release()


def frame_times(path: Path) -> tuple[np.ndarray, int]:
    """When each frame is shown, in order: (n_frames,) milliseconds; NaN throughout where the file does not say.

    Read from the packets, without decoding: what a header claims may be wrong, and counting decoded frames goes
    wrong as soon as one can't be decoded. The second value: how many frames the header promises beyond these.
    """
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            packets = [(packet.pts, packet.is_discard) for packet in container.demux(stream) if packet.size]
            start, tick, promised = stream.start_time, stream.time_base, stream.frames
    except (av.error.FFmpegError, IndexError) as error:
        raise VideoError("unreadable", path, f"no video stream that FFmpeg can read ({error})") from error
    shown, n_missing = [pts for pts, discarded in packets if not discarded], max(promised - len(packets), 0)
    # An AVI with B-frames has times that begin before its start, and are not those that the decoder reports.
    if start is None or None in shown or len(set(shown)) < len(shown) or min(shown, default=0) != start:
        return np.full(len(shown), np.nan), n_missing
    return (np.sort(np.array(shown, float)) - start) * float(tick * 1000), n_missing


def iterate_frames(
    path: Path, indices: Iterable[int], info: VideoInfo | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (frame_idx, frame) for the wanted frame numbers, in order, decoding the file once, in one thread.

    Frames in between that no other frame is predicted from are not even decoded; about a third of the time is saved,
    and the wanted ones stay the same to the bit. Seeking by frame number would be wrong on videos of variable frame
    rate. A frame that can't be decoded is left out, and shifts no other's number: a frame is known by its time, not by
    counting. (Upstream counted.) info: what `probe` said of the file, if it was asked.
    """
    wanted = set(int(i) for i in indices)
    times, last, position = (info or probe(path)).times, max(wanted, default=-1), -1
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.thread_count = 1  # worker processes must not fight for cores
        for packet in container.demux(stream):
            expected = _frame_number(packet, stream, times)
            stream.codec_context.skip_frame = "DEFAULT" if expected is None or expected in wanted else "NONREF"
            for frame in _decode(packet):
                number = _frame_number(frame, stream, times)
                number = position + 1 if number is None else number
                if number <= position:
                    continue
                position = number
                if position in wanted:
                    yield position, _upright(frame)
            if position >= last:
                return


def _decode(packet: av.Packet) -> list[av.VideoFrame]:
    """The frames that a packet completes; none for a broken one."""
    try:
        return packet.decode()
    except av.error.FFmpegError:
        return []


def _frame_number(timed: av.Packet | av.VideoFrame, stream: av.VideoStream, times: np.ndarray) -> int | None:
    """The number of a frame, or of the one in a packet: that of the nearest time. None where there are no times."""
    if timed.pts is None or not len(times) or np.isnan(times[0]):
        return None
    return int(np.abs(times - (timed.pts - stream.start_time) * float(stream.time_base * 1000)).argmin())


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """A frame as RGB, turned as the file asks players to turn it (a telephone held upright)."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


def run_ahead(items: Iterator, n_ahead: int) -> Iterator:
    """Yield what `items` yields, made by a thread of its own that is at most `n_ahead` items in front."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, end) for _ in range(n_ahead))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, items, end))
                yield item
        finally:
            for future in waiting:
                future.cancel()


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
