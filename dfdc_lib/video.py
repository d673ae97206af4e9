"""Decode exact frames of a video, and write one. Frames are (H, W, 3) uint8 RGB, as a player shows them."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer
from av.sidedata.sidedata import Type
from av.stream import Disposition

# FFmpeg's names of what is read. No pictures; and no playlists, which make it open further files and addresses.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mxf,rm,h264,hevc,mpegvideo,m4v,dv,ivf,nut"
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
    """What `probe` says of a video. Width and height are those of its first frame, in square pixels."""

    width: int
    height: int
    n_frames: int  # that a player shows
    fps: float
    n_missing: int = 0  # frames that the header promises beyond these: a download that broke off
    numbers: dict[int, int] = field(default_factory=dict, compare=False, repr=False)  # packet → frame_idx, if shown
    pixel_aspect: float = field(default=1.0, compare=False)  # width of a stored pixel, heights
    orientation: tuple[int, ...] = field(default=(1, 0, 0, 1), compare=False)  # see `_orient`


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


def open_container(path: Path) -> tuple[InputContainer, av.VideoStream]:
    """Open a video with PyAV: the container, to be closed, and the video stream that a player shows.

    That is the one marked as default, else the first; the cover of a song or a film is none. It decodes in one thread
    (worker processes must not fight for cores), and each frame's `opaque` is its packet's.
    Raises FileNotFoundError, or VideoError with status `unreadable`, `no_video_stream` or `too_large`.
    """
    require_video(path)
    limits = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:  # the absolute path: a file may be called `http:…`
        container = av.open(os.path.abspath(path), metadata_errors="replace", options=limits)
    except av.error.FFmpegError as error:
        why = error.strerror
        if isinstance(error, av.error.ArgumentError):  # not on the list
            why = "its format is not among those that are read here, MP4, MOV, MKV, WebM, AVI, TS, MPEG, MXF, …"
        raise VideoError("unreadable", path, f"not a video that FFmpeg can open ({why})") from error
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
        container.close()
        raise VideoError("no_video_stream", path, f"it holds {' and '.join(kinds) or 'nothing'}, but no video")
    stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
    if stream.codec_context is None:
        container.close()
        raise VideoError("unreadable", path, "FFmpeg has no decoder for its video stream")
    stream.thread_count, stream.codec_context.copy_opaque = 1, True
    stream.codec_context.flags |= Flags.unaligned  # else a crop at the left is left undone
    return container, stream


class _Packet(NamedTuple):
    """What a packet says of the frame in it, without decoding."""

    pts: int | None  # when it is shown
    dts: int | None  # when it is decoded
    is_key: bool
    is_shown: bool  # not cut away by an edit list, nor only there for others to be predicted from


def probe(path: Path) -> VideoInfo:
    """Read a video's size and rate, and count the frames that a player shows; in most files one frame is decoded.

    Raises FileNotFoundError, or VideoError with status `unreadable`, `no_video_stream` or `too_large`.
    """
    container, stream = open_container(path)
    packets, frame = [], None
    try:
        with container:
            _require_size(path, stream.width, stream.height)
            for packet in container.demux(stream):
                if packet.size:
                    packets.append(_describe(packet, stream))
                if frame is None:
                    frame = next(iter(_decode(packet)[0]), None)
            aspect, rate = stream.sample_aspect_ratio, stream.average_rate or stream.guessed_rate
            n_missing, reorders = _count_missing(container, stream, packets), stream.codec_context.has_b_frames
    except av.error.FFmpegError as error:
        raise VideoError("unreadable", path, f"FFmpeg can't read its video stream ({error.strerror})") from error
    order = _order_by_times(packets, reorders)
    numbers = _number(_order_by_decoding(path) if order is None else order)
    info = VideoInfo(0, 0, len(numbers), float(rate or 0), n_missing, numbers, float(aspect or 1))
    stored = (stream.width, stream.height)
    if frame is not None:
        info, stored = replace(info, orientation=_read_orientation(frame)), (frame.width, frame.height)
    width, height = _shown_size(*stored, info)
    _require_size(path, width, height)
    return replace(info, width=width, height=height)


def _require_size(path: Path, width: int, height: int) -> None:
    if width * height > LARGEST_FRAME:
        raise VideoError("too_large", path, f"frames of {width} x {height}, more than 8K: scale the video down")


def _describe(packet: av.Packet, stream: av.VideoStream) -> _Packet:
    # VP8 says in the first byte whether a frame is shown; containers tell it of no codec.
    hidden = stream.codec_context.name == "vp8" and not memoryview(packet)[0] & 0x10
    return _Packet(packet.pts, packet.dts, packet.is_keyframe, not (packet.is_discard or hidden))


def _count_missing(container: InputContainer, stream: av.VideoStream, packets: list[_Packet]) -> int:
    """How many frames the header promises beyond the file's end."""
    if container.format.name != "avi" or len(packets) < 2 or None in (times := [p.dts for p in packets]):
        return max(stream.frames - len(packets), 0)
    # An AVI's header also counts chunks of 0 bytes: the frame stays. The last one may stay as long as any other did.
    steps = np.diff(times)
    return max(int((stream.frames - times[-1] - steps.max()) // max(np.median(steps), 1)), 0)


def _order_by_times(packets: Sequence[_Packet], reorders: bool) -> list[int] | None:
    """The shown packets in the order of their times; None where the times can't be believed, or are not all known.

    So it is where two are shown at once; where something is shown before the first key frame (its neighbours were cut
    off, and decoders leave it out); and where the decoder puts frames into another order but their times do not:
    then a container that knows only decode times was copied.
    """
    times = [packet.pts for packet in packets]
    if None in times or len(set(times)) < len(times):
        return None
    in_order = all(earlier < later for earlier, later in pairwise(times))
    if times and (not packets[0].is_key or min(times) < times[0] or (reorders and in_order)):
        return None
    return sorted((i for i, packet in enumerate(packets) if packet.is_shown), key=times.__getitem__)


def _order_by_decoding(path: Path) -> list[int]:
    """The shown packets in the order in which the decoder puts out their frames; a broken one where it failed."""
    order = []
    container, stream = open_container(path)
    with container:
        for packet in _demux(container, stream):
            frames, failed = _decode(packet)
            order += [frame.opaque for frame in frames]
            if failed and packet.size:
                order.append(packet.opaque)
    return list(dict.fromkeys(order))


def _number(order: Sequence[int]) -> dict[int, int]:
    """The frame number of each packet that is shown."""
    return {packet: frame_idx for frame_idx, packet in enumerate(order)}


def iterate_frames(
    path: Path, indices: Iterable[int], info: VideoInfo | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (frame_idx, frame) for the wanted frame numbers, in order, decoding the file once, in one thread.

    Frames in between that no other frame is predicted from are not even decoded; about a third of the time is saved,
    and the wanted ones stay the same to the bit. Seeking by frame number would be wrong on videos of variable frame
    rate. A frame that can't be decoded is left out, and shifts no other's number: a frame is known by its packet, not
    by counting. (Upstream counted.) Where a video's size changes midway, each frame has its own. info: what `probe`
    said of the file, if it was asked.
    """
    wanted, info, position = {int(i) for i in indices}, info or probe(path), -1
    last = max(wanted, default=-1)
    container, stream = open_container(path)
    with container:
        stream.codec_context.options = {"max_pixels": str(LARGEST_FRAME)}
        for packet in _demux(container, stream):
            # (A packet that shows nothing itself may complete the frame of another: half of an interlaced one.)
            needed = info.numbers.get(packet.opaque, last) in wanted
            stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
            for frame in _decode(packet)[0]:
                number = info.numbers.get(frame.opaque, -1)
                if -1 < number < position:  # the times were wrong after all
                    counted = replace(info, numbers=_number(_order_by_decoding(path)))
                    yield from iterate_frames(path, [i for i in wanted if i > position], counted)
                    return
                if number in wanted:
                    yield number, _picture(frame, info)
                position = max(position, number)
            if position >= last:
                return


def _demux(container: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of a stream, numbered by their `opaque`; a file that can't be read on ends there."""
    number = 0
    try:
        for packet in container.demux(stream):
            packet.opaque = number
            number += bool(packet.size)
            yield packet
    except av.error.FFmpegError:
        return


def _decode(packet: av.Packet) -> tuple[list[av.VideoFrame], bool]:
    """The frames that a packet completes, none for a broken one; and whether it is broken."""
    try:
        return packet.decode(), False
    except av.error.FFmpegError:
        return [], True


def _read_orientation(frame: av.VideoFrame) -> tuple[int, ...]:
    """How the file asks players to turn and mirror its frames: (a, b, c, d), see `_orient`.

    From the matrix in its header, or H.264's own message, which may come with the first frame only. What is not
    a quarter turn is not followed.
    """
    matrix = next((bytes(data) for data in frame.side_data if data.type == Type.DISPLAYMATRIX), b"")
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist() or (1, 0, 0, 0, 1)
    upright, sideways = min(abs(a), abs(d)), min(abs(b), abs(c))
    if upright > 100 * max(abs(b), abs(c)) or sideways > 100 * max(abs(a), abs(d)):
        return tuple(int(np.sign(value)) * (abs(value) * 100 > max(upright, sideways)) for value in (a, b, c, d))
    return 1, 0, 0, 1


def _orient(picture: np.ndarray, orientation: tuple[int, ...]) -> np.ndarray:
    """Carry the pixel at (x, y) to (a x + c y, b x + d y), but for a shift back into the picture."""
    a, b, c, d = orientation
    if not a:
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: d or 1, :: a or 1]


def _shown_size(width: int, height: int, info: VideoInfo) -> tuple[int, int]:
    """Of a stored frame as it is shown: pixels made square by enlarging, then turned."""
    if info.pixel_aspect > 1:
        width = round(width * info.pixel_aspect)
    else:
        height = round(height / info.pixel_aspect)
    return (width, height) if info.orientation[0] else (height, width)


def _picture(frame: av.VideoFrame, info: VideoInfo) -> np.ndarray:
    """A frame as RGB: pixels made square, turned and mirrored as the file asks (a telephone held upright)."""
    picture = _orient(frame.to_ndarray(format="rgb24"), info.orientation)
    size = _shown_size(frame.width, frame.height, info)
    if size != picture.shape[1::-1]:
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(picture)


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
