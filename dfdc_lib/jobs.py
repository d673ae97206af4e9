"""Run jobs in processes (Pebble) or on a cluster (Dask); a death or hang costs only its own job."""

import faulthandler
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import Any, NamedTuple

TIME_LIMIT = 600.0  # seconds per job
WINDOW = 1000  # jobs that a scheduler holds at once
Jobs = Iterable[tuple]  # of arguments
Results = Iterator[tuple[tuple, Any]]  # (job, its result or Lost)


class Lost(NamedTuple):
    """The result of a job whose process died or hung."""

    status: str  # "crashed" or "timeout"
    reason: str


def run_jobs(
    function: Callable,
    jobs: Jobs,
    workers: int = 0,
    scheduler: str = "",
    time_limit: float = TIME_LIMIT,
) -> Results:
    """Yield (job, function(*job) or `Lost`) as jobs end, in any order.

    workers: processes on this machine, where a job that crashed is tried again, alone, at the end;
    0 does the work here, in order and unguarded. scheduler: a Dask scheduler's address; there its
    `allowed-failures` limits the tries. time_limit: seconds, after which a job is stopped. What
    `function` raises is raised here, and the waiting jobs are dropped.
    """
    if not 0 < time_limit <= 1e8:
        raise ValueError(f"a time limit must be a number of seconds above 0, got {time_limit:g}")
    if workers < 0:
        raise ValueError(f"the number of workers must not be negative, got {workers}")
    if scheduler:
        return _on_cluster(function, jobs, scheduler, time_limit)
    if workers:
        return _in_processes(function, jobs, workers, time_limit)
    return ((job, function(*job)) for job in jobs)


def _in_processes(function: Callable, jobs: Jobs, workers: int, time_limit: float) -> Results:
    from pebble import ProcessExpired, ProcessPool

    def get_result(future):
        try:
            return future.result()
        except ProcessExpired:
            return Lost("crashed", "its process died (out of memory, or a fault in a library)")
        except TimeoutError:
            return Lost("timeout", f"stopped because it took more than {time_limit:g} seconds")

    context, share = get_context("spawn"), max(count_cores() // workers, 1)
    first = context.Process(target=count_cores)  # can a process start here at all?
    first.start()
    first.join()
    if first.exitcode:  # no, and Pebble would restart its own forever
        guard = 'a script must call this under `if __name__ == "__main__":`'
        raise OSError(f"a worker process died before its first job; {guard}")
    pool = ProcessPool(workers, initializer=become_worker, initargs=(share,), context=context)
    jobs, again = iter(jobs), []
    waiting: dict[Any, tuple] = {}
    try:
        while True:
            for job in islice(jobs, 2 * workers - len(waiting)):
                waiting[pool.schedule(function, job, timeout=time_limit)] = job
            if not waiting:
                break
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                job, result = waiting.pop(future), get_result(future)
                if isinstance(result, Lost) and result.status == "crashed":
                    again.append(job)  # its neighbours may have taken the memory
                else:
                    yield job, result
        for job in again:
            yield job, get_result(pool.schedule(function, job, timeout=time_limit))
    finally:
        pool.stop()
        pool.join()


def _on_cluster(function: Callable, jobs: Jobs, address: str, time_limit: float) -> Results:
    if not find_spec("distributed"):
        raise ValueError("--scheduler needs Dask distributed: pip install 'dfdc-lib[cluster]'")
    from distributed import Client, KilledWorker, as_completed

    if not re.fullmatch(r"(\w+://)?.+:\d+", address):  # without a port the client never gives up
        raise ValueError(f"a scheduler's address looks like tcp://host:8786, got {address!r}")
    with Client(address, set_as_default=False) as client:
        count, watch = len(client.nthreads()), client.dashboard_link
        print(f"{count} workers at {address}; watch them at {watch}", file=sys.stderr)
        jobs, waiting = iter(jobs), {}
        futures = as_completed(loop=client.loop)

        def submit(n_jobs: int) -> None:
            for job in islice(jobs, n_jobs):
                future = client.submit(_guard_job, function, job, time_limit, pure=False)
                waiting[future.key] = job
                futures.add(future)

        submit(WINDOW)
        for future in futures:
            job = waiting.pop(future.key)
            try:
                result = future.result()
            except KilledWorker as error:
                why = f"out of memory, a fault in a library, or over {time_limit:g} seconds"
                result = Lost("crashed", f"its workers died ({why}): {error.args[0]}")
            except CancelledError as error:
                fix = "run again; what is done is kept"
                raise OSError(f"the scheduler at {address} is gone: {fix}") from error
            submit(1)
            yield job, result


def _guard_job(function: Callable, job: tuple, time_limit: float):
    """Do a job in a cluster's worker; end the worker if it takes too long."""
    from distributed import get_worker

    if (threads := get_worker().state.nthreads) != 1:
        why = f"a worker of the cluster has {threads} threads: one bad video would end the others"
        raise ValueError(f"{why}: start it with --nthreads 1, and with as many --nworkers as cores")
    use_cores(1)
    # Unlike a signal handler, this works even while native code holds the interpreter.
    faulthandler.dump_traceback_later(time_limit, exit=True)
    try:
        return function(*job)
    finally:
        faulthandler.cancel_dump_traceback_later()


_cores = 0  # 0: all


def count_cores() -> int:
    """Count the cores this process may use: often fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on Windows and macOS
    return _cores or (len(affinity(0)) if affinity else os.cpu_count() or 1)


def use_cores(count: int) -> None:
    """Limit this process's libraries to `count` cores, and leave the others to its neighbours."""
    global _cores
    import cv2

    _cores = count
    cv2.setNumThreads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)  # for torch, if imported later
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)


def become_worker(count: int) -> None:
    """Become a worker with `count` cores that ends with its parent and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_cores(count)

    def follow_parent() -> None:
        parent_process().join()  # type: ignore[union-attr]  # a worker has one
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


@contextmanager
def answer_signals(handler, *numbers: int) -> Iterator[None]:
    """Let `handler` answer these signals meanwhile, in the main thread: no other thread may."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if is_main}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
