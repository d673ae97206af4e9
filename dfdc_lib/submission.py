"""Many videos to verdicts, each a task of its own: for `dfdc predict`, which may run for days.

Each verdict is kept on disk as soon as it is there, so that a run that was stopped goes on where it was. A video that
takes its process with it, or never ends, costs a status and nothing else.
"""

import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd

from dfdc_lib.config import PredictConfig
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint
from dfdc_lib.paths import hold, write_json
from dfdc_lib.predict import Verdict, load_models, predict_videos
from dfdc_lib.report import write_page
from dfdc_lib.tasks import TIME_LIMIT, TRIES, Lost, run_tasks, watched
from dfdc_lib.video import VideoError


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
        return {model.card.trained_on for model in models}

    def fingerprint(self) -> dict:
        """What verdicts depend on, files by size and time of change. Verdicts of another are made again."""
        files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in self.checkpoints]
        return json.loads(json.dumps(asdict(replace(self, checkpoints=())) | {"checkpoints": files}))


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
        if not self.kept.exists():
            try:
                write_json(self.kept, _pack(self._judge()))
            except Lost as lost:  # not kept: another run tries again
                return Verdict(self.video, lost.status, reason=lost.reason, strategy=self.judges.config.strategy), ""
        verdict = _unpack(self.video, json.loads(self.kept.read_text()))
        return verdict, self._write_page(verdict) if self.page else ""

    def _judge(self) -> Verdict:
        models = _models(self.judges)
        if not self.run_id:
            return next(predict_videos([self.video], models, self.judges.config))
        with watched(self.kept.with_suffix(".try"), self.run_id, self.time_limit):
            return next(predict_videos([self.video], models, self.judges.config))

    def _write_page(self, verdict: Verdict) -> str:
        try:
            return f"page: {write_page(verdict, _models(self.judges), self.page)}"
        except (OSError, ValueError, VideoError) as error:
            return f"no page about {self.video}: {error}"


@cache
def _models(judges: Judges) -> dict[str, DeepfakeClassifier]:
    """The loaded models, once a process."""
    return load_models(judges.checkpoints, backend=judges.backend, precision=judges.precision)


def judge_videos(
    videos: Sequence[Path], judges: Judges, out: Path | None = None, pages: dict[Path, Path] | None = None,
    workers: int = 0, scheduler: str = "", time_limit: float = TIME_LIMIT,
) -> Iterator[tuple[Verdict, str]]:  # fmt: skip
    """Yield (verdict, what there is to say of its page) for each video, as they are done, in any order.

    out: the submission that they are for: until all are done the verdicts are kept beside it, and the same call goes
    on from there. pages: where to write a page, a video. workers, scheduler, time_limit: as in `preprocess`; with
    several workers each holds the models. Raises ValueError for a wrong setting, or where another run writes `out`.
    """
    if scheduler and not out:
        raise ValueError("--scheduler needs --out: what the workers judge is kept beside it, on a disk that all see")
    run_id = uuid.uuid4().hex if workers or scheduler else ""
    with _keep_beside(out, judges) as folder:
        tasks = [
            Judging(v.absolute(), judges, folder / f"{_identify(v)}.json", (pages or {}).get(v), run_id, time_limit)
            for v in videos
        ]
        given = dict(zip(tasks, videos, strict=True))
        for task, (verdict, told) in run_tasks(Judging.run, tasks, workers, scheduler, lives=TRIES + 2):
            yield replace(verdict, video=given[task]), told


@contextmanager
def _keep_beside(out: Path | None, judges: Judges) -> Iterator[Path]:
    """A folder for verdicts: beside `out`, where it stays unless all goes well; without `out` a temporary one."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="dfdc_") as folder:
            yield Path(folder)
        return
    folder = Path(out).absolute().with_name(f".{Path(out).name}.verdicts")
    with hold(folder):
        made_by = folder / "judges"
        if not made_by.exists() or json.loads(made_by.read_text()) != judges.fingerprint():
            for old in folder.glob("*.json"):
                old.unlink()
            write_json(made_by, judges.fingerprint())
        for old in folder.glob("*.try"):
            old.unlink()
        yield folder
    shutil.rmtree(folder)


def _identify(video: Path) -> str:
    """A word for a video file as it is now: by name, size and time of change."""
    about = [str(video.absolute())]
    if video.exists():
        about += [video.stat().st_size, video.stat().st_mtime_ns]
    return hashlib.sha256(repr(about).encode(errors="surrogateescape")).hexdigest()[:32]


def _pack(verdict: Verdict) -> dict:
    plain = {name: getattr(verdict, name) for name in ("status", "p_fake", "n_frames", "reason", "strategy")}
    return plain | {"faces": verdict.faces.to_dict("list")}


def _unpack(video: Path, stored: dict) -> Verdict:
    return Verdict(video, **(stored | {"faces": pd.DataFrame(stored["faces"])}))
