"""Progress as plain lines: readable in a terminal, in a log and in an executed notebook, where bars would vanish."""

from collections.abc import Callable


def text_progress(what: str) -> Callable[..., None]:
    """Return a function (done, total[, loss]) that prints about ten lines in all."""
    shown = -1

    def show(done: int, total: int, loss: float | None = None) -> None:
        nonlocal shown
        tenth = 10 * done // total
        if tenth > shown:
            shown = tenth
            print(f"{what} {done}/{total}" + ("" if loss is None else f" · loss {loss:.3f}"), flush=True)

    return show
