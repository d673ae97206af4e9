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
from av.container import InputContainer
from av.stream import Disposition

# FFmpeg's names of what is read. No pictures; and no playlists, which make it open further files and addresses.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg"
LARGEST_FRAME = 8192 * 4320  # pixels: cinema's 8K. A file of some kilobytes can ask for frames that fill the memory


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


def require_video(path: Path) -> None:
    """Raise FileNotFoundError where nothing is, VideoError for what is no file: a pipe blocks, a device never ends."""
    try:
        exists, is_file = Path(path).exists(), Path(path).is_file()
    except OSError as error:
        raise VideoError("unreadable", path, f"it can't be looked at ({error.strerror})") from error
    if not exists:
        raise FileNotFoundError(f"no such video: {printable(path)}")
    if not is_file:
        raise VideoError("unreadable", path, "a folder, a pipe or a device, and not a file")
    if printable(path) != str(path):  # OpenCV 5 crashes on such a name, and takes the process with it
        raise VideoError("unreadable", path, "its name is not UTF-8: rename the file")


def open_video(path: Path) -> cv2.VideoCapture:
    """Open a video with OpenCV, for decoding in one thread (worker processes must not fight for cores).

    Raises FileNotFoundError, or VideoError with status `unreadable`.
    """
    require_video(path)
    capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not capture.isOpened():
        raise VideoError("unreadable", path, "not a video that OpenCV can open")
    return capture


def open_container(path: Path) -> tuple[InputContainer, av.VideoStream]:
    """Open a video with PyAV: the container, to be closed, and its video stream. The picture on a song is none.

    Raises FileNotFoundError, or VideoError with status `unreadable` or `no_video_stream`.
    """
    require_video(path)
    limits = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:  # the absolute path: a file may be called `http:…`
        container = av.open(os.path.abspath(path), metadata_errors="replace", options=limits)
    except av.error.FFmpegError as error:
        why = "a picture or a list of files" if isinstance(error, av.error.ArgumentError) else error.strerror
        raise VideoError("unreadable", path, f"not a video that FFmpeg can open ({why})") from error
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return container, stream
    kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
    container.close()
    raise VideoError("no_video_stream", path, f"it holds {' and '.join(kinds) or 'nothing'}, but no video")


def probe(path: Path) -> VideoInfo:
    """Read a video's size and rate from its header, and count its frames without decoding them."""
    times, n_missing = frame_times(path)  # first: it refuses what OpenCV should not even see
    capture = open_video(path)
    try:
        width, height = (int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        fps = capture.get(cv2.CAP_PROP_FPS)
    finally:
        capture.release()
    if width * height > LARGEST_FRAME:
        raise VideoError("too_large", path, f"frames of {width} x {height}, more than 8K: scale the video down")
    return VideoInfo(width, height, len(times), fps, n_missing, times)


def frame_times(path: Path) -> tuple[np.ndarray, int]:
    """When each frame is shown, in order: (n_frames,) milliseconds; NaN throughout where the file does not say.

    Read from the packets, without decoding: what a header claims may be wrong, and counting decoded frames goes
    wrong as soon as one can't be decoded. The second value: how many frames the header promises beyond these.
    """
    container, stream = open_container(path)
    try:
        with container:
            packets = [(packet.pts, packet.is_discard) for packet in container.demux(stream) if packet.size]
            start, tick, promised = stream.start_time, stream.time_base, stream.frames
    except av.error.FFmpegError as error:
        raise VideoError("unreadable", path, f"FFmpeg can't read its video stream ({error.strerror})") from error
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
    rate. A frame that can't be decoded, or is of another size than the video's, is left out, and shifts no other's
    number: a frame is known by its time, not by counting. (Upstream counted.) info: what `probe` said of the file, if
    it was asked.
    """
    wanted, info = {int(i) for i in indices}, info or probe(path)
    times, last, position = info.times, max(wanted, default=-1), -1
    container, stream = open_container(path)
    with container:
        stream.thread_count = 1  # worker processes must not fight for cores
        for packet in _demux(container, stream):
            expected = _frame_number(packet, stream, times)
            stream.codec_context.skip_frame = "DEFAULT" if expected is None or expected in wanted else "NONREF"
            for frame in _decode(packet):
                number = _frame_number(frame, stream, times)
                number = position + 1 if number is None else number
                if number <= position:
                    continue
                position = number
                if position in wanted and _fits(frame, info):
                    yield position, _upright(frame)
            if position >= last:
                return


def _demux(container: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of a stream; a file that can't be read on ends there."""
    try:
        yield from container.demux(stream)
    except av.error.FFmpegError:
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
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), _quarter_turns(frame)))


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counterclockwise; 0 where the file asks for less than a quarter, as OpenCV has it."""
    return 0 if frame.rotation % 90 else frame.rotation // 90


def _fits(frame: av.VideoFrame, info: VideoInfo) -> bool:
    """Is a frame of the size that `probe` saw? A stream may change it midway; the boxes of a face would not."""
    size = (frame.width, frame.height)
    return (size[::-1] if _quarter_turns(frame) % 2 else size) == (info.width, info.height)


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
