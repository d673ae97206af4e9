"""Progress as plain lines: readable in a terminal, in a log and in an executed notebook, where bars would vanish."""

import sys
from collections.abc import Callable


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
