"""Lay out another data set like DFDC's, as links and metadata.json: what `dfdc adopt` does.

Each layout's reader yields what the set's makers say about each video: label, original, method and
official split. What they list but is not on disk is counted: a partial download is not an error.
"""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dfdc_lib.metadata import MetadataError
from dfdc_lib.ops.results import read_truth
from dfdc_lib.ops.submission import VIDEO_NAME
from dfdc_lib.store import appear_whole, read_json, show, write_json
from dfdc_lib.video import printable

SIGN = "adopted.json"  # in a folder that a later call may replace
SPLITS = ("test", "val", "train", "")  # a family that spans several goes to the first
FOLDS = ("val", "test", "train", "")  # their order as parts, and so as folds: a run holds 0 out
N_PARTS = 5  # of a set without official splits
REALS = {"real", "reals", "0_real", "original", "originals", "pristine", "genuine", "authentic"}
FAKES = {"fake", "fakes", "1_fake", "manipulated", "deepfake", "deepfakes", "synthetic", "forged"}
SPLIT_NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
SPLIT_NAMES |= {split: split for split in SPLITS[:3]}


class Video(NamedTuple):
    """What a data set says about one video."""

    file: str  # its path in the source
    label: int | None  # 1 for a fake; None if nothing says
    name: str = ""  # what it is called here, without suffix; "": by its path
    original: str = ""  # the name of the video that a fake was made from, if known
    method: str = ""  # how a fake was made
    split: str = ""  # the official one, of SPLITS
    people: tuple[str, ...] = ()  # the one who is seen, and others who link it to other videos


def adopt(
    layout: str, source: Path, out: Path, compression: str = "", splits: Sequence[str] = ()
) -> pd.DataFrame:
    """Lay out a data set like DFDC's: links to its videos, and a metadata.json for each part.

    layout: of LAYOUTS. compression: of FaceForensics++ and DFD, if there are several. splits: take
    only these official ones. Returns a row per video, including those that are listed but not
    here: `Video`'s columns, path, here, and part (-1 if it is left out).

    Raises ValueError if nothing is found, if labels contradict each other, or if `out` holds
    anything but an earlier adoption, which is replaced.
    """
    source, out = Path(os.path.abspath(source)), Path(os.path.abspath(out))
    if not source.is_dir():
        raise FileNotFoundError(f"no such folder: {source}")
    if out == source or source in out.parents:
        raise ValueError(f"{out} is inside the data set, which is only read: choose another folder")
    if out.exists() and not is_adoption(out) and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} holds something else: remove it, or name a new folder")
    found = list(LAYOUTS[layout](source, compression))
    known = sorted({video.split for video in found} - {""})
    if wrong := set(splits) - set(known):
        told = ", ".join(known) or "none"
        raise ValueError(f"no split {', '.join(sorted(wrong))} in {source}; there are: {told}")
    paths = [keep_inside(source, video.file) for video in found]
    table = pd.DataFrame(name_uniquely(found), columns=Video._fields)
    table = table.assign(path=paths, here=list(map(os.path.exists, paths)))
    table = table[table.split.isin(splits or SPLITS)].reset_index(drop=True)
    taken = table.here & table.label.notna()
    if not taken.any():
        raise ValueError(f"{source} holds no video of the layout {layout}; {len(table)} are listed")
    table["part"] = -1
    table.loc[taken, "part"] = assign_parts(table[taken])
    files = {name: name + path.suffix for name, path in zip(table.name, table.path, strict=True)}
    with appear_whole(out) as folder:
        folder.mkdir()
        for part, videos in table[taken].groupby("part"):
            link_part(folder / f"dfdc_train_part_{part}", videos, files)
        write_json(folder / SIGN, {"layout": layout, "source": str(source)})
    return table


def is_adoption(folder: Path) -> bool:
    """Does this folder hold an earlier adoption and nothing else?"""
    files = [path for path in folder.rglob("*") if not path.is_dir() and not path.is_symlink()]
    return {path.name for path in files} == {SIGN, "metadata.json"}


