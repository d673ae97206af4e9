"""Fetch upstream's seven released networks, and check them against their digests."""

import http.client
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

UPSTREAM = "https://github.com/selimsef/dfdc_deepfake_challenge"
RELEASE = f"{UPSTREAM}/releases/download/0.0.1"
TRIES, PAUSE, PATIENCE = 5, 2, 30  # of a download; seconds between tries, and of silence
CHUNK = 1 << 20  # bytes


class Released(NamedTuple):
    """A file as upstream released it."""

    size: int  # bytes
    sha256: str


# Release 0.0.1: seven B7 from five seeds; a name ends with fold and epoch. The release gives no
# checksums: these come from Git LFS pointers to the same files elsewhere.
FILES = """\
111 0_36 266910617 9db77ab9318863e2f8ab287c8eb83c2232584b82dc2fb41f1d614ddd7900cccb
555 0_19 266910618 e2f0066a8ff036add2f5b418d2eba1051c2d2788f84168f00a85207f3b666e04
777 0_29 266910617 9fe4311d551a9cbaa1475dbcd6b15fccb31a1e17a8d63069e90a8899aef03b5c
777 0_31 266910617 00dd6cd9466cddfd7da7c333d8fecae81593307827093deaf4d7cdf704bc8bfa
888 0_37 266910615 d4a2bb4aefde59e045463ad469ed9660765beb086f65a09f9478ab060d403c7c
888 0_40 266910613 c1d326a6651011390efe602e42cb8228232d6d18a15c404cf85d7233482f6d6d
999 0_23 266910615 849036dc211387420412feb68c7451e98a948072b94e213e1104e2f2bf7791ad
"""
RELEASED = {
    f"final_{seed}_DeepFakeClassifier_tf_efficientnet_b7_ns_{epoch}": Released(int(size), digest)
    for seed, epoch, size, digest in map(str.split, FILES.splitlines())
}


def weights_folder() -> Path:
    """Where the released files are unless you say otherwise: in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "dfdc" / "weights"


def find_weights(folder: Path | None = None) -> list[Path]:
    """The released files in a folder (default: `weights_folder`), by name."""
    folder = folder or weights_folder()
    return [folder / name for name in RELEASED if (folder / name).is_file()]


def choose_names(only: str) -> list[str]:
    """The files of some seeds, e.g. "111,555"; "": all of them. Raises ValueError."""
    seeds = [word.strip() for word in only.split(",") if word.strip()]
    known = {name.split("_")[1] for name in RELEASED}
    if unknown := [seed for seed in seeds if seed not in known]:
        raise ValueError(f"no network of seed {unknown[0]}: choose from {', '.join(sorted(known))}")
    return [name for name in RELEASED if not seeds or name.split("_")[1] in seeds]


def fetch_weights(
    folder: Path, names: Iterable[str], mirror: str = "", progress: Callable | None = None
) -> list[Path]:
    """Fetch released files into a folder; those that are there and right stay.

    mirror: an address, or a folder, that holds them; "": upstream's release. progress: gets bytes
    done and in total. Raises OSError for a file that can't be fetched, and ValueError for one that
    is not what was released; that one is kept as <name>.wrong.
    """
    names, before = list(names), 0
    total = sum(RELEASED[name].size for name in names)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not is_released(folder / name, name):
            part = folder / f"{name}.part"
            copy_or_download(
                mirror or RELEASE, name, part, partial(_report, progress, before, total)
            )
            if not is_released(part, name):
                part.replace(wrong := folder / f"{name}.wrong")
                raise ValueError(f"not what upstream released as {name}: it is kept as {wrong}")
            part.replace(folder / name)
        before += RELEASED[name].size
        _report(progress, before, total, 0)
    return [folder / name for name in names]


def _report(progress: Callable | None, before: int, total: int, done: int) -> None:
    if progress:
        progress(before + done, total)


def is_released(path: Path, name: str) -> bool:
    """Is this file, byte for byte, what upstream released under a name?"""
    from dfdc_lib.store import digest_file

    size, sha256 = RELEASED[name]
    return path.is_file() and path.stat().st_size == size and digest_file(path) == sha256


def copy_or_download(source: str, name: str, part: Path, report: Callable[[int], None]) -> None:
    """Fetch a file from a folder or an address. Raises OSError with what to do."""
    if "://" not in source:
        shutil.copyfile(Path(source) / name, part)
        return
    for left in reversed(range(TRIES)):
        try:
            download(f"{source.rstrip('/')}/{name}", part, RELEASED[name].size, report)
            return
        except (OSError, http.client.HTTPException) as error:
            missing = isinstance(error, urllib.error.HTTPError) and error.code < 500
            offline = isinstance(getattr(error, "reason", None), socket.gaierror)
            if missing or offline or not left:
                fix = "--mirror names an address or a folder that has it; what arrived is kept"
                raise OSError(f"can't download {source}/{name} ({error}): {fix}") from error
            time.sleep(PAUSE)


def download(address: str, part: Path, size: int, report: Callable[[int], None]) -> None:
    """Download a file of `size` bytes, from where `part` ends. Raises OSError if it breaks off."""
    done = part.stat().st_size if part.exists() else 0
    if done >= size:  # too long, or complete and wrong
        done = 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        if answer.status != http.client.PARTIAL_CONTENT:  # it sends all of it, from the start
            done = 0
        with open(part, "ab" if done else "wb") as file:
            while chunk := answer.read(CHUNK):
                done += file.write(chunk)
                report(min(done, size))
    if done < size:
        raise ConnectionError(f"it ended after {done} of {size} bytes")
