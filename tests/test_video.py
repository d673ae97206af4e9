import av
import cv2
import numpy as np
import pytest
from conftest import write_intra_video

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
    capture, frames = video.open_video(path), []
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
