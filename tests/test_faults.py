"""Processes that die, full disks, runs that stop or meet: the next run ends as if undisturbed."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import pytest
from conftest import EVERY_6, files_of
from waiting import hang, wait_for

from dfdc_lib import preprocess as module
from dfdc_lib.config import PreprocessConfig
from dfdc_lib.metadata import read_metadata
from dfdc_lib.ops import pipeline
from dfdc_lib.ops.pipeline import preprocess, read_status
from dfdc_lib.preprocess import process_video
from dfdc_lib.store import WorkFolder, hold, remove
from dfdc_lib.video import probe

NOBODY = 65534
CRASH = partial(signal.raise_signal, signal.SIGSEGV)
WANT_ALL_MEMORY = partial(bytearray, 2**62)


def process_with_faults(faults, path, work, config, video_id, *rest):
    """What workers do in place of `process_video`."""
    fault = faults.get(video_id)
    module.probe = (lambda path: fault()) if fault else probe
    return process_video(path, work, config, video_id, *rest)


def test_lost_processes_cost_a_status_each(small_sample, small_work, uncropped, monkeypatch):
    """In one run, of three originals' fakes: one crashes, one hangs, one wants all memory."""
    fakes = read_metadata(small_sample).query("label == 1")
    victims = fakes.drop_duplicates("original_id").video_id[:3].tolist()
    faults = dict(zip(victims, (CRASH, hang, WANT_ALL_MEMORY), strict=True))
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "process_video", partial(process_with_faults, faults))
        done = preprocess(small_sample, uncropped, EVERY_6, workers=2, time_limit=5)
    told = done.status.set_index(["video_id", "stage"])
    lost = told.loc[[(victim, "crop") for victim in victims]]
    assert lost.status.tolist() == ["crashed", "timeout", "out_of_memory"]
    assert "more than 5 seconds" in lost.reason.iloc[1]
    assert (told.status.drop(lost.index) == "ok").all()
    assert len(told) == 4 + 12 + 5  # the masks of the victims are missing, and nothing else is
    preprocess(small_sample, uncropped, EVERY_6)
    assert files_of(uncropped) == files_of(small_work)


