"""Processes that die, hang or never start: what is lost is tried again, and what can't be done is given up by name."""

import json
import os
import signal
import subprocess
import sys
import threading
from multiprocessing import active_children
from pathlib import Path
from typing import NamedTuple

import pytest
from waiting import hang, wait_for

from dfdc_lib.tasks import TRIES, Lost, check_time_limit, run_tasks, watched


class Job(NamedTuple):
    """A task for the tests; `do` says what befalls it."""

    number: int
    folder: Path
    do: str = "work"

    def run(self) -> int:
        trace = self.folder / f"{self.number}.tries"
        with open(trace, "a") as file:
            file.write("x")
        if self.do == "hang":
            hang()
        if self.do == "fail":
            raise ValueError("no number is unlucky")
        if self.do == "die always" or (self.do == "die" and len(trace.read_text()) == 1):
            os._exit(9)
        if self.do.endswith("watched"):
            return self.run_watched()
        return self.number**2

    def run_watched(self) -> int:
        try:
            with watched(self.folder / f"{self.number}.try", "this run", 0.5 if "hang" in self.do else 600):
                hang() if "hang" in self.do else os.kill(os.getpid(), signal.SIGSEGV)
        except Lost as lost:
            return -len(lost.status)
        raise AssertionError("it lived")

    def tries(self) -> int:
        return len((self.folder / f"{self.number}.tries").read_text())


def run_all(jobs, workers=2, **more) -> dict[int, int]:
    return {job.number: result for job, result in run_tasks(Job.run, jobs, workers, **more)}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_task_is_done_once(tmp_path, workers):
    jobs = [Job(number, tmp_path) for number in range(6)]
    assert run_all(jobs, workers) == {number: number**2 for number in range(6)}
    assert all(job.tries() == 1 for job in jobs)


def test_a_death_costs_its_own_task_one_try_and_the_others_nothing(tmp_path):
    jobs = [Job(number, tmp_path, "die" if number == 1 else "work") for number in range(6)]
    assert run_all(jobs) == {number: number**2 for number in range(6)}
    assert [job.tries() for job in jobs] == [1, 2, 1, 1, 1, 1]


def test_what_always_kills_or_hangs_is_given_up_by_name(tmp_path):
    """A fault in native code twice, a hang once: then the status says so, and the rest is done."""
    kinds = ["work", "die watched", "hang watched", "work"]
    jobs = [Job(number, tmp_path, kind) for number, kind in enumerate(kinds)]
    assert run_all(jobs) == {0: 0, 1: -len("crashed"), 2: -len("timeout"), 3: 9}
    assert [job.tries() for job in jobs] == [1, TRIES + 1, 2, 1]


def test_deaths_without_end_are_an_error(tmp_path):
    with pytest.raises(OSError, match="3 workers died on one task"):
        run_all([Job(0, tmp_path, "die always")])


def test_an_error_in_a_task_ends_the_run_and_leaves_no_process(tmp_path):
    """The others would go on for ever: each process has begun one of them at most, and is killed in it."""
    jobs = [Job(0, tmp_path, "fail"), *(Job(number, tmp_path, "hang") for number in range(1, 40))]
    threads, processes = set(threading.enumerate()), set(active_children())
    with pytest.raises(ValueError, match="unlucky"):
        run_all(jobs)
    assert sum((tmp_path / f"{number}.tries").exists() for number in range(1, 40)) <= 2
    wait_for(lambda: set(threading.enumerate()) <= threads, "the threads to end")
    wait_for(lambda: set(active_children()) <= processes, "the processes to end")


def test_a_run_that_was_killed_is_no_fault_of_what_it_was_at(tmp_path):
    marker = tmp_path / "video.detect"
    for run in ("first", "second", "third"):
        marker.write_text(json.dumps({"run": "killed before " + run, "tries": TRIES, "limit": 9}) + "\n")
        with watched(marker, run):
            assert marker.exists()
        assert not marker.exists()
    marker.write_text('{"run": "fo')  # killed while it was written
    with watched(marker, "fourth"):
        pass
    marker.write_text(json.dumps({"run": "fifth", "tries": TRIES, "limit": 9}) + "\n")
    with pytest.raises(Lost, match="died 2 times"), watched(marker, "fifth"):
        pass


def test_work_that_fails_is_not_blamed_for_a_death_that_comes_later(tmp_path):
    marker = tmp_path / "video.crop"
    for _ in range(TRIES + 1):
        with pytest.raises(OSError, match="unreadable"), watched(marker, "run"):
            raise OSError("unreadable")
        assert not marker.exists()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_time_limit_is_a_time(seconds):
    with pytest.raises(ValueError, match="a time limit is"):
        check_time_limit(seconds)


def test_the_reason_tells_where_it_hung(tmp_path):
    trace = '{"run": "r", "tries": 1, "limit": 600}\nTimeout (0:10:00)!\nThread 0x1 (most recent call first):\n'
    trace += '  File "/x/av/codec.py", line 3 in decode\n  File "/x/dfdc_lib/video.py", line 138 in _decode\n'
    (tmp_path / "v.detect").write_text(trace)
    where = r"more than 600 seconds in _decode \(video.py, line 138\)"
    with pytest.raises(Lost, match=where) as told, watched(tmp_path / "v.detect", "r"):
        pass
    assert told.value.status == "timeout"


def test_workers_that_never_start_are_said_to(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from dfdc_lib.tasks import run_tasks\nprint(list(run_tasks(abs, [1], workers=1)))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 1
    assert '__name__ == "__main__"' in done.stderr.splitlines()[-1]
