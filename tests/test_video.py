from dataclasses import replace
from fractions import Fraction

import av
import av.bitstream
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from conftest import set_matrix, write_intra_video

from dfdc_lib import video
from dfdc_lib.geometry import spread_indices


def coded_frames(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frames whose brightness tells their number."""
    return [np.full((height, width, 3), 10 + 5 * i, np.uint8) for i in range(count)]


@pytest.fixture
def coded_video(tmp_path):
    path = tmp_path / "coded.mp4"
    video.write_video(path, coded_frames(40), crf=10)
    return path


def number_of(frame: np.ndarray) -> int:
    return round((float(frame.mean()) - 10) / 5)


def test_frames_carry_their_own_number(coded_video):
    wanted = [0, 1, 7, 8, 39]
    got = [(i, number_of(frame)) for i, frame in video.iterate_frames(coded_video, wanted)]
    assert got == [(i, i) for i in wanted]


def test_order_and_repeats_of_the_wanted_numbers_do_not_matter(coded_video):
    assert [i for i, _ in video.iterate_frames(coded_video, [9, 3, 9])] == [3, 9]


def test_a_video_that_ends_early_yields_what_it_has(coded_video):
    assert [i for i, _ in video.iterate_frames(coded_video, [38, 39, 40, 90])] == [38, 39]


def test_probe_tells_size_count_and_rate(coded_video):
    assert video.probe(coded_video) == video.VideoInfo(64, 48, 40, 30)


def test_frames_are_rgb(tmp_path):
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 220
    video.write_video(tmp_path / "red.mp4", [red] * 3)
    (_, frame) = next(video.iterate_frames(tmp_path / "red.mp4", [1]))
    assert frame[..., 0].mean() > 190
    assert frame[..., 2].mean() < 40


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (31, 31), (32, 32), (33, 32)])
def test_short_videos_give_all_their_frames_once(tmp_path, count, expected):
    video.write_video(tmp_path / "short.mp4", coded_frames(count))
    wanted = spread_indices(video.probe(tmp_path / "short.mp4").n_frames, 32)
    numbers = [number for number, _ in video.iterate_frames(tmp_path / "short.mp4", wanted)]
    assert len(numbers) == len(set(numbers)) == expected


def test_a_text_file_named_mp4_is_unreadable(tmp_path):
    path = tmp_path / "text.mp4"
    path.write_text("not a video")
    with pytest.raises(video.VideoError) as error:
        video.probe(path)
    assert error.value.status == "unreadable"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        video.probe(tmp_path / "gone.mp4")


def test_the_same_frames_give_the_same_bytes(tmp_path):
    for name in "ab":
        video.write_video(tmp_path / name, coded_frames(5))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_frame_that_can_not_be_decoded_shifts_no_other(tmp_path):
    write_intra_video(tmp_path / "damaged.mp4", coded_frames(40), drop=[17, 18, 25])
    got = [(i, number_of(frame)) for i, frame in video.iterate_frames(tmp_path / "damaged.mp4", range(40))]
    assert got == [(i, i) for i in range(40) if i not in (17, 18, 25)]


def test_a_variable_frame_rate_keeps_numbers(tmp_path):
    times = np.cumsum(np.random.default_rng(0).integers(5, 60, 40)).tolist()
    write_intra_video(tmp_path / "variable.mp4", coded_frames(40), times, drop=[6])
    got = [(i, number_of(frame)) for i, frame in video.iterate_frames(tmp_path / "variable.mp4", range(40))]
    assert got == [(i, i) for i in range(40) if i != 6]
    assert video.probe(tmp_path / "variable.mp4").n_frames == 40


def test_a_download_that_broke_off_says_how_much_is_missing(tmp_path):
    write_intra_video(tmp_path / "whole.mp4", coded_frames(40), options={"movflags": "faststart"})
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 6 // 10])
    info = video.probe(tmp_path / "cut.mp4")
    assert 5 < info.n_frames < 35
    assert info.n_frames + info.n_missing == 40
    got = [(i, number_of(frame)) for i, frame in video.iterate_frames(tmp_path / "cut.mp4", range(info.n_frames - 1))]
    assert got == [(i, i) for i in range(info.n_frames - 1)]


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mov", "ts"])
def test_containers_and_frames_out_of_order_keep_numbers(tmp_path, suffix):
    write_intra_video(tmp_path / f"v.{suffix}", coded_frames(40), options={"g": "12", "bf": "2"}, form=None)
    got = [(i, number_of(frame)) for i, frame in video.iterate_frames(tmp_path / f"v.{suffix}", range(40))]
    assert [i for i, _ in got] == sorted({i for i, _ in got})
    assert len(got) >= 38
    assert all(abs(i - number) <= 1 for i, number in got)


def opencv_frames(path) -> list[np.ndarray]:
    """Every frame, as OpenCV decodes it: the oracle."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return frames


@pytest.mark.parametrize("every", [1, 3, 10])
def test_frames_that_are_passed_over_change_none_of_the_others(tmp_path, every):
    """B-frames, pyramids of them, several references, scene cuts: to the bit what decoding every frame gives."""
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
    frames = [np.roll(picture, 3 * i, axis=1) if i % 25 else 255 - picture for i in range(90)]
    settings = {"bf": "3", "g": "30", "x264-params": "b-pyramid=normal:ref=4:scenecut=40"}
    write_intra_video(tmp_path / "moving.mp4", frames, options=settings)
    whole = opencv_frames(tmp_path / "moving.mp4")
    for number, frame in video.iterate_frames(tmp_path / "moving.mp4", range(0, 90, every)):
        assert np.array_equal(frame, whole[number])


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_telephone_held_upright_is_turned(tmp_path, degrees):
    picture = cv2.resize(np.random.default_rng(1).integers(0, 255, (6, 8, 3), dtype=np.uint8), (64, 48))
    with av.open(str(tmp_path / "turned.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(degrees)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    info = video.probe(tmp_path / "turned.mp4")
    for (_, frame), other in zip(
        video.iterate_frames(tmp_path / "turned.mp4", range(3)), opencv_frames(tmp_path / "turned.mp4"), strict=True
    ):
        assert frame.shape == (info.height, info.width, 3)
        assert np.array_equal(frame, other)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le", "gray", "yuvj420p"])
def test_colours_are_those_that_opencv_sees(tmp_path, pixels):
    picture = cv2.resize(np.random.default_rng(2).integers(0, 255, (6, 8, 3), dtype=np.uint8), (64, 48))
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)))
        container.mux(stream.encode())
    ((_, frame),) = video.iterate_frames(tmp_path / "v.mp4", [0])
    apart = np.abs(frame.astype(int) - opencv_frames(tmp_path / "v.mp4")[0])
    assert apart.mean() < 2 if pixels == "yuv420p10le" else apart.max() <= 1  # 10 bits are rounded in other ways


