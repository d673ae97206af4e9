"""Is a work folder all there, whole and made alike? What is missing, stale, orphaned or damaged, and the mend."""

import json
import os
import platform
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from dfdc_lib.config import THRESHOLDS, PreprocessConfig
from dfdc_lib.dataset import read_folds
from dfdc_lib.doctor import Finding
from dfdc_lib.metadata import MetadataError, read_metadata
from dfdc_lib.model import read_weights
from dfdc_lib.paths import DamagedFile, WorkFolder, describe_file, face_file, is_running, parse_face_file, read_png
from dfdc_lib.preprocess import FOLD_COLUMNS, parse_manifest

PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB\x60\x82"
DECODED = 256  # pictures of a work folder, drawn by chance, always the same ones


@dataclass(frozen=True)
class Entry:
    """What a manifest says of one stage."""

    count: int
    settings: dict
    inputs: list


@dataclass
class Stock:
    """What lies in a work folder, each folder listed and each record read once."""

    work: WorkFolder
    config: PreprocessConfig | None = None  # the settings that count; None where nothing tells them
    n_originals: int = 0  # of how many originals the last run was; 0: of all
    manifests: dict[str, dict[str, Entry]] = field(default_factory=dict)
    boxes: dict[str, frozenset[str]] = field(default_factory=dict)  # of an original: the names of its faces' crops
    crops: dict[str, tuple[str, ...]] = field(default_factory=dict)
    masks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    folds: pd.DataFrame | None = None
    original_of: dict[str, str] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)  # files and folders of names that no stage gives
    leftovers: list[str] = field(default_factory=list)
    damaged: dict[str, list[str]] = field(default_factory=dict)  # by kind of record

    def pictures(self) -> Iterator[str]:
        """The path of each crop and mask."""
        for kind, folders in (("crops", self.crops), ("masks", self.masks)):
            for video_id, names in folders.items():
                folder = os.path.join(self.work.root, kind, video_id, "")
                yield from (folder + name for name in names)


class Fault(NamedTuple):
    """Things of one kind that are wrong in a work folder, and the mend."""

    kind: str
    what: str
    names: list[str]
    mend: str


def check_work(work: WorkFolder, data: Path | None = None, show: int = 3) -> list[Finding]:
    """Is all there that the manifests claim, whole, made alike, and is there nothing else? Changes nothing.

    data: the videos' folder; with it, what belongs to no video of it and what was made from other files is found too.
    One that can't be read is as none: `doctor.check_data` says what is wrong with it.
    show: how many names a finding gives. Every picture's beginning and end are read, and a few pictures decoded.
    While a run is at work in the folder, what it is just making shows as a fault.
    """
    if not work.root.is_dir():
        return [Finding("work", False, f"no such folder: {work.root}", "`dfdc preprocess DATA --work WORK` makes it")]
    stock = take_stock(work)
    table = _read_table(data) if data else None
    if table is not None:
        stock.original_of = dict(zip(table.video_id, table.original_id, strict=True))
    again = tell_command(stock, data)
    faults = [
        *find_missing(stock, again), *find_stale(stock, again, table, data), *find_orphaned(stock, again, table),
        *compare_folds(stock, again, table), *find_damaged(stock, again), *check_runs(work),
    ]  # fmt: skip
    n_crops, n_masks = (sum(map(len, folders.values())) for folders in (stock.crops, stock.masks))
    counts = f"{len(stock.manifests)} videos, {n_crops} crops, {n_masks} masks"
    findings = [Finding(f"work folder {work.root}", True, counts)]
    whole = f"every picture begins and ends as a PNG, {min(DECODED, n_crops + n_masks)} of them decode"
    for kind in ("missing", "stale", "orphaned", "damaged"):
        found = [tell_fault(fault, show) for fault in faults if fault.kind == kind and fault.names]
        findings += found or [Finding(kind, True, f"nothing: {whole}" if kind == "damaged" else "nothing")]
    return findings


def _read_table(data: Path) -> pd.DataFrame | None:
    try:
        return read_metadata(data)
    except (FileNotFoundError, MetadataError):
        return None


def tell_fault(fault: Fault, show: int) -> Finding:
    """How many, the first few by name, and the mend."""
    few = ", ".join(fault.names[:show]) + (", …" if len(fault.names) > show else "")
    return Finding(f"{fault.kind} {fault.what}", False, f"{len(fault.names)}: {few}", fault.mend)


