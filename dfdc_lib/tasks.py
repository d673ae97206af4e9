"""Many tasks over processes, of this machine or of a cluster. A process that dies or hangs costs one task one try.

`run_tasks` hands tasks out; whoever has lost its process is handed out again. `watched` stands around the part of a
task that may take its process with it (a decoder above all), so that what kills its process twice is passed over with
a status, and the rest of the task is done.
"""

import faulthandler
import json
import os
import queue
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

TRIES = 2  # of one piece of work that takes its process with it
TIME_LIMIT = 600  # seconds that one piece of work may take


class Lost(Exception):
    """A piece of work that is given up: status `crashed` or `timeout`, and a reason in words."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


class WorkerDied(Exception):
    """The process that worked on a task is gone."""


def run_tasks(
    function: Callable[[Any], Any], tasks: Iterable, workers: int = 0, scheduler: str = "", lives: int = TRIES + 1
) -> Iterator[tuple[Any, Any]]:
    """Yield (task, function(task)) as they are done, in any order.

    workers: processes of this machine; 0: none, the work is done here. scheduler: the address of a Dask scheduler,
    whose workers do it instead. A task whose process died is handed out again, `lives` times in all; raises OSError
    where that is not enough. What `function` raises is raised here, and what is still waiting is called off.
    """
    if not (workers or scheduler):
        yield from ((task, function(task)) for task in tasks)
        return
    deaths, done, waiting = Counter(), queue.SimpleQueue(), {}
    with _connect(scheduler) if scheduler else _local_processes(workers) as submit:

        def hand_out(number: int, task) -> None:
            waiting[number] = task
            submit(function, task).add_done_callback(lambda future: done.put((number, future)))

        for number, task in enumerate(tasks):
            hand_out(number, task)
        while waiting:
            number, future = done.get()
            task = waiting.pop(number)
            try:
                result = future.result()
            except WorkerDied as error:
                deaths[number] += 1
                if deaths[number] >= lives:
                    raise OSError(f"{deaths[number]} workers died on one task: {error}") from error
                hand_out(number, task)
            else:
                yield task, result


@contextmanager
def _local_processes(count: int) -> Iterator[Callable[..., Future]]:
    """A function like `Executor.submit`, over processes of this machine. Leaving early kills them.

    Each process is a pool by itself: of a pool of many, the death of one would end all.
    """
    lanes = [Lane(max(count_cores() // count, 1)) for _ in range(count)]
    free = queue.SimpleQueue()
    for lane in lanes:
        free.put(lane)

    def run(function: Callable, task):
        lane = free.get()
        try:
            return lane.run(function, task)
        finally:
            free.put(lane)

    threads = ThreadPoolExecutor(count)
    try:
        yield lambda function, task: threads.submit(run, function, task)
    except BaseException:
        threads.shutdown(wait=False, cancel_futures=True)
        for lane in lanes:
            lane.kill()
        raise
    finally:
        threads.shutdown()
        for lane in lanes:
            lane.close()


class Lane:
    """One process that does one task after the other, and is started anew when it dies."""

    def __init__(self, cores: int):
        self.cores, self.pool, self.pid, self.killed = cores, None, 0, False

    def run(self, function: Callable, task):
        """Return function(task). Raises WorkerDied."""
        try:
            if self.killed:
                raise CancelledError
            if self.pool is None:
                self.pool = ProcessPoolExecutor(1, get_context("spawn"), become_worker, (self.cores,))
                self.pid = self.pool.submit(os.getpid).result()
            if self.killed:
                raise CancelledError
            return self.pool.submit(function, task).result()
        except BrokenProcessPool as error:
            why = "out of memory, or a fault in a library"
            if not self.pid:
                why = 'before its first task; if a script calls this, then under `if __name__ == "__main__":`'
            self.pool, self.pid = None, 0
            raise WorkerDied(f"a worker process died ({why})") from error

    def kill(self) -> None:
        """End the process now, whatever it does."""
        self.killed = True
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let the process end."""
        if self.pool is not None:
            self.pool.shutdown()