# ------------------------------------------------------------------------------------- what containers say and mean


def remux(source, target, change=lambda packets: packets, form=None):
    """Copy a video's packets into another container, as `ffmpeg -c copy` does; `change` makes others of their list."""
    with av.open(str(source)) as given, av.open(str(target), "w", format=form) as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in change([packet for packet in given.demux(video=0) if packet.size]):
            packet.stream = stream
            made.mux(packet)


def numbers_of(path, wanted=range(1000)) -> list[tuple[int, int]]:
    """(number given, number that the picture tells) of each frame."""
    return [(number, number_of(frame)) for number, frame in video.iterate_frames(path, wanted)]


@pytest.mark.parametrize("suffix", ["mp4", "flv", "mkv"])
def test_decode_times_that_were_stored_as_show_times_do_not_shift_or_drop_frames(tmp_path, suffix):
    """An AVI with B-frames knows decode times only; copied into another container they pass for times of showing."""

    def pass_off(packets):
        for packet in packets:
            packet.pts = packet.dts
        return packets

    write_intra_video(tmp_path / "b.avi", coded_frames(40), options={"g": "12", "bf": "2"}, form="avi")
    remux(tmp_path / "b.avi", tmp_path / f"copied.{suffix}", pass_off)
    assert video.probe(tmp_path / f"copied.{suffix}").n_frames == 40
    assert numbers_of(tmp_path / f"copied.{suffix}") == [(i, i) for i in range(40)]
    assert numbers_of(tmp_path / f"copied.{suffix}", range(0, 40, 7)) == [(i, i) for i in range(0, 40, 7)]


