"""What a long run will take: time, disk and memory, from a few videos; disk alone, from what is there already."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from dfdc_lib.cli import main
from dfdc_lib.config import PreprocessConfig
from dfdc_lib.estimate import estimate_run
from dfdc_lib.metadata import read_metadata
from dfdc_lib.paths import BYTES_A_VIDEO, WorkFolder, estimate_space, measure_folder
from dfdc_lib.preprocess import preprocess
from dfdc_lib.video import iterate_frames

EVERY_6 = PreprocessConfig(every=6)


def size_on_disk(work: WorkFolder) -> int:
    """By the file system itself, of all that belongs to videos."""
    kinds = ("boxes", "crops", "manifest", "masks")
    files = [path for kind in kinds for path in (work.root / kind).rglob("*") if path.is_file()]
    return sum(os.stat(path).st_blocks * 512 for path in files)


@pytest.fixture(scope="module")
def whole(small_sample, tmp_path_factory):
    """The estimate from every video that there is, in a process of its own; it leaves nothing behind."""
    folder = tmp_path_factory.mktemp("temporary")
    before = {path: path.stat().st_mtime_ns for path in small_sample.rglob("*")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        table = estimate_run(small_sample, workers=1, n_originals=4, config=EVERY_6)
    assert {path: path.stat().st_mtime_ns for path in small_sample.rglob("*")} == before
    assert not list(folder.iterdir())
    return table.set_index("stage")


@pytest.fixture
def here(monkeypatch):
    """Measure in the test's own process, once for the same task: it has the networks already."""
    seen = {}

    class Here:
        def __init__(self, cores):
            seen["cores"] = cores

        def run(self, function, task):
            key = str(task[3])
            seen[key] = seen[key] if key in seen else function(task)
            return seen[key]

        def close(self):
            seen["closed"] = True

    monkeypatch.setattr("dfdc_lib.estimate.Lane", Here)
    return seen


@pytest.mark.slow
def test_an_estimate_from_all_videos_is_what_they_take(whole, small_work):
    n_files = {kind: len(list((small_work.root / kind).rglob("*.*"))) for kind in ("boxes", "manifest")}
    n_crops, n_masks = (len(list(small_work.root.glob(f"{kind}/*/*.png"))) for kind in ("crops", "masks"))
    assert whole.videos.to_dict() == {"detect": 4, "crop": 12, "masks": 8, "together": 12}
    expected = {"detect": sum(n_files.values()), "crop": n_crops, "masks": n_masks}
    assert whole.files.to_dict() == pytest.approx(expected | {"together": sum(expected.values())})
    assert whole.gb["together"] * 1e9 == pytest.approx(size_on_disk(small_work), rel=0.05)
    assert whole.gb["together"] == pytest.approx(whole.gb[["detect", "crop", "masks"]].sum())
    assert (whole.hours > 0).all()
    assert 0.1 < whole.memory_gb["together"] < 8


def test_time_is_that_of_a_run(small_sample, small_work, here, monkeypatch):
    """By a clock that ticks with each frame read: crops need those with a face, and a usual run reads none twice."""
    ticks = []

    def read(*args):
        for frame in iterate_frames(*args):
            ticks.append(1)
            yield frame

    monkeypatch.setattr("dfdc_lib.preprocess.iterate_frames", read)
    monkeypatch.setattr("dfdc_lib.estimate.time", SimpleNamespace(perf_counter=lambda: len(ticks)))
    table = estimate_run(small_sample, workers=1, n_originals=4, config=EVERY_6).set_index("stage")
    frames = [frame for path in small_work.root.glob("boxes/*") for frame in json.loads(path.read_text())["frames"]]
    faces = sum(len(frame["boxes"]) > 0 for frame in frames)
    expected = {"detect": len(frames), "crop": 3 * faces, "masks": 0, "together": len(frames) + 2 * faces}
    assert (table.hours * 3600).to_dict() == pytest.approx(expected)
    assert (table.seconds * table.videos).to_dict() == pytest.approx(expected)


@pytest.mark.slow
def test_workers_share_the_time_and_add_their_memory(small_sample, whole, here, monkeypatch):
    monkeypatch.setattr("dfdc_lib.estimate.count_cores", lambda: 20)
    one, ten = (estimate_run(small_sample, workers, 2, EVERY_6).set_index("stage") for workers in (1, 10))
    assert here["cores"] == 2
    assert here["closed"]
    assert ten.hours.to_numpy() == pytest.approx(one.hours.to_numpy() / 10)
    assert ten.memory_gb["together"] == pytest.approx(10 * one.memory_gb["together"])
    assert ten.gb.to_numpy() == pytest.approx(one.gb.to_numpy())
    assert ten.attrs == {"originals": 2, "fakes": 4, "workers": 10}
    assert one.gb["together"] == pytest.approx(whole.gb["together"], rel=0.3), "a half is not like the whole"


