"""Many videos to a submission, each video a task of its own: for `dfdc predict`, which may run for days.

Each verdict is kept on disk as soon as it is there, so that a run that was stopped goes on where it was. A video that
takes its process with it, or never ends, costs a status and nothing else.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dfdc_lib.config import PredictConfig
from dfdc_lib.metrics import log_loss
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint
from dfdc_lib.paths import appear_whole, describe_file, hold, write_csv, write_json
from dfdc_lib.predict import Verdict, choose_procedure, load_models, predict_videos
from dfdc_lib.report import write_page
from dfdc_lib.tasks import TIME_LIMIT, TRIES, Lost, check_time_limit, run_tasks, watched
from dfdc_lib.video import VideoError, printable

# What may have been the disk's fault or the machine's: another run tries again.
PASSING = ("unreadable", "detect_error", "missing_file")
# How videos are named, in a folder: what `video.CONTAINERS` holds.
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".avi", ".divx", ".mkv", ".webm", ".ivf", ".ts", ".mts", ".m2ts",
    ".m2t", ".tod", ".mpg", ".mpeg", ".mpe", ".mpv", ".m1v", ".m2v", ".vob", ".mod", ".flv", ".f4v", ".wmv", ".asf",
    ".ogv", ".ogm", ".mxf", ".rm", ".rmvb", ".dv", ".nut", ".h264", ".264", ".avc", ".h265", ".265", ".hevc",
)  # fmt: skip
STATUS, PREDICTIONS = "status.csv", "predictions.parquet"  # what lies beside a submission
STATUS_COLUMNS = ["filename", "status", "n_frames", "n_faces", "n_people", "reason"]


@dataclass(frozen=True)
class Judges:
    """What a worker needs to make the same verdict as any other."""

    checkpoints: tuple[Path, ...]
    config: PredictConfig
    backend: str = "auto"  # of the scores' arithmetic, as is precision: see inference.make_scorer
    precision: str = "auto"

    def check(self, keep: bool) -> set[str]:
        """Load each checkpoint, so that a wrong one shows at once. Returns what they were trained on.

        keep: this process will need them all again; else they are loaded one by one and dropped.
        """
        models = _models(self).values() if keep else map(load_checkpoint, self.checkpoints)
        cards = [model.card for model in models]
        if not self.config.procedure:
            choose_procedure(cards)
        return {card.trained_on for card in cards}

    def fingerprint(self) -> str:
        """What verdicts depend on besides the video: settings, checkpoints (by size and time of change), libraries."""
        files = [[str(path.absolute()), describe_file(path)] for path in self.checkpoints]
        libraries = {name: importlib.metadata.version(name) for name in ("dfdc-lib", "torch", "facenet-pytorch")}
        libraries |= {"openvino": bool(find_spec("openvino"))}
        return json.dumps([asdict(replace(self, checkpoints=())), files, libraries], sort_keys=True)


def _models(judges: Judges) -> dict[str, DeepfakeClassifier]:
    """The loaded models, once a process for as long as they and their files stay the same."""
    files = repr([describe_file(path) for path in judges.checkpoints])
    return _load(files, judges.checkpoints, judges.backend, judges.precision)


@lru_cache(maxsize=1)
def _load(files: str, checkpoints: tuple[Path, ...], backend: str, precision: str):
    return load_models(checkpoints, backend=backend, precision=precision)


@dataclass(frozen=True)
class Judging:
    """One video to be judged: the unit of work."""

    video: Path
    judges: Judges
    kept: Path  # the file that keeps the verdict
    page: Path | None = None  # where to write a page about the video
    run_id: str = ""  # "": in the caller's process, unguarded
    time_limit: float = TIME_LIMIT

    def run(self) -> tuple[Verdict, str]:
        """The verdict, and a line that tells of the page, "" where none was asked for."""
        verdict = _read_kept(self.kept, self.video)
        if verdict is None:
            try:
                with self._watch(".try"):
                    verdict = self._judge()
            except Lost as lost:
                return self._without_score(lost.status, lost.reason), ""
            except (MemoryError, torch.OutOfMemoryError) as error:
                return self._without_score("out_of_memory", f"memory does not hold it ({type(error).__name__})"), ""
            if verdict.p_fake is not None or verdict.status not in PASSING:
                write_json(self.kept, _pack(verdict))
                verdict = _read_kept(self.kept, self.video) or verdict  # what is read later is what is told now
        return verdict, self._write_page(verdict) if self.page else ""

    def _judge(self) -> Verdict:
        return next(predict_videos([self.video], _models(self.judges), self.judges.config))

    def _watch(self, suffix: str) -> AbstractContextManager:
        marker = self.kept.with_suffix(suffix)
        return watched(marker, self.run_id, self.time_limit) if self.run_id else nullcontext()

    def _without_score(self, status: str, reason: str) -> Verdict:
        return Verdict(self.video, status, reason=reason, strategy=self.judges.config.strategy)

    def _write_page(self, verdict: Verdict) -> str:
        try:
            with self._watch(".page"):
                return f"page: {write_page(verdict, _models(self.judges), self.page)}"
        except (OSError, ValueError, RuntimeError, MemoryError, VideoError, Lost) as error:
            return f"no page about {self.video}: {error}"


def judge_videos(
    videos: Sequence[Path], judges: Judges, out: Path | None = None, pages: dict[Path, Path] | None = None,
    workers: int = 0, scheduler: str = "", time_limit: float = TIME_LIMIT,
) -> Iterator[tuple[Verdict, str]]:  # fmt: skip
    """Yield (verdict, what there is to say of its page) for each video, as they are done, in any order.

    out: the submission that they are for: the verdicts are kept beside it, and the same call goes on from there, until
    `forget_kept`. pages: where to write a page, a video. workers, scheduler, time_limit: as in `preprocess`; with
    several workers each holds the models. Raises ValueError for a wrong setting, or where another run writes `out`.
    """
    check_time_limit(time_limit)
    if scheduler and not out:
        raise ValueError("--scheduler needs --out: what the workers judge is kept beside it, on a disk that all see")
    run_id = uuid.uuid4().hex if workers or scheduler else ""
    judges = replace(judges, checkpoints=tuple(path.absolute() for path in judges.checkpoints))
    made_by, pages = judges.fingerprint(), pages or {}
    with _keep_beside(out) as folder:
        given = {
            Judging(
                video.absolute(), judges, folder / f"{_identify(video, made_by)}.json",
                pages[video].absolute() if video in pages else None, run_id, time_limit,
            ): video
            for video in videos
        }  # fmt: skip
        for task, (verdict, told) in run_tasks(Judging.run, list(given), workers, scheduler, lives=2 * TRIES + 1):
            yield replace(verdict, video=given[task]), told


def _kept_folder(out: Path) -> Path:
    return Path(out).absolute().with_name(f".{Path(out).name}.verdicts")


@contextmanager
def _keep_beside(out: Path | None) -> Iterator[Path]:
    """A folder for verdicts: beside `out`; without one a temporary folder."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="dfdc_") as folder:
            yield Path(folder)
        return
    folder = _kept_folder(out)
    with hold(folder):
        for old in (*folder.glob("*.try"), *folder.glob("*.page")):
            old.unlink()
        yield folder


