"""What goes on, in plain lines: readable in a terminal, a log and an executed notebook, where bars would vanish."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


class NotEnough(ValueError):
    """What was asked for needs what is not here: fakes, a second part, a trained run. The message says what.

    A notebook that meets it ends there, and the rest of its page is left out: see notebooks/run.py.
    """


def require(there: object, reason: str) -> None:
    """Raise NotEnough, with the reason, where something that is needed is missing or empty."""
    if not there:
        raise NotEnough(reason)


def text_progress(what: str) -> Callable[..., None]:
    """Return a function (done, total[, loss]) that prints about ten lines in all."""
    shown = -1

    def show(done: int, total: int, loss: float | None = None) -> None:
        nonlocal shown
        tenth = 10 * done // total if total else 10
        if tenth > shown:
            shown = tenth
            print(f"{what} {done}/{total}" + ("" if loss is None else f" · loss {loss:.3f}"), flush=True)

    return show


def progress_bar(what: str) -> Callable[..., None]:
    """Return a function (done, total[, loss]) that draws a bar with the time that is left; on stderr, for terminals."""
    from tqdm import tqdm

    bar = None

    def show(done: int, total: int, loss: float | None = None) -> None:
        nonlocal bar
        bar = bar or tqdm(desc=what, total=total, mininterval=0.5, file=sys.stderr)
        if loss is not None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show


def run_command(command: Sequence[str], folder: Path | None = None) -> None:
    """Run a command to its end, in `folder`. Where it fails, raises RuntimeError with the last that it said.

    A Python command that ended in NotEnough raises that.
    """
    ended = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if not ended.returncode:
        return
    kind, _, reason = ended.stdout.rstrip().rpartition("\n")[2].partition(": ")
    if kind.endswith(NotEnough.__name__):
        raise NotEnough(reason)
    raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout[-3000:]}")
