"""To wait for what happens, not for as long as it takes here. (It is imported at once.)"""

import threading
import time


def wait_for(happened, what: str, seconds: float = 300) -> None:
    """Wait until `happened()`; so long that only what never comes fails, on whatever machine."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds} seconds for {what}"
        time.sleep(0.02)


def hang() -> None:
    """Wait for what never comes; should nobody end this, it ends as a failure."""
    threading.Event().wait(600)
    raise AssertionError("nobody has ended what hangs")
