"""Processes that die, hang or never start: each costs its own job, and is named."""

import os
import signal
import subprocess
import sys
import threading
from multiprocessing import active_children
from pathlib import Path

import pytest
from waiting import hang, wait_for

from dfdc_lib.jobs import Lost, run_jobs


def square(number: int, folder: Path, fault: str = "") -> int:
    """A job; `fault` says what happens to it. It leaves a letter a try."""
    trace = folder / f"{number}.tries"
    with open(trace, "a") as file:
        file.write("x")
    if fault == "hang":
        hang()
    if fault == "fail":
        raise ValueError("no number is unlucky")
    if fault == "die" or (fault == "die once" and trace.read_text() == "x"):
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return number**2


def run_all(jobs, workers=2, **more) -> dict[int, object]:
    return {job[0]: result for job, result in run_jobs(square, jobs, workers, **more)}


def tries(folder: Path, count: int) -> list[int]:
    return [len((folder / f"{number}.tries").read_text()) for number in range(count)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_job_is_done_once(tmp_path, workers):
    jobs = [(number, tmp_path) for number in range(6)]
    assert run_all(jobs, workers) == {number: number**2 for number in range(6)}
    assert tries(tmp_path, 6) == [1] * 6


def test_a_death_or_a_hang_costs_its_own_job(tmp_path):
    """A crash is tried once more, a hang is not; all others are done once."""
    faults = ["", "die once", "hang", "", "die", ""]
    jobs = [(number, tmp_path, fault) for number, fault in enumerate(faults)]
    done = run_all(jobs, time_limit=5)
    lost = {number: r.status for number, r in done.items() if isinstance(r, Lost)}
    assert lost == {2: "timeout", 4: "crashed"}
    assert done[1] == 1
    assert done[5] == 25
    assert tries(tmp_path, 6) == [1, 2, 1, 1, 2, 1]


def test_an_error_in_a_job_ends_the_run_and_leaves_no_process(tmp_path):
    jobs = [(0, tmp_path, "fail"), *((number, tmp_path, "hang") for number in range(1, 40))]
    threads, processes = set(threading.enumerate()), set(active_children())
    with pytest.raises(ValueError, match="unlucky"):
        run_all(jobs)
    assert sum((tmp_path / f"{number}.tries").exists() for number in range(1, 40)) <= 2
    wait_for(lambda: set(threading.enumerate()) <= threads, "the threads to end")
    wait_for(lambda: set(active_children()) <= processes, "the processes to end")


def test_jobs_are_taken_as_they_are_needed(tmp_path):
    jobs = ((number, tmp_path) for number in range(30))
    results = run_jobs(square, jobs, workers=1)
    next(results)
    assert len(list(jobs)) >= 26
    results.close()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_time_limit_is_a_time(seconds):
    with pytest.raises(ValueError, match="a time limit must be"):
        run_jobs(square, [], time_limit=seconds)


def test_workers_that_never_start_are_said_to(tmp_path):
    script = tmp_path / "script.py"
    call = "print(list(run_jobs(abs, [(1,)], workers=1)))"
    script.write_text(f"from dfdc_lib.jobs import run_jobs\n{call}\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert '__name__ == "__main__"' in done.stderr.splitlines()[-1]
