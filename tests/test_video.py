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
