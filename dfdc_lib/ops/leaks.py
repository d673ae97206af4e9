"""Is an original of one data set also in another, under whatever name?"""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from dfdc_lib.store import digest_file, file_size
from dfdc_lib.video import VideoError, probe, read_frames

MOMENTS = (0.25, 0.5, 0.75)  # of a video, whose frames are compared
# Bits of a hash that may differ in the same picture. Measured on the sample: of 20 videos at half
# the size and CRF 28 or 40, 16 differ by at most 5; other originals, of the same people, by 14 or
# more.
MOST_APART = 6
FLAT = 6  # bits: a hash with fewer ones, or fewer zeros, says nothing
LEAK_COLUMNS = ["data_set", "file", "other_set", "other_file", "how"]


def hash_picture(picture: np.ndarray) -> int:
    """The difference hash of a picture (H, W, 3), 64 bits: is each of 8 x 9 places brighter than
    the one to its left? Another codec or size changes little of it.
    """
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes())


def hash_video(path: Path) -> list[int]:
    """The difference hashes of three frames; 0 for one that can't be read."""
    try:
        info = probe(path)
        moments = [int(info.n_frames * moment) for moment in MOMENTS]
        found = {i: hash_picture(picture) for i, picture in read_frames(path, moments, info)}
        return [found.get(i, 0) for i in moments]
    except (VideoError, OSError):
        return [0] * len(MOMENTS)


def find_leaks(
    truth: pd.DataFrame, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[pd.DataFrame, int]:
    """Compare the originals of every two data sets: LEAK_COLUMNS, a row per matching pair.

    truth: columns data_set, file, path, label. how: "equal bytes", or "equal pictures" if three
    frames look the same. Also returns how many originals can't be read, or are too plain.
    """
    reals = truth[truth.label == 0].reset_index(drop=True)
    sizes = np.array([file_size(path) or -1 for path in reals.path])
    hashes: np.ndarray = np.zeros((len(reals), len(MOMENTS)), np.uint64)
    for number, path in enumerate(reals.path):
        hashes[number] = hash_video(Path(path))
        progress(number + 1, len(reals))
    bits = np.bitwise_count(hashes)
    known = ((bits >= FLAT) & (bits <= 64 - FLAT)).all(axis=1)
    leaks = []
    for ours, theirs in combinations(reals.groupby("data_set").indices.values(), 2):
        for one in ours:
            apart = np.bitwise_count(hashes[theirs] ^ hashes[one]).max(axis=1)
            alike = (apart <= MOST_APART) & known[theirs] & known[one]
            same_size = (sizes[theirs] == sizes[one]) & (sizes[one] >= 0)
            for i in np.flatnonzero(alike | same_size):
                other = theirs[i]
                equal = same_size[i] and is_copy(reals.path[one], reals.path[other])
                if equal or alike[i]:
                    places = (
                        *reals.loc[one, LEAK_COLUMNS[:2]],
                        *reals.loc[other, LEAK_COLUMNS[:2]],
                    )
                    leaks.append((*places, "equal bytes" if equal else "equal pictures"))
    return pd.DataFrame(leaks, columns=LEAK_COLUMNS), int((~known).sum())


def is_copy(one: str, other: str) -> bool:
    """Are two files of one size equal?"""
    return digest_file(Path(one)) == digest_file(Path(other))