@contextmanager
def _connect(address: str) -> Iterator[Callable[..., Future]]:
    """A function like `Executor.submit`, over the workers of a Dask cluster."""
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise ValueError("--scheduler needs Dask: pip install 'dfdc-lib[cluster]', or distributed") from error
    if not re.fullmatch(r"(\w+://)?.+:\d+", address):  # without a port the client would never give up
        raise ValueError(f"the address of a scheduler is like tcp://host:8786, got {address!r}")
    with Client(address, set_as_default=False) as client:
        executor = client.get_executor(pure=False)
        print(f"{len(client.nthreads())} workers at {address}; watch them on {client.dashboard_link}", file=sys.stderr)

        def submit(function: Callable, task) -> Future:
            ours = Future()

            def pass_on(theirs: Future) -> None:
                try:
                    ours.set_result(theirs.result())
                except KilledWorker as error:
                    ours.set_exception(WorkerDied(str(error)))
                except CancelledError:
                    ours.set_exception(OSError(f"the scheduler at {address} is gone: run again, what is done is kept"))
                except BaseException as error:  # whatever the task raised
                    ours.set_exception(error)

            executor.submit(_work_on_cluster, function, task).add_done_callback(pass_on)
            return ours

        yield submit


def _work_on_cluster(function: Callable, task):
    from distributed import get_worker

    if (threads := get_worker().state.nthreads) != 1:
        several = f"a worker of the cluster has {threads} threads, whose videos would share one fate and one network"
        raise ValueError(f"{several}: start it with --nthreads 1, and as many --nworkers as there are cores")
    use_cores(1)
    return function(task)


def count_cores() -> int:
    """How many cores this process may run on: of a cluster's node or a container often not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_time_limit(seconds: float) -> None:
    """Raise ValueError where a time limit is none."""
    if not 0 < seconds <= 1e8:
        raise ValueError(f"a time limit is a number of seconds above 0, got {seconds:g}")


_cores = 0  # that this process may use; 0: as many as there are


def cores() -> int:
    """How many cores this process may use; 0 for all."""
    return _cores


def use_cores(count: int) -> None:
    """Let this process's libraries use `count` cores: what works beside it has the others."""
    global _cores
    import cv2

    _cores = count
    cv2.setNumThreads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)  # torch reads it when it is imported; not every worker needs torch
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)


def become_worker(count: int) -> None:
    """Be a worker of `count` cores that does not outlive its parent, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_cores(count)

    def follow_parent() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


@contextmanager
def watched(marker: Path, run: str, limit: float = TIME_LIMIT) -> Iterator[None]:
    """Stand around a piece of work that may take its process with it.

    marker: a file that is there while the work goes on; found at its beginning, it tells of an earlier try that ended
    with its process. run: whose tries count: a run that somebody killed is no fault of the work. Raises Lost
    (`crashed`) after `TRIES` of them, and Lost (`timeout`) after one that took longer than `limit` seconds, which ends
    the process.
    """
    died = _read_tries(marker, run)
    marker.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(marker, "w") as file:
            print(json.dumps({"run": run, "tries": died + 1, "limit": limit}), file=file, flush=True)
            # It writes where the work hangs, then ends the process: also where native code holds the interpreter.
            faulthandler.dump_traceback_later(limit, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
    except WorkerDied:  # another has taken over, and the marker
        raise
    except BaseException:  # the work failed, and its process lives
        marker.unlink(missing_ok=True)
        raise
    marker.unlink(missing_ok=True)


def _read_tries(marker: Path, run: str) -> int:
    """How often this run has tried in vain; raises Lost where that was once too often, or too long."""
    try:
        first, *trace = marker.read_text(errors="replace").splitlines()
        told = json.loads(first)
    except (FileNotFoundError, ValueError):  # not tried; or killed before it had written
        return 0
    if told["run"] != run:
        return 0
    if trace:
        places = re.findall(r'dfdc_lib.(\w+\.py)", line (\d+) in (\w+)', "\n".join(trace))
        # Beside the work there are threads that wait for it.
        places = [place for place in places if place[2] not in ("follow_parent", "run_ahead")]
        where = next((f" in {function} ({file}, line {line})" for file, line, function in places), "")
        raise Lost("timeout", f"stopped because it took more than {told['limit']:g} seconds{where}")
    if told["tries"] >= TRIES:
        raise Lost("crashed", f"its process died {told['tries']} times (out of memory, or a fault in a library)")
    return told["tries"]
