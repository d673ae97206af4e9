"""Is an original of one data set also in another, under whatever name?"""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from dfdc_lib.store import digest_file, file_size
from dfdc_lib.video import VideoError, probe, read_frames

MOMENTS = (0.25, 0.5, 0.75)  # of a video, at which it is looked at
# Bits of each hash that may differ. Measured on the sample: of 20 videos at half the size and CRF
# 28 or 40, 16 differ by at most 5; other originals, of the same people, by 14 and more.
UNLIKE = 6
LEAK = ["data_set", "file", "other_set", "other_file", "how"]


def hash_picture(picture: np.ndarray) -> int:
    """The difference hash of a picture (H, W, 3), 64 bits: is each of 8 x 9 places brighter than
    the one to its left? Another codec or size changes little of it.
    """
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes())


def hash_video(path: Path) -> tuple[int, ...]:
    """The difference hashes of three frames; () where they can't be read."""
    try:
        info = probe(path)
        wanted = {int(info.n_frames * moment) for moment in MOMENTS}
        return tuple(hash_picture(picture) for _, picture in read_frames(path, wanted, info))
    except (VideoError, OSError):
        return ()


def find_leaks(
    truth: pd.DataFrame, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[pd.DataFrame, int]:
    """Compare the originals of each two data sets: LEAK's columns, a row a pair that is the same.

    truth: columns data_set, file, path, label. how: "equal bytes", or "equal pictures" where three
    frames look the same. Returns also how many originals could not be read.
    """
    reals = truth[truth.label == 0].reset_index(drop=True)
    reals["size"] = [file_size(path) for path in reals.path]
    hashes: np.ndarray = np.zeros((len(reals), len(MOMENTS)), np.uint64)
    for number, path in enumerate(reals.path):
        found = hash_video(Path(path))
        if len(found) == len(MOMENTS):
            hashes[number] = found
        progress(number + 1, len(reals))
    known: np.ndarray = np.asarray(hashes.any(axis=1))
    leaks = []
    for ours, theirs in combinations(reals.groupby("data_set").indices.values(), 2):
        for one in ours:
            apart = np.bitwise_count(hashes[theirs] ^ hashes[one]).max(axis=1)
            alike = theirs[(apart <= UNLIKE) & known[theirs] & known[one]]
            same_size = theirs[reals["size"].to_numpy()[theirs] == reals["size"][one]]
            for other in sorted({*alike, *same_size}):
                equal = other in same_size and is_copy(reals.path[one], reals.path[other])
                if equal or other in alike:
                    places = (*reals.loc[one, LEAK[:2]], *reals.loc[other, LEAK[:2]])
                    leaks.append((*places, "equal bytes" if equal else "equal pictures"))
    return pd.DataFrame(leaks, columns=LEAK), int((~known).sum())


def is_copy(one: str, other: str) -> bool:
    """Are two files of one size equal?"""
    return digest_file(Path(one)) == digest_file(Path(other))
