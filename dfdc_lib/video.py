"""Decode exact frames of a video, as a player shows them: (H, W, 3) uint8 RGB.

A picture counts as a video with one frame.
"""

import importlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer
from av.stream import Disposition
from PIL import Image, ImageOps, UnidentifiedImageError

from dfdc_lib.jobs import count_cores

Frames = Iterator[tuple[int, np.ndarray]]  # (frame_idx, picture)
# FFmpeg's names of what we read. No playlists: they make it open other files and addresses.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mxf,rm,h264,hevc,mpegvideo,m4v,dv,ivf,nut"
LARGEST_FRAME = 8192 * 4320  # pixels: a few kilobytes can declare frames that fill the memory


def printable(path: Path | str) -> str:
    """A path as any terminal or table can show it: bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode(errors="replace")


def time_code(seconds: float) -> str:
    """A time in a video, as players show it: 65.5 → 1:05.50."""
    minutes, rest = divmod(round(seconds, 2), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{rest:05.2f}" if hours else f"{minutes}:{rest:05.2f}"


class VideoError(Exception):
    """A video that can't be used: `status` is the journal's word for it, `reason` a sentence."""

    def __init__(self, status: str, path: Path, reason: str):
        super().__init__(f"{printable(path)}: {reason}")
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` says about a video; the size is its first frame's, in square pixels."""

    width: int
    height: int
    n_frames: int  # that a player shows
    fps: float
    n_missing: int = 0  # frames that the header promises beyond these: a download that broke off
    # (n_frames,): when each frame is shown, in seconds after the first
    times: np.ndarray = field(default_factory=lambda: np.zeros(1), compare=False, repr=False)
    # the frame_idx of each packet that is shown
    numbers: dict[int, int] = field(default_factory=dict, compare=False, repr=False)
    pixel_aspect: float = field(default=1.0, compare=False)  # width over height, as stored
    orientation: tuple[int, ...] = field(default=(1, 0, 0, 1), compare=False)  # as read