def take_stock(work: WorkFolder) -> Stock:
    """List and read all of a work folder but its pictures."""
    stock, shared = Stock(work), {}
    for video_id, path in _list_json(stock, "manifest"):
        try:
            stages = parse_manifest(_read_text(path))
        except ValueError:
            stock.damaged.setdefault("manifests", []).append(f"manifest/{video_id}.json")
            continue
        stock.manifests[video_id] = {stage: _keep_entry(entry, shared) for stage, entry in stages.items()}
    for original_id, _ in _list_json(stock, "boxes"):
        try:
            names = frozenset(work.read_faces(original_id))
            stock.boxes[original_id] = shared.setdefault(names, names)
        except DamagedFile:
            stock.damaged.setdefault("boxes", []).append(f"boxes/{original_id}.json")
    stock.crops, stock.masks = _list_pictures(stock, "crops", shared), _list_pictures(stock, "masks", shared)
    for folder in [work.root, *(entry.path for entry in _scan(work.root / "runs") if entry.is_dir())]:
        left = [entry.path for entry in _scan(folder) if _is_leftover(entry.name) or _is_left_lock(entry)]
        stock.leftovers += [os.path.relpath(path, work.root) for path in left]
    stock.config, stock.folds = _read_config(stock), _read_folds(stock)
    return stock


def _scan(folder: Path) -> list[os.DirEntry]:
    """What lies in a folder, by name; nothing where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _keep_entry(entry: dict, shared: dict) -> Entry:
    """What is needed of a manifest's entry. The settings of a hundred thousand videos are one object."""
    settings = shared.setdefault(repr(entry["settings"]), entry["settings"])
    return Entry(entry["count"], settings, entry["inputs"])


def _is_leftover(name: str) -> bool:
    """Is this what a process left half written? What a living one of this machine is writing is none."""
    if not (name.startswith(".") and name.endswith(".part")):
        return False
    _, _, pid = name.removesuffix(".part").rpartition(f".{platform.node()}-")
    return not (pid.isdecimal() and f".{platform.node()}-" in name and is_running(int(pid)))


def _is_left_lock(entry: os.DirEntry) -> bool:
    """Is this the lock of a run that is not at work, or on another machine? See `paths.hold`."""
    if entry.name != ".running":
        return False
    host, _, pid = _read_text(entry.path).rpartition("-")
    return not (host == platform.node() and pid.isdecimal() and is_running(int(pid)))


def _sort_out(stock: Stock, entry: os.DirEntry, kind: str, expected: bool) -> bool:
    """Is this an artifact? What is none is noted; other hidden files (a file browser's) are nobody's business."""
    if entry.name.startswith("."):
        stock.leftovers += [f"{kind}/{entry.name}"] * _is_leftover(entry.name)
        return False
    stock.strays += [f"{kind}/{entry.name}"] * (not expected)
    return expected


def _list_json(stock: Stock, kind: str) -> Iterator[tuple[str, str]]:
    for entry in _scan(stock.work.root / kind):
        if _sort_out(stock, entry, kind, entry.name.endswith(".json")):
            yield entry.name.removesuffix(".json"), entry.path


def _list_pictures(stock: Stock, kind: str, shared: dict) -> dict[str, tuple[str, ...]]:
    """The pictures of each video. Those of a family have the same names: they share one tuple."""
    found = {}
    for folder in _scan(stock.work.root / kind):
        if not _sort_out(stock, folder, kind, folder.is_dir()):
            continue
        names = tuple(sorted(os.listdir(folder.path)))
        if names not in shared:
            others = {name for name in names if not _is_face_file(name)}
            stock.strays += [f"{kind}/{folder.name}/{name}" for name in sorted(others) if not name.startswith(".")]
            names = tuple(shared.setdefault(name, name) for name in names if name not in others)
        found[folder.name] = shared.setdefault(names, names)
    return found


def _is_face_file(name: str) -> bool:
    try:
        parse_face_file(name)
    except DamagedFile:
        return False
    return True


def _read_config(stock: Stock) -> PreprocessConfig | None:
    """The settings of source.json; without it, those of most crops, or of most boxes."""
    try:
        source = stock.work.read_source()
        stock.n_originals = source.get("originals", 0)
        return PreprocessConfig.from_source(source)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        stock.damaged["records"] = ["source.json"]
    told = [stages.get("crop") or stages.get("detect") for stages in stock.manifests.values()]
    texts = Counter(json.dumps(entry.settings) for entry in told if entry and entry.settings)
    return PreprocessConfig.from_source({"settings": json.loads(texts.most_common(1)[0][0])}) if texts else None


