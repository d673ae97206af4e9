"""What can go wrong around a run: processes that die, disks that are full, runs that are stopped or meet each other.

Whatever happened, the next run ends with what an undisturbed run would have made, byte for byte.
"""

import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import files_of
from waiting import hang, wait_for

from dfdc_lib import preprocess as module
from dfdc_lib.cli import main
from dfdc_lib.config import PreprocessConfig
from dfdc_lib.metadata import read_metadata
from dfdc_lib.paths import WorkFolder, hold
from dfdc_lib.preprocess import Family, Superseded, preprocess, read_manifest

EVERY_6 = PreprocessConfig(every=6)


class Sabotaged(Family):
    """A family of which one stage goes wrong, in whichever process works on it."""

    def _stage(self, stage, row, inputs, run):
        fault = self.plan.get(f"{row['video_id']} {stage}")
        self.time_limit = 1 if fault == "hang" else 600
        return super()._stage(stage, row, inputs, (lambda path: FAULTS[fault]()) if fault else run)


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def run_out_of_memory():
    raise MemoryError


FAULTS = {"crash": crash, "hang": hang, "memory": run_out_of_memory}


@pytest.fixture
def sabotage(monkeypatch):
    """sabotage({"video_id stage": fault}): what the runs of this test meet."""

    def apply(plan: dict[str, str]) -> None:
        def make(*args):
            family = Sabotaged(*args)
            family.plan = plan
            return family

        make.run = Family.run
        monkeypatch.setattr(module, "Family", make)

    return apply


def test_videos_that_take_their_process_along_cost_a_status_each(
    small_sample, small_work, uncropped, sabotage, monkeypatch
):
    """In one run, of three originals' fakes: one crashes, one hangs, one wants more memory than there is."""
    victims = read_metadata(small_sample).query("label == 1").drop_duplicates("original_id").video_id[:3]
    sabotage({f"{victim} crop": fault for victim, fault in zip(victims, FAULTS, strict=True)})
    told = preprocess(small_sample, uncropped, EVERY_6, workers=2).status.set_index(["video_id", "stage"])
    lost = told.loc[[(victim, "crop") for victim in victims]]
    assert lost.status.tolist() == ["crashed", "timeout", "out_of_memory"]
    assert "in _stage (preprocess.py" in lost.reason.iloc[1]
    assert (told.status.drop(lost.index) == "ok").all()
    assert len(told) == 4 + 12 + 5  # the masks of the victims are wanting, and nothing else is
    monkeypatch.undo()
    preprocess(small_sample, uncropped, EVERY_6)
    assert files_of(uncropped) == files_of(small_work)