def keep_inside(source: Path, file: str) -> Path:
    """The path of a file in the source. Raises MetadataError if a list leads elsewhere."""
    path = Path(os.path.normpath(source / file))
    if source not in path.parents:
        raise MetadataError(f"{source} lists {show(file)}, which lies outside it")
    return path


def name_uniquely(videos: Sequence[Video]) -> list[Video]:
    """Give each video a name that a disk takes and no other has: its own, or one by its path."""
    taken: set[str] = set()
    named = []
    for video in videos:
        wanted = printable(video.name or "__".join(Path(video.file).with_suffix("").parts))
        stem = "".join(c if c.isprintable() and c not in "./\\" else "_" for c in wanted)
        if stem in taken or len(stem.encode()) > 120:
            stem = f"{stem[:30]}_{hashlib.sha256(os.fsencode(video.file)).hexdigest()[:16]}"
        taken.add(stem)
        named.append(video._replace(name=stem))
    return named


def assign_parts(videos: pd.DataFrame) -> np.ndarray:
    """The part of each video. An original and its fakes are never separated.

    One part per official split, in the order of FOLDS; a family that spans several goes to the one
    that is learned from least. With only one split, families take turns over N_PARTS, and people
    known to be in several videos stay together too (Celeb-DF's official split separates them; in
    Celeb-DF and DFD only the person whose video it was counts, not the face's donor).
    """
    official = videos.split.nunique() > 1
    joined = [
        [v.name, v.original or v.name, *(() if official else v.people)] for v in videos.itertuples()
    ]
    n, names = len(videos), pd.Series(joined).explode()
    nodes = n + pd.factorize(names)[0]  # a video is joined to each of its names
    size = max(nodes) + 1
    graph = coo_array((np.ones(len(nodes)), (names.index, nodes)), shape=(size, size))
    families = connected_components(graph, directed=False)[1][:n]
    if not official:
        return pd.factorize(families)[0] % N_PARTS
    splits = videos.split.map(SPLITS.index).groupby(families).transform("min")
    return splits.map(lambda i: FOLDS.index(SPLITS[i])).rank(method="dense").to_numpy(int) - 1


def link_part(folder: Path, videos: pd.DataFrame, files: dict[str, str]) -> None:
    """Write a part: a link to each video, and metadata.json. files: of all videos, by name."""
    folder.mkdir()
    entries = {}
    for video in videos.itertuples():
        (folder / files[video.name]).symlink_to(video.path)
        original = files.get(video.original, f"{video.original}.mp4")
        entries[files[video.name]] = {
            "label": "FAKE" if video.label else "REAL",
            "original": original if video.original else None,
            "method": video.method,
            "split": video.split,
            "person": video.people[0] if video.people else "",
            "source": str(video.path),
        }
    write_json(folder / "metadata.json", entries)


def describe_adoption(table: pd.DataFrame) -> str:
    """What was adopted, what is missing, and which part is which, in words."""
    taken = table[table.part >= 0]
    kinds = table.label.map({0: "real", 1: "fake"}).fillna("label unknown")
    kinds = kinds.where(table.method == "", table.method)
    groups = table.assign(kind=kinds).groupby(["split", "kind"], sort=False).here
    counts = groups.agg(here="sum", missing=lambda here: (~here).sum()).reset_index()
    lines = [counts.to_string(index=False)]
    if len(untold := table.file[table.label.isna()]):
        lines.append(f"{len(untold)} are left out: their folders give no label, or two, e.g.")
        lines[-1] += f" {untold.iloc[0]}"
    named = taken[taken.original != ""]
    if lost := (~named.original.isin(taken.name)).sum():
        lines.append(f"{lost} fakes lack their original, which `dfdc preprocess` needs to cut them")
    if taken.label.nunique() == 1:
        lines.append("everything found has one label: is this the right layout?")
    if taken.part.nunique() == 1:
        lines.append("all of it is one family of videos: nothing can be held out")
    for split, parts in taken.groupby("split").part.unique().items():
        numbers = ", ".join(map(str, sorted(parts)))
        lines.append(f"{split or 'no official split'}: part {numbers}")
    return "\n".join(lines)