def forget_kept(out: Path) -> None:
    """Remove the verdicts that were kept for a submission: it is written."""
    with hold(_kept_folder(out)):
        shutil.rmtree(_kept_folder(out))


def _identify(video: Path, made_by: str) -> str:
    """A word for a video file as it is now and those who judge it: by name, size and time of change."""
    about = repr([str(video.absolute()), describe_file(video), made_by])
    return hashlib.sha256(about.encode(errors="surrogateescape")).hexdigest()[:32]


def _pack(verdict: Verdict) -> dict:
    names = ("status", "p_fake", "n_frames", "reason", "strategy", "procedure")
    plain = {name: getattr(verdict, name) for name in names}
    return plain | {"faces": verdict.faces.to_dict("list")}


def _unpack(video: Path, stored: dict) -> Verdict:
    return Verdict(video, **(stored | {"faces": pd.DataFrame(stored["faces"])}))


def _read_kept(path: Path, video: Path) -> Verdict | None:
    """A verdict that was kept. None where there is none, or where it is damaged: power failed while it was written."""
    try:
        return _unpack(video, json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def find_videos(inputs: Iterable[Path | str]) -> tuple[list[Path], list[Path]]:
    """Expand folders to the videos in them (by name, at any depth, sorted), and list the files that are passed over.

    Links that lead nowhere are videos too; what macOS keeps about a file (`._x.mp4`) is none. Raises FileNotFoundError
    for a name that is not there, and for a folder without videos.
    """
    videos, passed_over = [], []
    for given in map(Path, inputs):
        if not given.exists() and not given.is_symlink():
            raise FileNotFoundError(f"no such file or folder: {given}")
        files = sorted(path for path in given.rglob("*") if not path.is_dir()) if given.is_dir() else []
        named = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("._")]
        if given.is_dir() and not named:
            raise FileNotFoundError(f"no video ({', '.join(VIDEO_SUFFIXES)}) in {given}")
        videos += named or [given]
        passed_over += sorted(set(files) - set(named))
    unique = {video.absolute(): video for video in reversed(videos)}
    return list(unique.values())[::-1], passed_over  # each once, as first named