def test_a_full_disk_ends_the_run_and_a_larger_one_goes_on(small_sample, small_work, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs to be root, and allowed to")
    try:
        work = WorkFolder(disk / "work")
        with pytest.raises(OSError, match=r"No space left|full"):
            preprocess(small_sample, work, EVERY_6)
        assert not [entry for entry in manifests(work) if entry["status"] != "ok"]  # no video is blamed
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        preprocess(small_sample, work, EVERY_6)
        assert files_of(work) == files_of(small_work)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_that_will_be_too_small_is_said_before(small_sample, tmp_path, monkeypatch, capsys):
    call = ["preprocess", str(small_sample), "--work", str(tmp_path / "w"), "--every", "6", "--workers", "0"]
    monkeypatch.setattr("dfdc_lib.preprocess.shutil.disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    assert main(call) == 0
    told = capsys.readouterr().err
    assert "warning: 12 new videos will take about 0.048 GB" in told
    assert "and 0.01 GB are free" in told
    assert main(call) == 0
    assert "warning" not in capsys.readouterr().err  # nothing is left to be made


def manifests(work: WorkFolder) -> list[dict]:
    """Every entry of every manifest."""
    names = [path.stem for path in (work.root / "manifest").glob("[!.]*.json")]
    return [entry for name in names for entry in read_manifest(work, name).values()]


def in_child(action, uid: int = 0) -> str:
    """Run `action` in a forked process, of another user if `uid` is given; what it raised, in words."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setuid(uid)
            action()
            told = "nothing was raised"
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(write, told.encode())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return told


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_folder_that_may_not_be_written_to_is_one_error(small_sample, work_copy):
    """As root every folder may be written to: the run is done by somebody else."""
    fake = read_metadata(small_sample).query("label == 1").video_id.iloc[0]
    for path in (work_copy.root, *work_copy.root.rglob("*")):
        os.chown(path, 65534, 65534)
    for folder in (small_sample, *work_copy.root.resolve().parents, *small_sample.resolve().parents):
        folder.chmod(folder.stat().st_mode | 0o055)
    shutil.rmtree(work_copy.masks(fake))

    os.chown(work_copy.root / "masks", 0, 0)
    told = in_child(lambda: preprocess(small_sample, work_copy, EVERY_6), uid=65534)
    assert told.startswith(f"OSError: can't write to {work_copy.root}: Permission denied")
    os.chown(work_copy.root / "masks", 65534, 65534)
    assert in_child(lambda: preprocess(small_sample, work_copy, EVERY_6), uid=65534) == "nothing was raised"

    os.chown(work_copy.root, 0, 0)
    told = in_child(lambda: preprocess(small_sample, work_copy, EVERY_6), uid=65534)
    assert told.startswith("PermissionError")
    assert str(work_copy.root) in told


def test_two_runs_never_write_to_one_folder(small_sample, small_work, work_copy):
    with hold(work_copy.root), pytest.raises(ValueError, match="is being written by process"):
        in_another_process(work_copy.root)
    assert files_of(work_copy) == files_of(small_work)


@pytest.mark.parametrize("left", [None, "", "{node}-{dead}"], ids=["no lock", "an empty one", "one of the dead"])
def test_of_many_that_come_at_once_one_gets_in(tmp_path, left):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    if left is not None:
        (tmp_path / ".running").write_text(left.format(node=platform.node(), dead=dead.pid))
    code = """
import sys
from pathlib import Path
from dfdc_lib.paths import hold
print("ready", flush=True)
input()
try:
    with hold(Path(sys.argv[1])):
        print("in", flush=True)
        input()
except ValueError:
    print("out", flush=True)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    several = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes) for _ in range(4)]
    assert [process.stdout.readline() for process in several] == ["ready\n"] * 4
    for process in several:
        process.stdin.write("go\n")
    assert sorted(process.stdout.readline() for process in several) == ["in\n", "out\n", "out\n", "out\n"]
    for process in several:
        process.communicate("leave\n")
    assert not (tmp_path / ".running").exists()