def choose_compression(source: Path, wanted: str) -> str:
    """The only compression of FaceForensics++ that is here, or the one asked for."""
    found = sorted({path.parent.name for path in source.glob("*_sequences/*/*/videos")})
    if (wanted or len(found) != 1) and wanted not in found:
        here = ", ".join(found) or "none (original_sequences/youtube/c23/videos, …)"
        raise ValueError(f"choose a --compression; in {source} there are {here}")
    return wanted or found[0]


def list_videos(folder: Path) -> dict[str, Path]:
    """The videos in a folder, by name without suffix."""
    return {p.stem: p for p in sorted(folder.glob("*")) if VIDEO_NAME.fullmatch(p.name)}


def list_sequences(source: Path, kind: str, compression: str) -> dict[str, dict[str, Path]]:
    """FaceForensics++'s folders <kind>_sequences: name → its videos, by name."""
    folders = sorted((source / f"{kind}_sequences").glob(f"*/{compression}/videos"))
    return {folder.parts[-3]: list_videos(folder) for folder in folders}


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """One of FaceForensics++'s lists: pairs of videos. Raises MetadataError."""
    pairs = read_json(path)
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        names = pair if isinstance(pair, list) and len(pair) == 2 else [None]
        if not all(isinstance(name, str) and re.fullmatch(r"\w+", name) for name in names):
            raise MetadataError(f"{path} must be a list of pairs of names, got {show(pair)}")
    return [(a, b) for a, b in pairs]


def read_ffpp(source: Path, compression: str) -> Iterator[Video]:
    """FaceForensics++: NNN.mp4, and under each method 071_054.mp4 for 054's face in 071."""
    compression = choose_compression(source, compression)
    splits: dict[str, str] = {}
    pairs: set[str] = set()
    for split in SPLITS[:3]:
        for path in [*source.glob(f"{split}.json"), *source.glob(f"splits/{split}.json")][:1]:
            for a, b in read_pairs(path):
                splits |= {a: split, b: split}
                pairs |= {f"{a}_{b}", f"{b}_{a}"}
    videos = list_sequences(source, "original", compression).get("youtube", {})
    folder = source / f"original_sequences/youtube/{compression}/videos"
    for stem in sorted({*videos, *splits}):
        file = str(videos.get(stem, folder / f"{stem}.mp4").relative_to(source))
        yield Video(file, 0, stem, split=splits.get(stem, ""), people=(stem,))
    for method, videos in list_sequences(source, "manipulated", compression).items():
        if method == "DeepFakeDetection":  # Google's DFD, which lies in the same folders
            continue
        folder = source / f"manipulated_sequences/{method}/{compression}/videos"
        for stem in sorted({*videos, *pairs}):
            file = str(videos.get(stem, folder / f"{stem}.mp4").relative_to(source))
            both = tuple(stem.split("_"))
            about = (f"{method}__{stem}", both[0], method, splits.get(both[0], ""), both)
            yield Video(file, 1, *about)


def read_dfd(source: Path, compression: str) -> Iterator[Video]:
    """Google's DFD: 01__scene.mp4, and 01_02__scene__HASH.mp4 for actor 02's face in it."""
    compression = choose_compression(source, compression)
    videos = list_sequences(source, "original", compression).get("actors", {})
    for stem, path in videos.items():
        person = stem.partition("_")[0]
        yield Video(str(path.relative_to(source)), 0, stem, split="test", people=(person,))
    videos = list_sequences(source, "manipulated", compression).get("DeepFakeDetection", {})
    for stem, path in videos.items():
        found = re.fullmatch(r"(\d+)_\d+(__.+)__\w+", stem)
        original, people = (found[1] + found[2], (found[1],)) if found else ("", ())
        about = (stem, original, "DeepFakeDetection", "test", people)
        yield Video(str(path.relative_to(source)), 1, *about)