def test_what_is_not_here_is_not_measured_and_counts_all_the_same(small_sample, tmp_path, here):
    data = shutil.copytree(small_sample, tmp_path / "small")
    table = read_metadata(data)
    for file in table.file[(table.label == 1) | (table.part == 0)]:
        (data / file).unlink()
    found = estimate_run(data, 2, 4, EVERY_6)
    assert found.attrs["originals"] == 2
    assert found.attrs["fakes"] == 0
    lines = found.set_index("stage")
    assert lines.videos["masks"] == 8
    assert np.isnan(lines.hours["masks"])
    assert np.isnan(lines.hours["together"])
    assert lines.hours["detect"] > 0
    for file in table.file:
        (data / file).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="no original video of"):
        estimate_run(data, 1)


def test_data_without_fakes_has_no_masks_to_make(small_sample, tmp_path, here):
    data = shutil.copytree(small_sample, tmp_path / "small")
    for path in data.glob("*/metadata.json"):
        entries = json.loads(path.read_text())
        path.write_text(json.dumps({name: entry for name, entry in entries.items() if entry["label"] == "REAL"}))
    lines = estimate_run(data, 1, 1, EVERY_6).set_index("stage")
    assert lines.hours["masks"] == 0
    assert lines.hours["together"] > 0


def test_the_command_prints_the_estimate(small_sample, here, capsys):
    assert main(["doctor", "--data", str(small_sample), "--estimate", "8"]) == 0
    printed = capsys.readouterr().out
    measured = "measured on 4 originals and 8 fakes"
    assert f"what preprocessing all of {small_sample} would take 8 workers, {measured}" in printed
    assert "seconds a video" in printed
    assert [line.split()[0] for line in printed.splitlines()[-4:]] == ["detect", "crop", "masks", "together"]
    assert main(["doctor", "--estimate", "8"]) == 2
    assert "--data" in capsys.readouterr().err


def test_space_is_estimated_from_what_is_there(small_work, tmp_path):
    per_video = size_on_disk(small_work) / 12
    assert estimate_space(1200, small_work, enough=12) == pytest.approx(1200 * per_video, rel=0.01)
    assert estimate_space(1200, small_work, enough=13) == 1200 * BYTES_A_VIDEO
    assert estimate_space(7, WorkFolder(tmp_path / "nothing")) == 7 * BYTES_A_VIDEO


def test_of_many_videos_some_are_looked_at(tmp_path, monkeypatch):
    """A thousand folders of one picture each, every second one larger: the mean, by 500 of them, and of all parts."""
    work, asked = WorkFolder(tmp_path), []
    for number in range(1000):
        work.crops(f"{number:04d}").mkdir(parents=True)
        (work.crops(f"{number:04d}") / "0_0.png").write_bytes(b"x" * (5000 if number < 500 else 9000))
    monkeypatch.setattr(
        "dfdc_lib.paths.measure_folder", lambda folder: (asked.append(folder), measure_folder(folder))[1]
    )
    assert estimate_space(10, work) == 10 * (8192 + 12288) // 2
    assert len([folder for folder in asked if folder.parent.name == "crops"]) == 500


def test_the_stated_default_is_a_real_clips(real_videos, tmp_path):
    """Crops of a real 1080p clip take less than the default says, which counts a fake's masks too, and half of it."""
    work = WorkFolder(tmp_path)
    preprocess(real_videos, work, stages=["detect", "crop"])
    made = [video for video in os.listdir(work.root / "crops") if work.crop_names(video)]
    mean = sum(measure_folder(work.crops(video))[0] for video in made) / len(made)
    assert BYTES_A_VIDEO / 4 < mean < BYTES_A_VIDEO


PEAK = """
import numpy as np
from dfdc_lib.estimate import peak_memory
print(peak_memory(), np.ones(2**24).sum(), peak_memory())
"""


def test_peak_memory_is_this_process_own():
    """It counts a block of 128 MB that is gone again, and not what the process that started it holds."""
    ours = np.ones(48 * 2**20)
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, _, after = map(float, done.stdout.split())
    assert before + 2**26 < after < ours.nbytes