def test_times_that_turn_out_wrong_while_decoding_drop_no_frame(tmp_path, monkeypatch):
    write_intra_video(tmp_path / "b.mp4", coded_frames(40), options={"g": "12", "bf": "2"})
    info = video.probe(tmp_path / "b.mp4")
    wrong = dict(enumerate(range(40)))  # packet by packet, as if nothing were put into another order
    got = list(video.iterate_frames(tmp_path / "b.mp4", range(40), replace(info, numbers=wrong)))
    numbers = [number for number, _ in got]
    assert numbers == sorted(set(numbers))
    assert set(range(8, 40)) <= {number for number, frame in got if number == number_of(frame)}


@pytest.mark.parametrize("same_time", [True, False])
def test_frames_that_are_never_shown_are_not_counted(tmp_path, same_time):
    """VP8's alternate references only serve prediction: a bit in their first byte says so, and no time does."""

    def hide_tenth(packets):
        data = bytearray(bytes(packets[10]))
        data[0] &= ~0x10
        packets[10].update(bytes(data))
        packets[10].pts = packets[10].dts = packets[11].pts - (0 if same_time else 1)
        return packets

    with av.open(str(tmp_path / "all.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        for picture in coded_frames(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    remux(tmp_path / "all.webm", tmp_path / "hidden.webm", hide_tenth)
    assert video.probe(tmp_path / "hidden.webm").n_frames == 39
    shown = [number for number in range(40) if number != 10]
    assert numbers_of(tmp_path / "hidden.webm") == list(enumerate(shown))
    assert numbers_of(tmp_path / "hidden.webm", [9, 10, 30]) == [(9, 9), (10, 11), (30, 31)]


def test_chunks_of_an_avi_that_repeat_a_frame_are_not_missing(tmp_path):
    """A frame each 20 ticks of 1/600 s: the 19 between are empty chunks, which the header counts."""
    write_intra_video(tmp_path / "v.avi", coded_frames(40), form="avi")
    with av.open(str(tmp_path / "v.avi")) as container:
        assert container.streams.video[0].frames > 700
    info = video.probe(tmp_path / "v.avi")
    assert (info.n_frames, info.n_missing) == (40, 0)
    assert numbers_of(tmp_path / "v.avi") == [(i, i) for i in range(40)]


def test_an_avi_that_ends_early_says_so(tmp_path):
    frames = [np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8) for i in range(40)]
    with av.open(str(tmp_path / "v.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    data = (tmp_path / "v.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    info = video.probe(tmp_path / "cut.avi")
    assert 15 < info.n_frames < 25
    assert info.n_frames + info.n_missing == 40


def test_leading_pictures_of_a_cut_are_not_counted(tmp_path):
    """Cut at the key frame of an open group: the pictures that lead it can't be decoded, and no player shows them."""

    def from_second_key(packets):
        keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
        return packets[keys[1] :]

    with av.open(str(tmp_path / "whole.mkv"), "w") as container:
        stream = container.add_stream("libx265", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {
            "x265-params": "keyint=12:min-keyint=12:bframes=3:b-adapt=0:open-gop=1:log-level=0",
            "crf": "4",
        }
        for picture in coded_frames(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    remux(tmp_path / "whole.mkv", tmp_path / "cut.mkv", from_second_key)
    got = numbers_of(tmp_path / "cut.mkv")
    assert [given for given, _ in got] == list(range(len(got)))
    assert [told for _, told in got] == list(range(12, 40))
    assert video.probe(tmp_path / "cut.mkv").n_frames == 28


# --------------------------------------------------------------------------------------------- the picture as shown

CORNERS = {(-1, -1): (200, 30, 30), (1, -1): (30, 200, 30), (-1, 1): (30, 30, 200), (1, 1): (200, 200, 200)}
COLOURS = np.array(list(CORNERS.values()))


def corner_picture(width: int = 64, height: int = 48) -> np.ndarray:
    """A picture whose corners differ in colour. CORNERS: (x, y) from the middle, y down → RGB."""
    picture = np.zeros((height, width, 3), np.uint8)
    for (x, y), colour in CORNERS.items():
        picture[
            (slice(height // 2), slice(height // 2, None))[y > 0], (slice(width // 2), slice(width // 2, None))[x > 0]
        ] = colour
    return picture


def corners_of(picture: np.ndarray) -> dict[tuple[int, int], tuple]:
    """As CORNERS, of a decoded picture: the colours that are nearest."""
    height, width = picture.shape[:2]
    seen = {}
    for x, y in CORNERS:
        quarter = picture[(1 + 2 * (y > 0)) * height // 4, (1 + 2 * (x > 0)) * width // 4].astype(int)
        seen[x, y] = tuple(COLOURS[np.abs(COLOURS - quarter).sum(axis=1).argmin()].tolist())
    return seen


@pytest.mark.parametrize(
    "matrix",
    [
        (1, 0, 0, 1),
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (-1, 0, 0, -1),
        (0, 1, -1, 0),
        (0, -1, 1, 0),
        (0, 1, 1, 0),
        (0, -1, -1, 0),
    ],
)
def test_a_matrix_that_turns_and_mirrors_is_followed(tmp_path, matrix):
    video.write_video(tmp_path / "v.mp4", [corner_picture()] * 3, crf=5)
    set_matrix(tmp_path / "v.mp4", *matrix)
    a, b, c, d = matrix
    expected = {(a * x + c * y, b * x + d * y): colour for (x, y), colour in CORNERS.items()}
    info = video.probe(tmp_path / "v.mp4")
    assert (info.width, info.height) == ((64, 48) if a else (48, 64))
    for _, frame in video.iterate_frames(tmp_path / "v.mp4", range(3), info):
        assert frame.shape == (info.height, info.width, 3)
        assert corners_of(frame) == expected


def test_an_orientation_that_the_stream_tells_once_holds_for_all_frames(tmp_path):
    """H.264 has a message for it, which may come with the first frame alone."""
    video.write_video(tmp_path / "plain.mp4", [corner_picture()] * 6, crf=5)
    with av.open(str(tmp_path / "plain.mp4")) as given, av.open(str(tmp_path / "told.mp4"), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        filtering = av.bitstream.BitStreamFilterContext(
            "h264_metadata=display_orientation=insert:rotate=90", given.streams.video[0]
        )
        for number, packet in enumerate(p for p in given.demux(video=0) if p.size):
            for other in filtering.filter(packet) if number == 0 else [packet]:
                other.stream = stream
                made.mux(other)
    shapes = {frame.shape for _, frame in video.iterate_frames(tmp_path / "told.mp4", range(6))}
    assert shapes == {(64, 48, 3)}


@pytest.mark.parametrize(
    ("aspect", "size"), [(Fraction(2, 1), (128, 48)), (Fraction(1, 2), (64, 96)), (None, (64, 48))]
)
def test_pixels_are_shown_square(tmp_path, aspect, size):
    picture = corner_picture()
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    info = video.probe(tmp_path / "v.mp4")
    assert (info.width, info.height) == size
    for _, frame in video.iterate_frames(tmp_path / "v.mp4", range(3), info):
        assert frame.shape[1::-1] == size
        assert corners_of(frame) == CORNERS


def test_turned_pixels_that_are_not_square(tmp_path):
    video.write_video(tmp_path / "v.mp4", [corner_picture()] * 3, crf=5)
    set_matrix(tmp_path / "v.mp4", 0, 1, -1, 0)
    info = replace(video.probe(tmp_path / "v.mp4"), pixel_aspect=2.0)
    (_, frame) = next(video.iterate_frames(tmp_path / "v.mp4", [0], info))
    assert frame.shape == (128, 48, 3)


def write_streams(path, *kinds):
    """An mp4 with several video streams: (picture, disposition) each."""
    with av.open(str(path), "w") as container:
        streams = []
        for picture, disposition in kinds:
            stream = container.add_stream("libx264" if disposition != Disposition.attached_pic else "mjpeg", rate=30)
            stream.height, stream.width = picture.shape[:2]
            stream.pix_fmt, stream.disposition = "yuvj420p" if stream.name == "mjpeg" else "yuv420p", disposition
            streams.append(stream)
        for stream, (picture, disposition) in zip(streams, kinds, strict=True):
            for _ in range(1 if disposition == Disposition.attached_pic else 4):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())


@pytest.mark.parametrize("first", [Disposition.attached_pic, Disposition.dub])
def test_the_stream_that_is_judged_is_the_one_that_plays(tmp_path, first):
    """Not the cover, and not another angle: the default track; size and frames come from it."""
    write_streams(
        tmp_path / "v.mp4", (np.zeros((200, 200, 3), np.uint8), first), (corner_picture(), Disposition.default)
    )
    info = video.probe(tmp_path / "v.mp4")
    assert (info.width, info.height, info.n_frames) == (64, 48, 4)
    got = list(video.iterate_frames(tmp_path / "v.mp4", range(4), info))
    assert [number for number, _ in got] == [0, 1, 2, 3]
    assert all(corners_of(frame) == CORNERS for _, frame in got)


@pytest.mark.parametrize("left", [2, 16, 34])
def test_a_cropping_that_the_stream_asks_for_is_followed_in_the_size_too(tmp_path, left):
    write_intra_video(tmp_path / "whole.ts", [corner_picture(128, 96)] * 4, form="mpegts")
    with av.open(str(tmp_path / "whole.ts")) as given, av.open(str(tmp_path / "cropped.ts"), "w") as made:
        source = given.streams.video[0]
        cropping = av.bitstream.BitStreamFilterContext(f"h264_metadata=crop_left={left}:crop_bottom=4", source)
        stream = made.add_stream_from_template(source)
        for packet in given.demux(video=0):
            for other in cropping.filter(packet if packet.size else None):
                other.stream = stream
                made.mux(other)
    info = video.probe(tmp_path / "cropped.ts")
    assert (info.width, info.height, info.n_frames) == (128 - left, 92, 4)
    whole = dict(video.iterate_frames(tmp_path / "whole.ts", range(4)))
    got = dict(video.iterate_frames(tmp_path / "cropped.ts", range(4), info))
    assert sorted(got) == [0, 1, 2, 3]
    assert all(np.abs(frame.astype(int) - whole[number][:92, left:]).max() <= 2 for number, frame in got.items())


def test_a_size_that_changes_midway_loses_no_frame(tmp_path):
    """As recordings of video calls do: each frame has its own size."""
    small, large = coded_frames(10), coded_frames(30, 128, 96)
    for name, frames, form in (("small", small, "mpegts"), ("large", large[10:], "mpegts")):
        write_intra_video(tmp_path / f"{name}.ts", frames, form=form)
    (tmp_path / "grows.ts").write_bytes((tmp_path / "small.ts").read_bytes() + (tmp_path / "large.ts").read_bytes())
    got = list(video.iterate_frames(tmp_path / "grows.ts", range(30)))
    assert [(number, number_of(frame)) for number, frame in got] == [(i, i) for i in range(30)]
    assert [frame.shape[1] for _, frame in got] == [64] * 10 + [128] * 20
    assert video.probe(tmp_path / "grows.ts").width == 64


@pytest.mark.parametrize(
    ("codec", "suffix"), [("libx264", "h264"), ("libx265", "hevc"), ("mpeg2video", "mxf"), ("rv20", "rm")]
)
def test_raw_streams_and_broadcast_containers_are_read(tmp_path, codec, suffix):
    with av.open(str(tmp_path / f"v.{suffix}"), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        stream.options = {"x265-params": "log-level=0", "crf": "10"} if codec.startswith("libx") else {}
        for picture in coded_frames(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    assert numbers_of(tmp_path / f"v.{suffix}") == [(i, i) for i in range(30)]