def name_videos(paths: Sequence[Path]) -> dict[Path, str]:
    """What the results call each video: its file name; the whole path where two have the same file name."""
    counts = pd.Series([path.name for path in paths], dtype=object).value_counts()
    return {path: printable(path.name if counts[path.name] == 1 else path) for path in paths}


def check_results(out: Path, labels: Path | None = None) -> None:
    """Raise ValueError where the results would take the place of other files: of the labels, or of other results."""
    out = Path(out)
    if labels is not None and out.resolve() == Path(labels).resolve():
        raise ValueError(f"{out} holds the labels: name the submission otherwise")
    if out.name in (STATUS, PREDICTIONS):
        raise ValueError(f"{out.name} is the name of another result: name the submission otherwise")
    for path, begins in ((out, "filename,label"), (out.parent / STATUS, ",".join(STATUS_COLUMNS[:2]))):
        if path.exists() and not path.read_text(errors="replace").startswith(begins):
            raise ValueError(f"{path} is there and is not a result of `dfdc predict`: choose another folder for --out")
    companions = [out.parent / name for name in (STATUS, PREDICTIONS)]
    if any(path.exists() for path in companions) and not out.exists():
        raise ValueError(f"{out.parent} holds the results of another submission: choose another folder for --out")


def write_verdicts(
    verdicts: Sequence[Verdict], out: Path, fallback: float | None = None, names: dict[Path, str] | None = None
) -> None:
    """Write the submission `out`: filename, label. Videos without a score are left out, or get `fallback` if given.

    Beside it go status.csv (all videos) and predictions.parquet (one row a face and checkpoint). names: of all videos
    of the run (see `name_videos`), where these are only the first of them.
    """
    out = Path(out)
    names = names or name_videos([v.video for v in verdicts])
    scored = [(names[v.video], fallback if v.p_fake is None else v.p_fake) for v in verdicts]
    submission = pd.DataFrame([s for s in scored if s[1] is not None], columns=["filename", "label"])
    rows = [(names[v.video], v.status, v.n_frames, v.n_faces, v.faces.face_idx.nunique(), v.reason) for v in verdicts]
    faces = pd.concat(
        [v.faces.assign(video=names[v.video]) for v in verdicts if len(v.faces)] or [Verdict("", "").faces]
    )
    write_csv(out, submission)
    write_csv(out.parent / STATUS, pd.DataFrame(rows, columns=STATUS_COLUMNS))
    with appear_whole(out.parent / PREDICTIONS) as temporary:
        faces.reset_index(drop=True).to_parquet(temporary, index=False)


def match_labels(videos: Sequence[Path], labels: dict[str, int]) -> list[int]:
    """The label of each video. labels: file name, or the end of a path where names repeat, → 1 for a fake.

    The longest end that fits counts. Raises ValueError where a video has no label, or two have the same one.
    """
    named = defaultdict(list)
    for name in labels:
        named[Path(name).name].append(name)
    matched = {}
    for video in videos:
        whole = os.path.abspath(video)
        fitting = [n for n in named[video.name] if f"{os.sep}{whole}".endswith(f"{os.sep}{Path(n)}")]
        fitting += [name for name in named[video.name] if os.path.abspath(name) == whole]
        if fitting:
            matched[video] = max(fitting, key=lambda name: len(Path(name).parts))
    if unknown := [video for video in videos if video not in matched]:
        raise ValueError(f"no label for {unknown[0]}" + f" and {len(unknown) - 1} more" * (len(unknown) > 1))
    repeated = [name for name, count in Counter(matched.values()).items() if count > 1]
    if repeated:
        several = " and ".join(printable(video) for video in videos if matched[video] == repeated[0])
        raise ValueError(f"{several} have one label, {repeated[0]}: write more of their paths in the labels")
    return [labels[matched[video]] for video in videos]


def judge_verdicts(verdicts: Sequence[Verdict], labels: dict[str, int], fallback: float = 0.5) -> dict[str, float]:
    """How good the verdicts are, where the truth is known: coverage, log loss of the scored, log loss of all.

    labels, and what is raised: as in `match_labels`. For the log loss of all, videos without a score count as
    `fallback`.
    """
    truth = np.array(match_labels([v.video for v in verdicts], labels))
    scores = np.array([np.nan if v.p_fake is None else v.p_fake for v in verdicts], float)
    known = ~np.isnan(scores)
    of_scored = log_loss(truth[known], scores[known]) if known.any() else float("nan")
    everything = log_loss(truth, np.where(known, scores, fallback))
    return {"coverage": float(known.mean()), "log_loss_scored": of_scored, "log_loss_all": everything}
