from dataclasses import replace
from fractions import Fraction

import av
import av.bitstream
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from conftest import set_matrix, write_intra_video
from PIL import Image

from dfdc_lib import video
from dfdc_lib.rehearsal.film import write_video

REORDERED = {"g": "12", "bf": "2"}  # options of an encoder: stored in another order than shown


def coded_frames(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frames whose brightness tells their number."""
    return [np.full((height, width, 3), 10 + 5 * i, np.uint8) for i in range(count)]


def number_of(frame: np.ndarray) -> int:
    return round((float(frame.mean()) - 10) / 5)


def numbers_of(path, wanted=range(1000)) -> list[tuple[int, int]]:
    """(number given, number that the picture tells) of each frame."""
    return [(number, number_of(frame)) for number, frame in video.iterate_frames(path, wanted)]


def same(numbers) -> list[tuple[int, int]]:
    """What `numbers_of` gives where each frame tells the number that it was given."""
    return [(number, number) for number in numbers]


def remux(source, target, change):
    """Copy packets, as changed by `change`, into another container, as `ffmpeg -c copy` does."""
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in change([packet for packet in given.demux(video=0) if packet.size]):
            packet.stream = stream
            made.mux(packet)


def filter_packets(source, target, settings: str, count: int) -> None:
    """Copy a video's packets, the first `count` of them through FFmpeg's h264_metadata."""
    with av.open(str(source)) as given:
        stream = given.streams.video[0]
        change = av.bitstream.BitStreamFilterContext(f"h264_metadata={settings}", stream)

        def apply(packets):
            changed = [other for packet in packets[:count] for other in change.filter(packet)]
            return changed + packets[count:]

        remux(source, target, apply)


def opencv_frames(path) -> list[np.ndarray]:
    """Every frame, as OpenCV decodes it: the oracle."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return frames


def test_frames_carry_their_own_number_in_whatever_order_they_are_wanted(tmp_path):
    write_video(tmp_path / "a.mp4", coded_frames(40), crf=10)
    assert video.probe(tmp_path / "a.mp4") == video.VideoInfo(64, 48, 40, 30)
    assert numbers_of(tmp_path / "a.mp4", [9, 3, 9]) == same([3, 9])
    assert numbers_of(tmp_path / "a.mp4", [0, 1, 8, 38, 39, 40, 90]) == same([0, 1, 8, 38, 39])


VARIABLE = np.cumsum(np.random.default_rng(0).integers(5, 60, 40)).tolist()


@pytest.mark.parametrize("times", [None, VARIABLE], ids=["constant rate", "variable rate"])
def test_a_frame_that_can_not_be_decoded_shifts_no_other(tmp_path, times):
    drop = [17, 18, 25]
    write_intra_video(tmp_path / "damaged.mp4", coded_frames(40), times, drop)
    assert numbers_of(tmp_path / "damaged.mp4") == same(i for i in range(40) if i not in drop)
    assert video.probe(tmp_path / "damaged.mp4").n_frames == 40


@pytest.mark.parametrize("form", ["mp4", "avi"])
def test_a_download_that_broke_off_says_how_much_is_missing(tmp_path, form):
    path = tmp_path / "v"
    how = {"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {"movflags": "faststart"}}
    write_intra_video(path, coded_frames(40), form=form, **how)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    info = video.probe(path)
    assert 5 < info.n_frames < 35
    assert info.n_frames + info.n_missing == 40
    complete = range(info.n_frames - 1)
    assert numbers_of(path, complete) == same(complete)


CONTAINERS = dict.fromkeys(("avi", "mkv", "mov", "ts", "h264"), "libx264")
CONTAINERS |= {"hevc": "libx265", "mxf": "mpeg2video", "rm": "rv20"}


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_containers_raw_streams_and_frames_out_of_order_keep_numbers(tmp_path, suffix):
    path, options = tmp_path / f"v.{suffix}", REORDERED if suffix != "rm" else {}
    how = {"codec": CONTAINERS[suffix], "bit_rate": 4_000_000, "time_base": Fraction(1, 30)}
    write_intra_video(path, coded_frames(30), options=options, form=None, **how)
    assert numbers_of(path) == same(range(30))


@pytest.mark.parametrize("every", [1, 3, 10])
def test_frames_that_are_passed_over_change_none_of_the_others(tmp_path, every):
    """B-frames, pyramids of them, several references, scene cuts: the same to the bit."""
    small = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    picture = cv2.resize(small, (320, 240), interpolation=cv2.INTER_CUBIC)
    frames = [np.roll(picture, 3 * i, axis=1) if i % 25 else 255 - picture for i in range(90)]
    settings = {"bf": "3", "g": "30", "x264-params": "b-pyramid=normal:ref=4:scenecut=40"}
    write_intra_video(tmp_path / "moving.mp4", frames, options=settings)
    whole = opencv_frames(tmp_path / "moving.mp4")
    for number, frame in video.iterate_frames(tmp_path / "moving.mp4", range(0, 90, every)):
        assert np.array_equal(frame, whole[number])


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le", "gray", "yuvj420p"])
def test_colours_are_those_that_opencv_sees(tmp_path, pixels):
    noise = np.random.default_rng(2).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    write_intra_video(tmp_path / "v.mp4", [cv2.resize(noise, (64, 48))], pix_fmt=pixels)
    ((_, frame),) = video.iterate_frames(tmp_path / "v.mp4", [0])
    apart = np.abs(frame.astype(int) - opencv_frames(tmp_path / "v.mp4")[0])
    # 10 bits are rounded in other ways.
    assert apart.mean() < 2 if pixels == "yuv420p10le" else apart.max() <= 1


# What containers say and mean


@pytest.mark.parametrize("suffix", ["mp4", "flv", "mkv"])
def test_decode_times_that_were_stored_as_show_times_do_not_shift_or_drop_frames(tmp_path, suffix):
    """An AVI with B-frames knows decode times only; copied, they pass for times of showing."""

    def pass_off(packets):
        for packet in packets:
            packet.pts = packet.dts
        return packets

    avi, copied = tmp_path / "b.avi", tmp_path / f"copied.{suffix}"
    write_intra_video(avi, coded_frames(40), options=REORDERED, form="avi")
    remux(avi, copied, pass_off)
    assert video.probe(copied).n_frames == 40
    for wanted in (range(40), range(0, 40, 7)):
        assert numbers_of(copied, wanted) == same(wanted)


def test_times_that_turn_out_wrong_while_decoding_drop_no_frame(tmp_path):
    write_intra_video(tmp_path / "b.mp4", coded_frames(40), options=REORDERED)
    info = video.probe(tmp_path / "b.mp4")
    wrong = dict(same(range(40)))  # packet by packet, as if nothing were put into another order
    got = list(video.iterate_frames(tmp_path / "b.mp4", range(40), replace(info, numbers=wrong)))
    numbers = [number for number, _ in got]
    assert numbers == sorted(set(numbers))
    assert set(range(8, 40)) <= {number for number, frame in got if number == number_of(frame)}


@pytest.mark.parametrize("same_time", [True, False])
def test_frames_that_are_never_shown_are_not_counted(tmp_path, same_time):
    """VP8's alternate references only serve prediction: a bit of theirs says so, and no time."""

    def hide_tenth(packets):
        data = bytearray(bytes(packets[10]))
        data[0] &= ~0x10
        packets[10].update(bytes(data))
        packets[10].pts = packets[10].dts = packets[11].pts - (0 if same_time else 1)
        return packets

    how = {"codec": "libvpx", "options": {"g": "99"}}
    write_intra_video(tmp_path / "all.webm", coded_frames(40), form=None, **how)
    remux(tmp_path / "all.webm", tmp_path / "hidden.webm", hide_tenth)
    assert video.probe(tmp_path / "hidden.webm").n_frames == 39
    shown = [number for number in range(40) if number != 10]
    assert numbers_of(tmp_path / "hidden.webm") == list(enumerate(shown))
    assert numbers_of(tmp_path / "hidden.webm", [9, 10, 30]) == [(9, 9), (10, 11), (30, 31)]


def test_chunks_of_an_avi_that_repeat_a_frame_are_not_missing(tmp_path):
    """A frame each 20 ticks of 1/600 s: the header counts the 19 empty chunks between."""
    write_intra_video(tmp_path / "v.avi", coded_frames(40), form="avi")
    with av.open(str(tmp_path / "v.avi")) as container:
        assert container.streams.video[0].frames > 700
    info = video.probe(tmp_path / "v.avi")
    assert (info.n_frames, info.n_missing) == (40, 0)
    assert numbers_of(tmp_path / "v.avi") == same(range(40))


def test_leading_pictures_of_a_cut_are_not_counted(tmp_path):
    """Cut at an open group's key frame: what leads it can't be decoded, and no player shows it."""

    def from_second_key(packets):
        return packets[[packet.is_keyframe for packet in packets].index(True, 1) :]

    groups = "keyint=12:min-keyint=12:bframes=3:b-adapt=0:open-gop=1:log-level=0"
    how = {"codec": "libx265", "options": {"x265-params": groups, "crf": "4"}}
    write_intra_video(tmp_path / "whole.mkv", coded_frames(40), form=None, **how)
    remux(tmp_path / "whole.mkv", tmp_path / "cut.mkv", from_second_key)
    assert numbers_of(tmp_path / "cut.mkv") == list(enumerate(range(12, 40)))
    assert video.probe(tmp_path / "cut.mkv").n_frames == 28


# The picture as shown

# (x, y) from the middle, y down → RGB
CORNERS = {(-1, -1): (200, 30, 30), (1, -1): (30, 200, 30)}
CORNERS |= {(-1, 1): (30, 30, 200), (1, 1): (200, 200, 200)}
COLOURS = np.array(list(CORNERS.values()))


def corner_picture(width: int = 64, height: int = 48) -> np.ndarray:
    """A picture whose corners differ in colour."""
    quarters = COLOURS.reshape(2, 2, 3).astype(np.uint8)
    return quarters.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def corners_of(picture: np.ndarray) -> dict[tuple[int, int], tuple]:
    """As CORNERS, of a decoded picture: the colours that are nearest."""
    height, width = picture.shape[:2]
    seen = {}
    for x, y in CORNERS:
        quarter = picture[(2 + y) * height // 4, (2 + x) * width // 4].astype(int)
        seen[x, y] = tuple(COLOURS[np.abs(COLOURS - quarter).sum(axis=1).argmin()].tolist())
    return seen


UPRIGHT = [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)]
SIDEWAYS = [(0, 1, -1, 0), (0, -1, 1, 0), (0, 1, 1, 0), (0, -1, -1, 0)]


@pytest.mark.parametrize("matrix", UPRIGHT + SIDEWAYS)
def test_a_matrix_that_turns_and_mirrors_is_followed(tmp_path, matrix):
    write_video(tmp_path / "v.mp4", [corner_picture()] * 3, crf=5)
    set_matrix(tmp_path / "v.mp4", *matrix)
    a, b, c, d = matrix
    expected = {(a * x + c * y, b * x + d * y): colour for (x, y), colour in CORNERS.items()}
    info = video.probe(tmp_path / "v.mp4")
    assert (info.width, info.height) == ((64, 48) if a else (48, 64))
    for _, frame in video.iterate_frames(tmp_path / "v.mp4", range(3), info):
        assert frame.shape == (info.height, info.width, 3)
        assert corners_of(frame) == expected
    wide = replace(info, pixel_aspect=2.0)  # first made square, then turned
    (_, frame) = next(video.iterate_frames(tmp_path / "v.mp4", [0], wide))
    assert frame.shape == ((48, 128, 3) if a else (128, 48, 3))


def test_an_orientation_that_the_stream_tells_once_holds_for_all_frames(tmp_path):
    """H.264 has a message for it, which may come with the first frame alone."""
    write_video(tmp_path / "plain.mp4", [corner_picture()] * 6, crf=5)
    orientation = "display_orientation=insert:rotate=90"
    filter_packets(tmp_path / "plain.mp4", tmp_path / "told.mp4", orientation, count=1)
    shapes = {frame.shape for _, frame in video.iterate_frames(tmp_path / "told.mp4", range(6))}
    assert shapes == {(64, 48, 3)}


@pytest.mark.parametrize(
    ("aspect", "size"), [(Fraction(2, 1), (128, 48)), (Fraction(1, 2), (64, 96)), (1, (64, 48))]
)
def test_pixels_are_shown_square(tmp_path, aspect, size):
    write_intra_video(tmp_path / "v.mp4", [corner_picture()] * 3, aspect=aspect)
    info = video.probe(tmp_path / "v.mp4")
    assert (info.width, info.height) == size
    for _, frame in video.iterate_frames(tmp_path / "v.mp4", range(3), info):
        assert frame.shape[1::-1] == size
        assert corners_of(frame) == CORNERS


@pytest.mark.parametrize("first", [Disposition.attached_pic, Disposition.dub])
def test_the_stream_that_is_read_is_the_one_that_plays(tmp_path, first):
    """Not the cover, and not another angle: the default track; size and frames come from it."""
    pictures = {first: np.zeros((200, 200, 3), np.uint8), Disposition.default: corner_picture()}
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        streams = []
        for disposition, picture in pictures.items():
            cover = disposition == Disposition.attached_pic
            stream = container.add_stream("mjpeg" if cover else "libx264", rate=30)
            stream.height, stream.width = picture.shape[:2]
            stream.pix_fmt, stream.disposition = "yuvj420p" if cover else "yuv420p", disposition
            streams.append((stream, [picture] * (1 if cover else 4)))
        for stream, shown in streams:
            for picture in shown:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    info = video.probe(tmp_path / "v.mp4")
    assert (info.width, info.height, info.n_frames) == (64, 48, 4)
    got = video.iterate_frames(tmp_path / "v.mp4", range(4), info)
    assert [(i, corners_of(frame)) for i, frame in got] == [(i, CORNERS) for i in range(4)]


@pytest.mark.parametrize("left", [2, 16, 34])
def test_a_cropping_that_the_stream_asks_for_is_followed_in_the_size_too(tmp_path, left):
    write_intra_video(tmp_path / "whole.ts", [corner_picture(128, 96)] * 4, form="mpegts")
    cropping = f"crop_left={left}:crop_bottom=4"
    filter_packets(tmp_path / "whole.ts", tmp_path / "cropped.ts", cropping, count=4)
    info = video.probe(tmp_path / "cropped.ts")
    assert (info.width, info.height, info.n_frames) == (128 - left, 92, 4)
    whole = dict(video.iterate_frames(tmp_path / "whole.ts", range(4)))
    got = dict(video.iterate_frames(tmp_path / "cropped.ts", range(4), info))
    assert sorted(got) == [0, 1, 2, 3]
    for number, frame in got.items():
        assert np.abs(frame.astype(int) - whole[number][:92, left:]).max() <= 2


def test_two_videos_that_are_read_in_turn_do_not_mix(tmp_path):
    """PyAV keeps what a packet carries in one table for all files, by the object's address."""
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", coded_frames(24))
    begun = video.iterate_frames(tmp_path / "a.mp4", range(24))
    numbers = [next(begun)[0]]
    assert numbers_of(tmp_path / "b.mp4") == same(range(24))
    assert numbers + [frame_idx for frame_idx, _ in begun] == list(range(24))


BLOCKS = np.random.default_rng(0).integers(0, 255, (2, 3, 3)).astype(np.uint8)
UPRIGHT = BLOCKS.repeat(24, axis=0).repeat(24, axis=1)
AS_STORED = {  # Exif's orientation → the pixels of a file that is to be shown upright
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    5: UPRIGHT.swapaxes(0, 1),
    6: np.rot90(UPRIGHT, 1),
    8: np.rot90(UPRIGHT, -1),
}


def save_picture(path, orientation=1, **how):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(AS_STORED[orientation])).save(path, exif=exif, **how)
    return path


@pytest.mark.parametrize("orientation", AS_STORED)
@pytest.mark.parametrize(
    ("suffix", "how"), [("jpg", {"quality": 98}), ("png", {}), ("webp", {"lossless": True})]
)
def test_a_picture_is_an_upright_video_of_one_frame(tmp_path, suffix, how, orientation):
    path = save_picture(tmp_path / f"a.{suffix}", orientation, **how)
    info = video.probe(path)
    assert (info.width, info.height, info.n_frames) == (72, 48, 1)
    ((number, frame),) = video.iterate_frames(path, range(3), info)
    assert number == 0
    assert np.abs(frame.astype(int) - UPRIGHT).mean() < (2 if suffix == "jpg" else 1e-9)
    assert list(video.iterate_frames(path, [1])) == []


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_pictures_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(UPRIGHT).convert(mode).save(path)
    ((_, frame),) = video.iterate_frames(path, [0])
    assert frame.shape == UPRIGHT.shape


def test_a_damaged_picture_has_a_status(tmp_path):
    whole = save_picture(tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    heic = b"\0\0\0\x18ftypheic" + bytes(40)
    (tmp_path / "phone.heic").write_bytes(heic)
    for name, why in (("cut.png", "a damaged picture"), ("phone.heic", "install pillow-heif")):
        with pytest.raises(video.VideoError, match=why) as caught:
            video.probe(tmp_path / name)
        assert caught.value.status == "unreadable"


def test_a_picture_larger_than_8k_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "LARGEST_FRAME", 48 * 71)
    with pytest.raises(video.VideoError, match="72 x 48") as caught:
        video.probe(save_picture(tmp_path / "a.png"))
    assert caught.value.status == "too_large"


def test_motion_jpeg_may_carry_exif(tmp_path):
    jpeg = save_picture(tmp_path / "a.jpg", quality=98).read_bytes()
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10, width=72, height=48, pix_fmt="yuvj420p")
        for number in range(3):
            packet = av.Packet(jpeg)
            packet.stream, packet.pts, packet.dts = stream, number, number
            container.mux(packet)
    frames = list(video.iterate_frames(tmp_path / "a.avi", [0, 2]))
    assert [number for number, _ in frames] == [0, 2]
    assert np.abs(frames[0][1].astype(int) - UPRIGHT).mean() < 4
