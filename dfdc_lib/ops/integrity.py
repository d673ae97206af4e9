"""Is a work folder complete and undamaged? Compares its journal with its folders."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from dfdc_lib.dataset import read_folds
from dfdc_lib.ops.doctor import Finding
from dfdc_lib.ops.pipeline import PASSING, Key, Line, append_lines, read_status
from dfdc_lib.store import DamagedFile, WorkFolder, hold, list_faces, read_png

KINDS = {"detect": "boxes", "crop": "crops", "masks": "masks"}  # stage → folder of what it makes
SHOWN = 3  # names per kind of fault
AGAIN = "run `dfdc preprocess` again"
STRIKE = f"strike them out with `dfdc doctor --work … --pictures --strike`, then {AGAIN}"


class Fault(NamedTuple):
    """Things of one kind that are wrong in a work folder, and how to fix them."""

    what: str
    names: list[str]
    fix: str
    keys: Sequence[Key] = ()  # what must be done again


def check_work(work: WorkFolder, pictures: bool = False, strike: bool = False) -> list[Finding]:
    """Does a work folder hold what its journal says?

    pictures: decode every crop and mask too. strike: strike out the lines of what is missing or
    damaged, so that the next `dfdc preprocess` makes it again; otherwise nothing is changed.
    """
    try:
        recipe, status = work.read_recipe(), read_status(work)
    except (FileNotFoundError, DamagedFile) as error:
        return [Finding(f"work folder {work.root}", False, str(error))]
    done = {key: line for key, line in status.items() if line.status not in PASSING}
    n_crops = sum(line.count for line in done.values() if line.stage == "crop")
    found = f"{len({v for v, _ in status})} videos of {recipe['data']}, {n_crops} crops"
    checks = [find_incomplete(work, done), *compare_folds(work, done)]
    checks += [find_broken(work)] if pictures else []
    faults = [fault for fault in checks if fault.names]
    if strike and (keys := sorted({key for fault in faults for key in fault.keys})):
        with hold(work.status):
            append_lines(work, [Line(*key, "pending", 0, "struck out", None) for key in keys])
        found += f"; {len(keys)} lines struck out: {AGAIN}"
    findings = [Finding(f"work folder {work.root}", not faults, found)]
    for what, names, fix, _ in faults:
        few = ", ".join(names[:SHOWN]) + ", …" * (len(names) > SHOWN)
        findings.append(Finding(what, False, f"{len(names)}: {few}", fix))
    return findings


def find_incomplete(work: WorkFolder, done: dict[Key, Line]) -> Fault:
    """What the journal counts but is missing or can't be read."""
    keys = []
    for (video_id, stage), line in done.items():
        try:
            if stage != "detect":
                found = len(list_faces(work.artifact(stage, video_id)))
            else:
                found = sum(len(frame["boxes"]) for frame in work.read_boxes(video_id)["frames"])
        except FileNotFoundError:
            found = 0
        except (DamagedFile, KeyError, TypeError):
            found = -1
        if found != line.count:
            keys.append((video_id, stage))
    return Fault("incomplete", [f"{KINDS[stage]}/{v}" for v, stage in keys], STRIKE, keys)


def compare_folds(work: WorkFolder, done: dict[Key, Line]) -> Iterator[Fault]:
    """Does folds.csv name as many crops as there are, and split no original from its fakes?"""
    fix = f"{AGAIN}: it writes folds.csv again"
    counted = pd.Series({v: line.count for (v, stage), line in done.items() if stage == "crop"})
    counted = counted[counted > 0].astype(int)
    try:
        folds = read_folds(work)
    except (FileNotFoundError, DamagedFile) as error:
        yield Fault("folds", [str(error)] * bool(len(counted)), fix)
        return
    named = folds.video_id.value_counts().rename(None)
    wrong = named.sub(counted, fill_value=0)
    yield Fault("folds.csv does not name the crops of", wrong.index[wrong != 0].tolist(), fix)
    pairs = folds[["original_id", "fold"]].drop_duplicates()
    split = pairs.original_id[pairs.original_id.duplicated()].unique().tolist()
    yield Fault("a leak: folds.csv splits an original from its fakes", split, fix)


def find_broken(work: WorkFolder) -> Fault:
    """The pictures that can't be decoded."""
    names, keys = [], []
    for stage, kind in (("crop", "crops"), ("masks", "masks")):
        for path in sorted((work.root / kind).glob("*/*.png")):
            try:
                read_png(path)
            except DamagedFile:
                names.append(str(path.relative_to(work.root)))
                keys.append((path.parent.name, stage))
    return Fault("damaged pictures", names, STRIKE, keys)
