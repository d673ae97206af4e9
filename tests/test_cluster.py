"""Preprocessing and prediction by a Dask cluster of real processes: a scheduler and three workers, two of them lost."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pandas as pd
import pytest
import torch
from conftest import files_of

from dfdc_lib.cli import main
from dfdc_lib.config import PreprocessConfig
from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint
from dfdc_lib.paths import WorkFolder
from dfdc_lib.preprocess import preprocess

pytest.importorskip("distributed")
HASTY = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "6s"}  # after five minutes a silent worker counts as lost


@contextmanager
def started(tool: str, *options):
    """A process of `dask scheduler` or `dask worker`; ended at the end, whatever state it is in."""
    command = [sys.executable, "-m", "dask", tool, "--no-dashboard", *map(str, options)]
    if tool == "worker":
        command += ["--nthreads", "1", "--no-nanny"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=os.environ | HASTY, **quiet) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def cluster(tmp_path):
    """cluster(): start one more worker; cluster.address: the scheduler's."""
    with ExitStack() as stack:
        known = tmp_path / "scheduler.json"
        stack.enter_context(started("scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", known))
        wait_for(known.exists, "the scheduler")

        def add_worker() -> subprocess.Popen:
            folder = tmp_path / "scratch"
            return stack.enter_context(started("worker", "--scheduler-file", known, "--local-directory", folder))

        add_worker.address = pd.read_json(known, typ="series").address
        yield add_worker


def wait_for(happened, what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds} seconds for {what}"
        time.sleep(0.05)


@pytest.mark.slow
def test_one_worker_is_killed_one_hangs_one_comes_late(small_sample, small_work, tmp_path, cluster):
    """Every video is done, and counted once; the worker that hung wakes while another redoes its video."""
    work, told = WorkFolder(tmp_path / "work"), Counter()
    first, second = cluster(), cluster()

    def claims() -> int:
        return len(list(work.attempts.glob("*/*.claim")))

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(
            preprocess, small_sample, work, PreprocessConfig(every=6), scheduler=cluster.address,
            progress=lambda done, total: told.update([done]),
        )  # fmt: skip
        wait_for(lambda: claims() >= 2, "both workers to begin")
        first.kill()
        second.send_signal(signal.SIGSTOP)
        third = cluster()
        wait_for(lambda: told.total() >= 3, "the third worker to get on")
        second.send_signal(signal.SIGCONT)
        done = run.result(timeout=300)
    assert third.poll() is None
    assert (done.status.status == "ok").all()
    assert sorted(told) == [0, 1, 2, 3, 4]
    assert set(told.values()) == {1}
    assert done.actions.groupby("stage").sum().to_dict() == {"detect": 4, "crop": 12, "masks": 8}
    assert files_of(work) == files_of(small_work)


@pytest.mark.slow
def test_predictions_of_a_cluster_are_those_of_one_machine(small_sample, tmp_path, cluster, capsys):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "tiny.pt", DeepfakeClassifier("tiny"))
    videos = [str(small_sample / file) for file in read_metadata(small_sample).file[:3]]
    call = ["predict", *videos, "--checkpoint", str(tmp_path / "tiny.pt"), "--frames", "4"]
    cluster()
    outs = [tmp_path / name / "submission.csv" for name in ("cluster", "here")]
    assert main([*call, "--scheduler", cluster.address]) == 2
    assert "--scheduler needs --out" in capsys.readouterr().err
    assert main([*call, "--out", str(outs[0]), "--scheduler", cluster.address]) == 0
    assert main([*call, "--out", str(outs[1]), "--workers", "0"]) == 0
    frames = [pd.read_parquet(out.parent / "predictions.parquet") for out in outs]
    pd.testing.assert_frame_equal(*frames, check_exact=False, atol=1e-4)
    for out in outs:  # and nothing else: what was kept on the way is gone
        assert {path.name for path in out.parent.iterdir()} == {"predictions.parquet", "status.csv", "submission.csv"}


@pytest.mark.parametrize("address", ["somewhere", "localhost", "tcp://localhost"])
def test_an_address_without_a_port_is_one_line(small_sample, tmp_path, capsys, address):
    assert main(["preprocess", str(small_sample), "--work", str(tmp_path), "--scheduler", address]) == 2
    assert "like tcp://host:8786" in capsys.readouterr().err


def test_a_scheduler_that_is_not_there_is_one_line(small_sample, tmp_path, capsys, monkeypatch):
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        call = ["preprocess", str(small_sample), "--work", str(tmp_path / "w"), "--scheduler", "tcp://127.0.0.1:1"]
        assert main(call) == 2
    told = capsys.readouterr().err
    assert "tcp://127.0.0.1:1" in told
    assert "Traceback" not in told