def _read_folds(stock: Stock) -> pd.DataFrame | None:
    """folds.csv, where it is there and whole."""
    try:
        folds = read_folds(stock.work)
    except FileNotFoundError:
        return None
    except DamagedFile:
        folds = pd.DataFrame()
    if not set(FOLD_COLUMNS) <= set(folds):
        stock.damaged.setdefault("records", []).append("folds.csv")
        return None
    videos = folds.drop_duplicates("video_id")
    stock.original_of = dict(zip(videos.video_id, videos.original_id, strict=True))
    return folds


def tell_command(stock: Stock, data: Path | None) -> str:
    """The command that makes what is missing or stale again, with the settings that count."""
    words = ["dfdc", "preprocess", shlex.quote(str(data)) if data else "DATA"]
    words += ["--work", shlex.quote(str(stock.work.root))]
    config = stock.config or PreprocessConfig()
    words += ["--every", str(config.every)] if config.every != PreprocessConfig.every else []
    words += ["--margin", str(config.margin)] if config.margin != PreprocessConfig.margin else []
    for name, thresholds in THRESHOLDS.items():
        if config.thresholds == thresholds != PreprocessConfig.thresholds:
            words += ["--thresholds", name]
    words += ["--folds", str(config.folds)] if config.folds != PreprocessConfig.folds else []
    words += ["--originals", str(stock.n_originals)] if stock.n_originals else []
    return f"`{' '.join(words)}`"


ARTIFACT = {"detect": "boxes/{}.json", "crop": "crops/{}", "masks": "masks/{}"}  # stage → what it makes of a video


def _entries(stock: Stock) -> Iterator[tuple[str, str, Entry]]:
    for video_id, stages in stock.manifests.items():
        for stage, entry in stages.items():
            yield video_id, stage, entry


def find_missing(stock: Stock, again: str) -> Iterator[Fault]:
    """What manifests count and is not there; the two files that training reads."""
    there = {"detect": stock.boxes, "crop": stock.crops, "masks": stock.masks}
    broken = {Path(name).stem for name in stock.damaged.get("boxes", [])}
    names = []
    for video_id, stage, entry in _entries(stock):
        count = len(there[stage].get(video_id, ()))
        if count < entry.count and not (stage == "detect" and video_id in broken):
            names.append(f"{ARTIFACT[stage].format(video_id)} ({count} of {entry.count})")
    mend = f"run {again} again: it makes what is missing again, from the videos"
    yield Fault("missing", "boxes, crops or masks", names, mend)
    if any(stock.crops.values()):
        files = [path.name for path in (stock.work.source, stock.work.folds) if not path.exists()]
        yield Fault("missing", "records", files, f"run {again} again: it writes them")


def find_stale(stock: Stock, again: str, table: pd.DataFrame | None, data: Path | None) -> Iterator[Fault]:
    """What was made with other settings than source.json's, or from files that have changed since."""
    mend = f"run {again} again: it makes what is stale again; other settings of yours belong into the command"
    if stock.config:
        wanted = {stage: stock.config.of_stage(stage) for stage in ARTIFACT}
        names = [
            ARTIFACT[stage].format(video_id)
            for video_id, stage, entry in _entries(stock)
            if entry.settings and entry.settings != wanted[stage]
        ]
        yield Fault("stale", "settings, other than source.json's or most others'", names, mend)
    if table is not None:
        yield Fault("stale", "videos, changed since they were read", _find_changed(stock, table, data), mend)


def _find_changed(stock: Stock, table: pd.DataFrame, data: Path) -> list[str]:
    """The artifacts whose videos have another size or time than then; one that is gone changes nothing."""
    now = {}
    for video_id, file in zip(table.video_id, table.file, strict=True):
        if found := describe_file(os.path.join(data, file)):
            now[video_id] = found
    names = []
    for video_id, stage, entry in _entries(stock):
        read = [video_id] if stage == "detect" else [stock.original_of.get(video_id), video_id]
        if entry.inputs and any(now.get(v, then) != then for v, then in zip(read, entry.inputs, strict=True)):
            names.append(ARTIFACT[stage].format(video_id))
    return names