def test_a_lock_that_its_owner_deleted_meanwhile_is_not_enough(tmp_path, monkeypatch):
    """Its owner ends between our opening the file and our locking it: whoever comes next would lock a new one."""
    lock, tried, really = tmp_path / ".running", [], fcntl.flock

    def flock(file, how):
        really(file, how)
        if not tried:
            lock.unlink()
        tried.append(how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with hold(tmp_path):
        assert lock.read_text().endswith(str(os.getpid()))


def in_another_process(root: Path) -> None:
    code = f"from pathlib import Path; from dfdc_lib.paths import hold; hold(Path({str(root)!r})).__enter__()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    raise ValueError(done.stderr)


@pytest.mark.parametrize("taken_by", ["another worker", "another run"])
def test_a_worker_that_comes_too_late_changes_nothing(small_sample, small_work, work_copy, taken_by):
    """It seemed dead, its family was given to another; then it wakes, and must not touch what that one has made."""
    rows = read_metadata(small_sample).query("original_id == original_id.iloc[0]").to_dict("records")
    late = Family(small_sample, work_copy, PreprocessConfig(every=4), ("detect", "crop", "masks"), rows, "run")
    (work_copy.attempts / "run").mkdir(parents=True)
    late._claim()
    if taken_by == "another run":
        shutil.rmtree(work_copy.attempts)
        (work_copy.attempts / "the next run").mkdir(parents=True)
    else:
        Family(small_sample, work_copy, EVERY_6, ("detect",), rows, "run")._claim()
    with pytest.raises(Superseded):
        late._run()
    if taken_by == "another run":
        with pytest.raises(Superseded):
            late.run()  # nor does it begin anew
    shutil.rmtree(work_copy.attempts)
    assert files_of(work_copy) == files_of(small_work)


HALTING_RUN = """
import sys, threading
from pathlib import Path
from dfdc_lib import preprocess as module
from dfdc_lib.cli import main

really = module.crop_faces

def crop_faces(path, video_id, *rest):
    "Crop the first video, and wait: the run can't end by itself."
    really(path, video_id, *rest)
    Path(sys.argv[0]).with_name(f"{video_id}.cropped").touch()
    threading.Event().wait(600)

module.crop_faces = crop_faces
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_or_killed_leaves_no_worker_and_goes_on(small_sample, small_work, uncropped, number):
    """Also Ctrl-C's way: it says how. The workers hold the pipe: it ends when the last of them has."""
    script = uncropped.root.with_name("run.py")
    script.write_text(HALTING_RUN)
    call = ["preprocess", small_sample, "--work", uncropped.root, "--every", "6", "--workers", "2"]
    with subprocess.Popen([sys.executable, script, *call], stderr=subprocess.PIPE, text=True) as run:
        wait_for(lambda: len(list(script.parent.glob("*.cropped"))) == 2 or run.poll(), "both workers")
        run.send_signal(number)
        told = run.communicate(timeout=300)[1]
    assert len(list(script.parent.glob("*.cropped"))) == 2
    if number == signal.SIGKILL:
        assert run.returncode == -number
    else:
        assert run.returncode == 130
        assert "the same command goes on from there" in told
        assert "Traceback" not in told
        assert not (uncropped.root / ".running").exists()
    preprocess(small_sample, uncropped, EVERY_6)
    assert files_of(uncropped) == files_of(small_work)


KILLED_RUNS = """
import os, random, signal, sys
from pathlib import Path
import torch
from dfdc_lib import preprocess as module
from dfdc_lib.config import TRAIN_THRESHOLDS, PreprocessConfig
from dfdc_lib.faces import FaceDetector
from dfdc_lib.paths import WorkFolder

torch.set_num_threads(1)  # without threads of its own a process may be forked: the children need load nothing
detector = FaceDetector(TRAIN_THRESHOLDS, "cpu", "torch", 1)
module.shared_detector = lambda *_: detector
module.read_frames = module.iterate_frames
data, folder = Path(sys.argv[1]), Path(sys.argv[2])

def run(name, every, last=0):
    "Preprocess in a child that is killed before it touches the folder for the last time allowed; how often it did."
    if (child := os.fork()) == 0:
        touched = 0
        def watch(event, args):
            nonlocal touched
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and name in str(args[0]):
                touched += 1
                if touched == last:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        module.preprocess(data, WorkFolder(folder / name), PreprocessConfig(every=every), originals=1)
        print(touched, flush=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

assert run("undisturbed", 6) == 0
draw = random.Random(0)
killed = [run("disturbed", every=(4, 6)[kill % 2], last=draw.randint(1, 130)) for kill in range(12)]
assert killed.count(-signal.SIGKILL) >= 10, killed
assert run("disturbed", 6) == 0
"""


@pytest.mark.slow
def test_killed_at_twelve_random_points(small_sample, tmp_path):
    """A run of one original and its two fakes, with other settings each time, killed before it touches a file."""
    subprocess.run([sys.executable, "-c", KILLED_RUNS, small_sample, tmp_path], check=True)
    undisturbed, disturbed = (files_of(WorkFolder(tmp_path / name)) for name in ("undisturbed", "disturbed"))
    assert disturbed == undisturbed
