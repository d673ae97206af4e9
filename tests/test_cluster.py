"""A Dask cluster of real processes: a scheduler and three workers, two of which are lost."""

import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pandas as pd
import pytest
from conftest import EVERY_6, files_of
from test_predict import make_model
from waiting import wait_for

from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import save_checkpoint
from dfdc_lib.ops.cli import main
from dfdc_lib.ops.pipeline import preprocess

dask, distributed = map(pytest.importorskip, ("dask", "distributed"))


@contextmanager
def started(tool: str, *options):
    """A process of `dask scheduler` or `dask worker`; ended at the end, whatever state it is in."""
    command = [sys.executable, "-m", "dask", tool, "--no-dashboard", *map(str, options)]
    if tool == "worker":
        command += ["--nthreads", "1", "--no-nanny"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def cluster(tmp_path):
    """cluster(*options): start one more worker; cluster.address: the scheduler's."""
    with ExitStack() as stack:
        known, folder = tmp_path / "scheduler.json", tmp_path / "scratch"
        where = ("--host", "127.0.0.1", "--port", 0, "--scheduler-file", known)
        stack.enter_context(started("scheduler", *where))
        wait_for(known.exists, "the scheduler")

        def add_worker(*options) -> subprocess.Popen:
            where = ("--scheduler-file", known, "--local-directory", folder)
            return stack.enter_context(started("worker", *where, *options))

        add_worker.address = pd.read_json(known, typ="series").address
        yield add_worker


WAITING_WORKER = """
import os, time
from pathlib import Path
from dfdc_lib import preprocess

def process_video(path, work, config, video_id, *rest, really=preprocess.process_video):
    "Process a video, say so, and wait for as long as the test wants it. (Dask reads this twice.)"
    result = really(path, work, config, video_id, *rest)
    Path(FOLDER, f"{video_id}.{os.getpid()}").touch()
    while Path(FOLDER, f"{video_id}.wait").exists():
        time.sleep(0.01)
    return result

preprocess.process_video = process_video
"""


def seem_lost(address: str, name: str) -> None:
    """Let a scheduler think that it has not heard of a worker for minutes."""

    async def forget(dask_scheduler) -> None:
        dask_scheduler.workers[dask_scheduler.aliases[name]].last_seen = 0
        await dask_scheduler.check_worker_ttl()

    with distributed.Client(address, set_as_default=False) as client:
        client.run_on_scheduler(forget)


@pytest.mark.slow
def test_one_worker_is_killed_one_hangs_one_comes_late(
    small_sample, small_work, uncropped, tmp_path, cluster
):
    """Each video is counted once; who hung wakes while another redoes its video."""
    originals, told = read_metadata(small_sample).query("label == 0").video_id, Counter()
    (tmp_path / "waiting_worker.py").write_text(f"FOLDER = {str(tmp_path)!r}\n{WAITING_WORKER}")
    for video in originals:
        (tmp_path / f"{video}.wait").touch()

    def add_worker(name: str) -> subprocess.Popen:
        return cluster("--preload", tmp_path / "waiting_worker.py", "--name", name)

    def cropped_by(worker: subprocess.Popen) -> list[str]:
        return [path.stem for path in tmp_path.glob(f"*.{worker.pid}")]

    first, second = add_worker("first"), add_worker("second")
    cluster_runs = {"scheduler": cluster.address, "progress": lambda done, _: told.update([done])}
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(preprocess, small_sample, uncropped, EVERY_6, **cluster_runs)

        def wait_while_it_runs(happened, what: str) -> None:
            wait_for(lambda: run.done() or happened(), what)
            assert not run.done(), run.result()

        wait_while_it_runs(lambda: cropped_by(first) and cropped_by(second), "both to begin")
        first.kill()
        second.send_signal(signal.SIGSTOP)
        seem_lost(cluster.address, "second")
        (video,) = cropped_by(second)
        for other in set(originals) - {video}:
            (tmp_path / f"{other}.wait").unlink()
        third = add_worker("third")
        wait_while_it_runs(lambda: video in cropped_by(third), "the third to redo it")
        second.send_signal(signal.SIGCONT)
        (tmp_path / f"{video}.wait").unlink()
        done = run.result(timeout=300)
    assert third.poll() is None
    assert (done.status.status == "ok").all()
    assert sorted(told) == list(range(13))
    assert done.actions == {("detect", "kept"): 4, ("crop", "done"): 12, ("masks", "done"): 8}
    assert files_of(uncropped) == files_of(small_work)


@pytest.mark.slow
def test_predictions_of_a_cluster_are_those_of_one_machine(small_sample, tmp_path, cluster):
    save_checkpoint(tmp_path / "tiny.pt", make_model())
    videos = [str(small_sample / file) for file in read_metadata(small_sample).file[:3]]
    call = ["predict", *videos, "--checkpoint", str(tmp_path / "tiny.pt"), "--frames", "4"]
    cluster()
    outs = [tmp_path / name / "submission.csv" for name in ("cluster", "here")]
    assert main([*call, "--out", str(outs[0]), "--scheduler", cluster.address]) == 0
    assert main([*call, "--out", str(outs[1]), "--workers", "0"]) == 0
    frames = [pd.read_parquet(out.parent / "predictions.parquet") for out in outs]
    pd.testing.assert_frame_equal(*frames, check_exact=False, atol=1e-4)


@pytest.mark.parametrize("address", ["somewhere", "tcp://localhost", "tcp://127.0.0.1:1"])
def test_an_address_that_leads_nowhere_is_one_line(small_sample, tmp_path, capsys, address):
    call = ["preprocess", str(small_sample), "--work", str(tmp_path), "--scheduler", address]
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert main(call) == 2
    told = capsys.readouterr().err
    assert address in told
    assert "Traceback" not in told