def find_orphaned(stock: Stock, again: str, table: pd.DataFrame | None) -> Iterator[Fault]:
    """What no manifest knows of, pictures that fit no entry, what killed processes left, other data sets' videos."""
    broken = {Path(name).stem for name in stock.damaged.get("manifests", [])}
    folders = []
    for stage, found in (("detect", stock.boxes), ("crop", stock.crops), ("masks", stock.masks)):
        known = broken | {video_id for video_id, stages in stock.manifests.items() if stage in stages}
        folders += [ARTIFACT[stage].format(video_id) for video_id in found if video_id not in known]
    mend = f"run {again} again: it makes again what belongs to DATA; what is still named then may be deleted"
    yield Fault("orphaned", "folders and files without an entry in a manifest", folders, mend)
    pictures = [*stock.strays, *_find_extra(stock)]
    yield Fault("orphaned", "files that fit no entry", pictures, f"delete them, then run {again} again")
    mend = "the next `dfdc preprocess` on the machine in the name sweeps them; or delete them when nothing runs there"
    yield Fault("orphaned", "leftovers of killed processes", stock.leftovers, mend)
    if table is not None:
        unlisted = sorted(stock.manifests.keys() - set(table.video_id))
        names = [f"manifest/{video_id}.json" for video_id in unlisted]
        mend = "they may be deleted, with the crops, masks and boxes of that name: nothing reads them"
        yield Fault("orphaned", "videos that the data set does not list", names, mend)


def _find_extra(stock: Stock) -> Iterator[str]:
    """Pictures that have no face in the boxes of their original; folders with more of them than were counted."""
    for kind, stage, folders in (("crops", "crop", stock.crops), ("masks", "masks", stock.masks)):
        for video_id, names in folders.items():
            entry = stock.manifests.get(video_id, {}).get(stage)
            faces = stock.boxes.get(stock.original_of.get(video_id))
            if entry is None:
                continue  # the whole folder is named already
            alien = [name for name in names if name not in faces] if faces is not None else []
            yield from (f"{kind}/{video_id}/{name}" for name in alien)
            if len(names) > entry.count and not alien:
                yield f"{kind}/{video_id} ({len(names)} where {entry.count} were made)"


def compare_folds(stock: Stock, again: str, table: pd.DataFrame | None) -> Iterator[Fault]:
    """Does folds.csv name the crops that are there and current, each once, and split no original from its fakes?"""
    if stock.folds is None:
        return
    ids = list(dict.fromkeys([*stock.crops, *stock.folds.video_id.unique()]))
    listed = stock.manifests if table is None else set(table.video_id)
    current = [video_id for video_id in stock.crops if video_id in listed and _is_current_crop(stock, video_id)]
    number = {video_id: i for i, video_id in enumerate(ids)}
    named = np.sort(_number_crops(stock.folds, ids))
    there, wanted = (_number_pictures(stock.crops, some, number) for some in (stock.crops, current))
    repeated = np.diff(named, prepend=-1) == 0
    once = named[~repeated]
    mend = f"run {again} again: it writes folds.csv again"
    gone, unnamed = _leave_out(once, there), _leave_out(wanted, once)
    others = _leave_out(_leave_out(once, gone), wanted)
    yield Fault("missing", "crops that folds.csv names", _name_crops(gone, ids), mend)
    yield Fault("stale", "folds.csv, which does not name these crops", _name_crops(unnamed, ids), mend)
    yield Fault("stale", "folds.csv, which names crops of other settings", _name_crops(others, ids), mend)
    yield Fault("damaged", "folds.csv, which names crops twice", _name_crops(named[repeated], ids), mend)
    pairs = stock.folds[["original_id", "fold"]].drop_duplicates()
    split = pairs.original_id[pairs.original_id.duplicated()].unique().tolist()
    yield Fault("damaged", "folds.csv, which splits families over folds: a leak", split, mend)


def _is_current_crop(stock: Stock, video_id: str) -> bool:
    entry = stock.manifests.get(video_id, {}).get("crop")
    return bool(entry and entry.count and stock.config and entry.settings == stock.config.of_stage("crop"))


FACES, FRAMES = 2**12, 2**26  # at most so many faces of a frame and frames of a video: a crop is one number