def test_a_full_disk_ends_the_run_and_a_larger_one_goes_on(small_sample, small_work, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    call = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk]
    if subprocess.run(call, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs to be root, and allowed to")
    try:
        work = WorkFolder(disk / "work")
        with pytest.raises(OSError, match=r"No space left|full"):
            preprocess(small_sample, work, EVERY_6)
        assert {line.status for line in read_status(work).values()} <= {"ok"}  # none is blamed
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        preprocess(small_sample, work, EVERY_6)
        assert files_of(work) == files_of(small_work)
    finally:
        subprocess.run(["umount", disk], check=True)


@contextmanager
def without_rights():
    """As somebody who may not read everything. Root can become nobody, and root again."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_folder_that_may_not_be_written_to_is_one_error(small_sample, uncropped):
    """As root every folder may be written to: the run is done by somebody else."""
    crops = uncropped.root / "crops"
    for path in (uncropped.root, *uncropped.root.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    for folder in (small_sample, *uncropped.root.resolve().parents, *small_sample.parents):
        folder.chmod(folder.stat().st_mode | 0o055)
    crops.mkdir()
    message = f"^can't write to {uncropped.root}: .*Permission denied"
    with without_rights(), pytest.raises(OSError, match=message):
        preprocess(small_sample, uncropped, EVERY_6)
    os.chown(crops, NOBODY, NOBODY)
    with without_rights():
        preprocess(small_sample, uncropped, EVERY_6)


def test_two_runs_never_write_to_one_folder(small_sample, small_work, work_copy):
    with hold(work_copy.status), pytest.raises(ValueError, match="another process is writing"):
        preprocess(small_sample, work_copy, EVERY_6)
    assert files_of(work_copy) == files_of(small_work)


def first_job(data, work: WorkFolder, config=EVERY_6) -> tuple:
    original = read_metadata(data).query("label == 0").iloc[0]
    path, name = data / original.file, original.video_id
    return path, work, config, name, name, ("detect", "crop")


def test_of_two_workers_on_one_video_the_first_counts(small_sample, small_work, work_copy):
    """A cluster gave a video to a second worker, because the first seemed dead."""
    other = PreprocessConfig(every=4)
    assert process_video(*first_job(small_sample, work_copy, other))[0].status == "ok"
    assert files_of(work_copy) == files_of(small_work)
    boxes = first_job(small_sample, work_copy)[3]
    work_copy.boxes(boxes).unlink()  # the first died between two names
    process_video(*first_job(small_sample, work_copy))
    assert files_of(work_copy) == files_of(small_work)


def test_a_late_worker_changes_nothing(small_sample, small_work, work_copy, monkeypatch):
    """Its run is over, and the next one sweeps the folder in which it writes."""

    def meet_the_next_run(picture, *rest, really=module.write_png):
        remove(work_copy.unfinished)
        return really(picture, *rest)

    monkeypatch.setattr(module, "write_png", meet_the_next_run)
    outcome = process_video(*first_job(small_sample, work_copy, PreprocessConfig(every=4)))[0]
    assert outcome.status == "missing_file"
    assert files_of(work_copy) == files_of(small_work)


HALTING_RUN = """
import sys, threading
from pathlib import Path
from dfdc_lib.ops import pipeline
from dfdc_lib.ops.cli import main
from dfdc_lib.preprocess import process_video

def process_and_wait(path, work, config, video_id, *rest):
    "Crop the first video, and wait: the run can't end by itself."
    process_video(path, work, config, video_id, *rest)
    Path(sys.argv[0]).with_name(f"{video_id}.cropped").touch()
    threading.Event().wait(600)

pipeline.process_video = process_and_wait
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_worker_and_goes_on(small_sample, small_work, uncropped, number):
    """The workers hold the pipe: it ends when the last of them has."""
    script = uncropped.root.with_name("run.py")
    script.write_text(HALTING_RUN)
    call = ["preprocess", small_sample, "--work", uncropped.root, "--every", "6", "--workers", "2"]

    def both_have_cropped() -> bool:
        return len(list(script.parent.glob("*.cropped"))) == 2

    command = [sys.executable, script, *call]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        wait_for(lambda: both_have_cropped() or run.poll() is not None, "both workers")
        run.send_signal(number)
        told = run.communicate(timeout=300)[1]
    assert both_have_cropped(), told
    if number == signal.SIGKILL:
        assert run.returncode == -number
    else:
        assert run.returncode == 130
        assert "the same command continues from there" in told
        assert "Traceback" not in told
    preprocess(small_sample, uncropped, EVERY_6)
    assert files_of(uncropped) == files_of(small_work)


KILLED_RUNS = """
import os, random, signal, sys
from pathlib import Path
import torch
from dfdc_lib import preprocess as module
from dfdc_lib.ops import pipeline
from dfdc_lib.config import TRAIN_THRESHOLDS, PreprocessConfig
from dfdc_lib.faces import FaceDetector
from dfdc_lib.store import WorkFolder
from dfdc_lib.video import iterate_frames

torch.set_num_threads(1)  # without threads a process may be forked: the children load nothing
detector = FaceDetector(TRAIN_THRESHOLDS, "cpu", "torch", 1)
module.shared_detector = lambda *_: detector
module.read_frames = iterate_frames
data, folder = Path(sys.argv[1]), Path(sys.argv[2])
TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")

def run(name, last=0):
    "Preprocess in a child that is killed before it touches the folder for the `last` time."
    if (child := os.fork()) == 0:
        touched = 0
        def watch(event, args):
            nonlocal touched
            if event in TOUCHES and name in str(args[0]):
                touched += 1
                if touched == last:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        pipeline.preprocess(data, WorkFolder(folder / name), PreprocessConfig(every=6), originals=1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

assert run("undisturbed") == 0
draw = random.Random(0)
killed = [run("disturbed", last=draw.randint(1, 40)) for kill in range(12)]
assert killed.count(-signal.SIGKILL) >= 8, killed
assert run("disturbed") == 0
"""


@pytest.mark.slow
def test_killed_at_twelve_random_points(small_sample, tmp_path):
    """A run of one original and its two fakes, killed before it touches a file."""
    subprocess.run([sys.executable, "-c", KILLED_RUNS, small_sample, tmp_path], check=True)
    disturbed = files_of(WorkFolder(tmp_path / "disturbed"))
    assert disturbed == files_of(WorkFolder(tmp_path / "undisturbed"))