def read_celebdf(source: Path, compression: str) -> Iterator[Video]:
    """Celeb-DF: id0_0000.mp4, and id0_id1_0000.mp4 for id1's face in it. In its list 1 is real."""
    listed = {}
    for path in source.glob("List_of_testing_videos.txt"):
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        listed = {
            file: told for told, _, file in (line.partition(" ") for line in text.split("\n"))
        }
        listed = {file.strip(): told for file, told in listed.items() if file.strip()}
    folders = {"Celeb-real": 0, "YouTube-real": 0, "Celeb-synthesis": 1}
    here = {
        f"{name}/{path.name}" for name in folders for path in list_videos(source / name).values()
    }
    for file in sorted(here | set(listed)):
        folder, _, name = file.rpartition("/")
        label, stem = folders.get(folder), Path(name).stem
        if label is None or listed.get(file, str(1 - label)) != str(1 - label):
            raise MetadataError(f"{source}: its list gives {show(file)} the label {listed[file]!r}")
        split = "test" if file in listed else "train" if listed else ""
        person, take = stem.split("_")[0], stem.split("_")[-1]
        people = () if folder == "YouTube-real" else (person,)
        told = (f"{person}_{take}", folder) if label else ("", "")
        yield Video(file, label, stem, *told, split, people)


def read_dfdcp(source: Path, compression: str) -> Iterator[Video]:
    """DFDC's preview: dataset.json names each file with label and set; originals are not named."""
    entries = read_json(source / "dataset.json")
    for file, entry in entries.items() if isinstance(entries, dict) else [("", entries)]:
        entry = entry if isinstance(entry, dict) else {"label": entry}
        told, split = entry.get("label"), entry.get("set")
        if told not in ("real", "fake") or split not in SPLITS:
            raise MetadataError(f"{source / 'dataset.json'}: {show(file)} has {show(entry)}")
        people = tuple(str(entry[key]) for key in ("target_id", "swapped_id") if entry.get(key))
        method = file.split("/")[0] if told == "fake" else ""
        yield Video(file, int(told == "fake"), "", "", method, split, people)


def walk(source: Path) -> Iterator[Path]:
    """The videos below a folder, relative to it, in order; links to folders are followed."""
    for folder, _, names in sorted(os.walk(source, followlinks=True)):
        for name in sorted(filter(VIDEO_NAME.fullmatch, names)):
            yield (Path(folder) / name).relative_to(source)


def read_dfdc_test(source: Path, compression: str) -> Iterator[Video]:
    """DFDC's test set: labels.csv, or metadata.json with is_fake; originals are not named."""
    truth = read_truth(source / "labels.csv" if (source / "labels.csv").exists() else source)
    places = defaultdict(list)
    for path in walk(source):
        places[path.name].append(str(path))
    for file, label in zip(truth.file, truth.label, strict=True):
        named = places[Path(file).name]
        place = named[0] if len(named) == 1 else file  # of several, the one it names
        yield Video(place, label, Path(file).stem, split="test")


def read_folders(source: Path, compression: str) -> Iterator[Video]:
    """Folders real/ and fake/, or their usual names, at any depth; below fake/, methods."""
    for file in walk(source):
        folders = [name.lower() for name in file.parts[:-1]]
        told = {int(name in FAKES) for name in folders if name in REALS | FAKES}
        label = told.pop() if len(told) == 1 else None
        splits = [SPLIT_NAMES[name] for name in folders if name in SPLIT_NAMES]
        below = [i for i, name in enumerate(folders) if name in FAKES] or [len(folders)]
        rest = [n for n in file.parts[below[0] + 1 : -1] if n.lower() not in SPLIT_NAMES]
        split = splits[0] if splits else ""
        yield Video(str(file), label, method="/".join(rest), split=split)


LAYOUTS: dict[str, Callable[[Path, str], Iterator[Video]]] = {
    "ffpp": read_ffpp,
    "dfd": read_dfd,
    "celebdf": read_celebdf,
    "dfdcp": read_dfdcp,
    "dfdc-test": read_dfdc_test,
    "folders": read_folders,
}
