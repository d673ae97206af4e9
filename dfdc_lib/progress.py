"""Report progress in plain lines, which also read well in a log or an executed notebook."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


class NotEnough(ValueError):
    """Something needed is missing; notebooks/run.py then skips the rest of the page."""


def require(there: object, reason: str) -> None:
    """Raise NotEnough if something needed is missing or empty."""
    if not there:
        raise NotEnough(reason)


def text_progress(what: str) -> Callable[..., None]:
    """Return a function (done, total[, loss]) that prints about ten lines in total."""
    shown = -1

    def print_tenths(done: int, total: int, loss: float | None = None) -> None:
        nonlocal shown
        tenth = 10 * done // total if total else 10
        if tenth > shown:
            shown = tenth
            told = "" if loss is None else f" · loss {loss:.3f}"
            print(f"{what} {done}/{total}{told}", flush=True)

    return print_tenths


def progress_bar(what: str) -> Callable[..., None]:
    """Return a function (done, total[, loss]) that draws a bar on stderr, for terminals."""
    from tqdm import tqdm

    bar = None

    def draw_bar(done: int, total: int, loss: float | None = None) -> None:
        nonlocal bar
        bar = bar or tqdm(desc=what, total=total, mininterval=0.5, file=sys.stderr)
        if loss is not None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return draw_bar


def run_command(command: Sequence[str], folder: Path | None = None) -> None:
    """Run a command. If it fails, raise its NotEnough, or RuntimeError with its last output."""
    both: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    ended = subprocess.run(command, cwd=folder, text=True, **both)
    if not ended.returncode:
        return
    kind, _, reason = ended.stdout.rstrip().rpartition("\n")[2].partition(": ")
    if kind.endswith(NotEnough.__name__):
        raise NotEnough(reason)
    last = ended.stdout[-3000:]
    raise RuntimeError(f"{' '.join(command)} ended with exit code {ended.returncode}:\n{last}")