def _leave_out(numbers: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What is in `numbers` and not in `others`; both sorted, without repetition."""
    if np.array_equal(numbers, others):  # the rule, and quick
        return numbers[:0]
    return np.setdiff1d(numbers, others, assume_unique=True)


def _number_crops(folds: pd.DataFrame, ids: list[str]) -> np.ndarray:
    """One int64 a row: video, frame and face."""
    video = pd.Categorical(folds.video_id, categories=ids).codes.astype(np.int64)
    return (video * FRAMES + folds.frame_idx.to_numpy()) * FACES + folds.face_idx.to_numpy()


def _number_pictures(folders: dict[str, tuple[str, ...]], some: Iterable[str], number: dict[str, int]) -> np.ndarray:
    """The same numbers for the pictures of some folders; tuples of names that are shared are parsed once."""
    parsed, parts = {}, [np.empty(0, np.int64)]
    for video_id in some:
        names = folders[video_id]
        if names not in parsed:
            places = np.array([parse_face_file(name) for name in names], np.int64).reshape(-1, 2)
            parsed[names] = places[:, 0] * FACES + places[:, 1]
        parts.append(parsed[names] + number[video_id] * FRAMES * FACES)
    return np.sort(np.concatenate(parts))


def _name_crops(numbers: np.ndarray, ids: list[str]) -> list[str]:
    """Undo the numbering: paths in the work folder."""
    frames, faces = divmod(numbers, FACES)
    videos, frames = divmod(frames, FRAMES)
    return [
        f"crops/{ids[video]}/{face_file(frame, face)}" for video, frame, face in zip(videos, frames, faces, strict=True)
    ]


def find_damaged(stock: Stock, again: str) -> Iterator[Fault]:
    """Records that can't be read, pictures that do not begin and end as PNGs, and those of a few that don't decode."""
    mend = f"delete them, then run {again} again: it makes them again, from the videos"
    for what, names in stock.damaged.items():
        yield Fault("damaged", what, names, mend)
    count = sum(map(len, (*stock.crops.values(), *stock.masks.values())))
    few = set(np.random.default_rng(0).choice(count, min(DECODED, count), replace=False).tolist())
    broken = [
        os.path.relpath(path, stock.work.root)
        for number, path in enumerate(stock.pictures())
        if not has_png_ends(path) or (number in few and not is_whole_png(path))
    ]
    yield Fault("damaged", "pictures", broken, mend)


def has_png_ends(path: str) -> bool:
    """Does a file begin and end as a PNG? Cheap: a write that was cut off shows here."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        os.lseek(file, -len(PNG_END), os.SEEK_END)
        return os.read(file, len(PNG_END)) == PNG_END and os.pread(file, len(PNG_START), 0) == PNG_START
    except OSError:  # shorter than an end
        return False
    finally:
        os.close(file)


def is_whole_png(path: str) -> bool:
    """Does a picture decode, and is every chunk's checksum right? (Decoders forgive much.)"""
    try:
        read_png(path)
        with Image.open(path) as picture:
            picture.verify()
    except (OSError, ValueError, SyntaxError):  # the last is Pillow's word for a wrong checksum
        return False
    return True


def check_runs(work: WorkFolder) -> Iterator[Fault]:
    """The runs whose checkpoints can't be opened or whose table is broken."""
    checkpoints, tables = [], []
    for folder in (Path(entry.path) for entry in _scan(work.root / "runs") if entry.is_dir()):
        n_epochs = 0
        for path in sorted(folder.glob("*.pt")):
            try:
                history = read_weights(path).get("training", {}).get("history", {})
                n_epochs = max(n_epochs, len(history.get("epochs", [])))
            except (ValueError, AttributeError):
                checkpoints.append(f"runs/{folder.name}/{path.name}")
        if n_epochs and not _has_epochs(folder / "metrics.csv", n_epochs):
            tables.append(f"runs/{folder.name}/metrics.csv")
    mend = "delete best.pt or epoch_*.pt where it is one of those; of a last.pt the run's folder: then train it again"
    yield Fault("damaged", "checkpoints", checkpoints, mend)
    mend = "delete the run's folder and train it again; the same numbers are in its last.pt: training, history, epochs"
    yield Fault("damaged", "tables of runs", tables, mend)


def _has_epochs(path: Path, n_epochs: int) -> bool:
    """Has metrics.csv a line for each epoch that last.pt remembers?"""
    try:
        text = path.read_text()
        table = pd.read_csv(path)
    except (OSError, ValueError):
        return False
    whole = {"epoch", "step", "valid_loss"} <= set(table) and text.endswith("\n")
    return whole and table.epoch.tolist()[:n_epochs] == list(range(n_epochs))
