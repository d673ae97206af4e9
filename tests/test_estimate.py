"""What a long run will take: time, disk and files, from a few videos; and this process's memory."""

import json
import os
from types import SimpleNamespace

import pytest
from conftest import EVERY_6

from dfdc_lib.jobs import count_cores
from dfdc_lib.ops.cli import main
from dfdc_lib.ops.estimate import estimate_run
from dfdc_lib.store import WorkFolder
from dfdc_lib.video import iterate_frames


def artifacts(work: WorkFolder) -> list:
    kinds = [work.root / kind for kind in ("boxes", "crops", "masks")]
    return [path for kind in kinds for path in kind.rglob("*.*")]


def bytes_on_disk(work: WorkFolder) -> int:
    return sum(os.stat(path).st_blocks * 512 for path in artifacts(work))


def test_an_estimate_is_what_it_takes(small_sample, small_work, tmp_path, monkeypatch):
    """From all videos. Time is by a clock that ticks with each frame read: each is read once."""
    ticks = []

    def read(*args):
        for frame in iterate_frames(*args):
            ticks.append(1)
            yield frame

    monkeypatch.setattr("dfdc_lib.video.iterate_frames", read)
    clock = SimpleNamespace(perf_counter=lambda: len(ticks))
    monkeypatch.setattr("dfdc_lib.ops.estimate.time", clock)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (row,) = estimate_run(small_sample, workers=10, config=EVERY_6).itertuples()
    assert not list(tmp_path.iterdir())
    assert (row.videos, row.measured, row.files) == (12, 12, len(artifacts(small_work)))
    assert row.gb * 1e9 == pytest.approx(bytes_on_disk(small_work), rel=0.05)
    boxes = [json.loads(path.read_text()) for path in small_work.root.glob("boxes/*.json")]
    seen = [len(frame["boxes"]) > 0 for video in boxes for frame in video["frames"]]
    assert row.hours * 3600 * 10 == pytest.approx(len(seen) + 2 * sum(seen))  # two fakes each


def test_a_half_is_like_the_whole_and_the_cores_are_given_back(small_sample, small_work):
    threads = count_cores()
    (row,) = estimate_run(small_sample, 1, 2, EVERY_6).itertuples()
    assert (row.videos, row.measured) == (12, 6)
    assert row.gb * 1e9 == pytest.approx(bytes_on_disk(small_work), rel=0.4)
    assert count_cores() in (threads, os.cpu_count())


def test_without_a_video_there_is_nothing_to_measure(tmp_path):
    (tmp_path / "metadata.json").write_text('{"a.mp4": {"label": "REAL"}}')
    with pytest.raises(ValueError, match="no video of"):
        estimate_run(tmp_path, 1)


def test_the_command_prints_the_estimate(small_sample, capsys):
    assert main(["doctor", "--data", str(small_sample), "--estimate", "8"]) == 0
    printed = capsys.readouterr().out
    assert f"preprocessing all of {small_sample} with 8 workers takes about" in printed
    assert printed.splitlines()[-2].split() == ["videos", "measured", "hours", "gb", "files"]