def open_container(path: Path) -> tuple[InputContainer, av.VideoStream]:
    """Open a video with PyAV: the container, to be closed, and the stream that a player shows.

    That is the one marked as default, or else the first; cover art doesn't count. Each frame gets
    its packet's `opaque`. Raises FileNotFoundError, or VideoError with status `unreadable`,
    `no_video_stream` or `too_large`.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise VideoError("unreadable", path, "a folder, a pipe or a device, not a file")
    limits = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:  # the absolute path: a file may be called `http:…`
        container = av.open(os.path.abspath(path), metadata_errors="replace", options=limits)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such video: {printable(path)}") from error
    except av.error.FFmpegError as error:
        unlisted = "its format is not MP4, MOV, MKV, WebM, AVI, TS, MPEG, MXF, …"
        why = unlisted if isinstance(error, av.error.ArgumentError) else error.strerror
        raise VideoError("unreadable", path, f"not a video that FFmpeg can open ({why})") from error
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
        container.close()
        found = " and ".join(kinds) or "nothing"
        raise VideoError("no_video_stream", path, f"it holds {found}, but no video")
    stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
    if stream.codec_context is None:
        container.close()
        raise VideoError("unreadable", path, "FFmpeg has no decoder for its video stream")
    stream.thread_count = 1  # worker processes must not fight for cores
    stream.codec_context.copy_opaque = True
    stream.codec_context.options = {"max_pixels": str(LARGEST_FRAME)}
    stream.codec_context.flags |= Flags.unaligned  # else cropping on the left is ignored
    return container, stream


class _Packet(NamedTuple):
    """What a packet says about the frame in it, without decoding."""

    pts: int | None  # when it is shown
    dts: int | None  # when it is decoded
    is_key: bool
    is_shown: bool  # not cut by an edit list, nor there only to predict other frames from


@cache
def picture_formats() -> list[str]:
    """Pillow's names of the picture formats that can be read here."""
    Image.init()
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    return [name for name in ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF") if name in Image.OPEN]


def read_picture(path: Path) -> np.ndarray | None:
    """Read a picture, turned as its Exif data say; None if it isn't one. Raises VideoError."""
    if not os.path.isfile(path):
        return None
    try:
        with Image.open(path, formats=picture_formats()) as picture:
            _require_size(path, *picture.size)
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except UnidentifiedImageError:
        with open(path, "rb") as file:  # FFmpeg would take an iPhone's for a video of its tiles
            if file.read(12)[4:] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
                why = "a HEIC picture: pip install pillow-heif"
                raise VideoError("unreadable", path, why) from None
        return None
    except (OSError, SyntaxError, ValueError) as error:
        raise VideoError("unreadable", path, f"a damaged picture ({error})") from error


def probe(path: Path) -> VideoInfo:
    """Read a video's size and rate, and count its frames. Raises what `open_container` raises."""
    if (picture := read_picture(path)) is not None:
        height, width = picture.shape[:2]
        return VideoInfo(width, height, n_frames=1, fps=0.0)
    container, stream = open_container(path)
    packets, frame, coded_as = [], None, stream.codec_context.name
    size = stream.width, stream.height
    try:
        with container:
            _require_size(path, *size)
            for packet in container.demux(stream):
                if packet.size:
                    # VP8 says in the first byte whether a frame is shown; containers do not.
                    hidden = coded_as == "vp8" and not memoryview(packet)[0] & 0x10
                    shown = not (packet.is_discard or hidden)
                    packets.append(_Packet(packet.pts, packet.dts, packet.is_keyframe, shown))
                if frame is None:
                    frame = next((frame for _, frame in _decode(packet)), None)
            aspect, rate = stream.sample_aspect_ratio, stream.average_rate or stream.guessed_rate
            tick = float(stream.time_base or 0)
            n_missing = _count_missing(stream, packets, container.format.name == "avi")
            reorders = stream.codec_context.has_b_frames
    except av.error.FFmpegError as error:
        why = f"FFmpeg can't read its video stream ({error.strerror})"
        raise VideoError("unreadable", path, why) from error
    numbers = _number_by_times(packets, reorders)
    if numbers is None:
        numbers = _number_by_decoding(path)
        times = np.arange(len(numbers)) / float(rate or 1)
    else:
        times = np.array([packets[i].pts for i in numbers], float) * tick
    times -= times[:1]
    tempo, shape = float(rate or 0), float(aspect or 1)
    info = VideoInfo(*size, len(numbers), tempo, n_missing, times, numbers, shape)
    if frame is not None:
        size = frame.width, frame.height
        info = replace(info, orientation=_read_orientation(frame))
    width, height = _shown_size(*size, info)
    _require_size(path, width, height)
    return replace(info, width=width, height=height)


def _require_size(path: Path, width: int, height: int) -> None:
    if width * height > LARGEST_FRAME:
        why = f"frames of {width} x {height}, more than 8K: scale the video down"
        raise VideoError("too_large", path, why)


def _count_missing(stream: av.VideoStream, packets: list[_Packet], is_avi: bool) -> int:
    """How many frames the header promises beyond the file's end."""
    times = [packet.dts for packet in packets if packet.dts is not None]
    if not is_avi or len(times) < max(len(packets), 2):
        return max(stream.frames - len(packets), 0)
    # An AVI's header also counts empty chunks, which repeat a frame, even at the end.
    steps = np.diff(np.array(times))
    return max(int((stream.frames - times[-1] - steps.max()) // max(np.median(steps), 1)), 0)


def _number_by_times(packets: Sequence[_Packet], reorders: bool) -> dict[int, int] | None:
    """The frame number of each packet that is shown; None if the times can't be trusted.

    They can't if one is missing or occurs twice; if a frame comes before the first key frame
    (decoders drop it); or if the decoder changes the order but the times don't: then they are the
    times of decoding.
    """
    times = [packet.pts for packet in packets if packet.pts is not None]
    if len(set(times)) < len(packets):
        return None
    in_order = all(earlier < later for earlier, later in pairwise(times))
    if times and (not packets[0].is_key or min(times) < times[0] or (reorders and in_order)):
        return None
    shown = [i for i, packet in enumerate(packets) if packet.is_shown]
    shown.sort(key=times.__getitem__)
    return {packet: frame_idx for frame_idx, packet in enumerate(shown)}


def _number_by_decoding(path: Path) -> dict[int, int]:
    """Number packets in the order in which their frames are decoded, broken ones included."""
    container, stream = open_container(path)
    with container:
        order = [number for packet in _demux(container, stream) for number, _ in _decode(packet)]
    return {packet: frame_idx for frame_idx, packet in enumerate(dict.fromkeys(order))}


def iterate_frames(path: Path, indices: Iterable[int], info: VideoInfo | None = None) -> Frames:
    """Yield (frame_idx, frame) for the wanted frame numbers, in order, decoding the file once.

    Frames that aren't needed are not even decoded. Seeking by number would go wrong where the rate
    varies. A frame that can't be decoded shifts no other's number: frames are identified by their
    packets, not counted. Each frame has its own size. info: what `probe` returned.
    """
    wanted, info, position = {int(i) for i in indices}, info or probe(path), -1
    if not info.numbers and (picture := read_picture(path)) is not None:
        yield from [(0, picture)] if 0 in wanted else []
        return
    last = max(wanted, default=-1)
    container, stream = open_container(path)
    with container:
        for packet in _demux(container, stream):
            # A packet that shows nothing may complete another's frame: half of an interlaced one.
            needed = info.numbers.get(_packet_of(packet), last) in wanted
            stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
            for came_in, frame in _decode(packet):
                if frame is None:
                    continue
                number = info.numbers.get(came_in, -1)
                if -1 < number < position:  # the times were wrong after all
                    counted = replace(info, numbers=_number_by_decoding(path))
                    yield from iterate_frames(path, [i for i in wanted if i > position], counted)
                    return
                if number in wanted:
                    yield number, _picture(frame, info)
                position = max(position, number)
            if position >= last:
                return


def _demux(container: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of a stream, numbered in `opaque`, as far as the file can be read."""
    number = 0
    try:
        for packet in container.demux(stream):
            packet.opaque = (number,)  # a new object each time: PyAV tells them apart by address
            number += bool(packet.size)
            yield packet
    except av.error.FFmpegError:
        return


def _packet_of(marked) -> int:
    """The number of a packet, or of the one that a frame came in."""
    return marked.opaque[0] if marked.opaque else -1


def _decode(packet: av.Packet) -> list[tuple[int, av.VideoFrame | None]]:
    """The frames that a packet completes, each with its packet's number; None for a broken one."""
    try:
        return [(_packet_of(frame), frame) for frame in packet.decode()]
    except av.error.FFmpegError:
        return [(_packet_of(packet), None)] if packet.size else []


def _read_orientation(frame: av.VideoFrame) -> tuple[int, ...]:
    """How the file asks players to turn and mirror its frames.

    (a, b, c, d) carries the pixel at (x, y) to (a x + c y, b x + d y), shifted into the picture. It
    comes from the file's header, or from H.264's own message, sometimes with the first frame only.
    Only quarter turns are applied.
    """
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX", b"")
    except ValueError:  # PyAV doesn't know Exif data, which motion JPEG may carry
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist() or (1, 0, 0, 0, 1)
    largest = max(map(abs, (a, b, c, d)))
    a, b, c, d = (int(np.sign(v)) * (100 * abs(v) > largest) for v in (a, b, c, d))
    is_quarter_turn = (a and d and not b and not c) or (b and c and not a and not d)
    return (a, b, c, d) if is_quarter_turn else (1, 0, 0, 1)


def _shown_size(width: int, height: int, info: VideoInfo) -> tuple[int, int]:
    """Width and height as shown: pixels made square by enlarging, then turned."""
    if info.pixel_aspect > 1:
        width = round(width * info.pixel_aspect)
    else:
        height = round(height / info.pixel_aspect)
    return (width, height) if info.orientation[0] else (height, width)


def _picture(frame: av.VideoFrame, info: VideoInfo) -> np.ndarray:
    """A frame as RGB, its pixels made square, turned and mirrored as the file asks."""
    picture: np.ndarray = frame.to_ndarray(format="rgb24")
    a, b, c, d = info.orientation
    if not a:
        picture, a, d = picture.swapaxes(0, 1), c, b  # a quarter turn: rows become columns
    picture = picture[::d, ::a]
    size = _shown_size(frame.width, frame.height, info)
    if size != picture.shape[1::-1]:
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(picture)


def read_frames(path: Path, wanted: Iterable[int], info: VideoInfo) -> Frames:
    """Like `iterate_frames`, but with several cores a thread decodes ahead of the caller."""
    frames = iterate_frames(path, wanted, info)
    return frames if count_cores() == 1 else run_ahead(frames, 4)


def in_groups(items: Iterable, size: int) -> Iterator[list]:
    """Yield lists of `size` consecutive items; the last may be shorter."""
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def run_ahead(items: Iterator, n_ahead: int) -> Iterator:
    """Yield what `items` yields, made by a thread that is at most `n_ahead` items ahead."""
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
