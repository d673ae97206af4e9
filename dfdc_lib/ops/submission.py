"""Score many videos, perhaps for days, and write a submission: what `dfdc predict` does.

Each verdict is a line of a journal beside the submission; the same call continues from there.
"""

import importlib.metadata
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from dfdc_lib.config import PredictConfig
from dfdc_lib.jobs import TIME_LIMIT, Lost, run_jobs
from dfdc_lib.metrics import at_base_rate
from dfdc_lib.predict import (
    NO_FACES,
    Cut,
    Scorer,
    Verdict,
    complete_config,
    cut_video,
    load_models,
    predict_videos,
    score_in_batches,
)
from dfdc_lib.store import (
    DamagedFile,
    Journal,
    appear_whole,
    digest_file,
    file_size,
    hold,
    write_csv,
    write_json,
)
from dfdc_lib.video import printable, time_code

# Another run tries these again: they may be the disk's or the machine's fault.
TRIED_AGAIN = ("unreadable", "detect_error", "missing_file", "crashed", "timeout", "out_of_memory")
# Names of videos in a folder, the formats of `video.CONTAINERS`, and of pictures.
VIDEO_NAME = re.compile(
    r"(?!\._).*\.(mp4|m4v|mov|qt|3gp|3g2|avi|divx|mkv|webm|ivf|ts|mts|m2ts|m2t|tod|mpe?g|mpe|mpv"
    r"|m1v|m2v|vob|mod|flv|f4v|wmv|asf|ogv|ogm|mxf|rm|rmvb|dv|nut|h264|264|avc|h265|265|hevc"
    r"|jpe?g|png|webp|avif|heic|heif)",
    re.IGNORECASE | re.DOTALL,
)
REHEARSAL_WARNING = (
    "this checkpoint has learned the sample only, a rehearsal with two portraits: "
    "on any other video its score means nothing"
)
LONG = 60  # seconds: 32 frames show little of a longer video
STATUS, PREDICTIONS = "status.csv", "predictions.parquet"  # beside a submission
SETTINGS = ".settings.json"  # of a submission, instead of its suffix
STATUS_COLUMNS = ["filename", "status", "n_frames", "n_faces", "n_people", "reason", "warnings"]
STATUS_COLUMNS += ["path"]


def score_files(
    videos: Sequence[Path],
    models: dict[str, Scorer],
    config: PredictConfig,
    out: Path | None = None,
    workers: int = 0,
    scheduler: str = "",
    time_limit: float = TIME_LIMIT,
) -> Iterator[Verdict]:
    """Yield each video's verdict as it comes, starting with those that a stopped call made.

    models: by checkpoint's path. out: the submission; a journal beside it keeps the verdicts.
    workers, scheduler, time_limit: as in `run_jobs`; workers decode and find faces, and a cluster's
    load the checkpoints and score too.

    Raises ValueError if another call is writing `out`, or a stopped one had other settings.
    """
    config = complete_config(config, [scorer.model.card for scorer in models.values()])
    if out is None:
        yield from _score(videos, models, config, workers, scheduler, time_limit)
        return
    journal = Journal(journal_of(out))
    with hold(journal.path):
        kept = _read_journal(journal, describe_call(models, config))
        # A file that has changed since is scored again.
        keys = {v: f"{file_size(v)} {printable(os.path.abspath(v))}" for v in videos}
        for video in videos:
            if keys[video] in kept:
                yield replace(kept[keys[video]], video=video)
        others = [video for video in videos if keys[video] not in kept]
        for verdict in _score(others, models, config, workers, scheduler, time_limit):
            if verdict.status not in TRIED_AGAIN:
                plain = {"video": keys[verdict.video], "faces": verdict.faces.to_dict("list")}
                journal.append([json.dumps(vars(verdict) | plain)])
            yield verdict


def _score(
    videos: Sequence[Path],
    models: dict[str, Scorer],
    config: PredictConfig,
    workers: int,
    scheduler: str,
    time_limit: float,
) -> Iterator[Verdict]:
    if not scheduler:
        cuts = frozenset(Cut.of(scorer.model.card, config.procedure) for scorer in models.values())
        cutting = ((video, config, cuts) for video in videos)
        results = run_jobs(cut_video, cutting, workers, time_limit=time_limit)
        yield from score_in_batches(((job[0], seen) for job, seen in results), models, config)
        return
    checkpoints = tuple(os.path.abspath(name) for name in models)
    given = {video.absolute(): video for video in videos}
    jobs = ((path, checkpoints, tuple(models), config) for path in given)
    for (path, *_), result in run_jobs(_predict_there, jobs, 0, scheduler, time_limit):
        if isinstance(result, Lost):
            lost = Verdict(path, result.status, reason=result.reason)
            result = replace(lost, strategy=config.strategy, procedure=config.procedure)
        yield replace(result, video=given[path])


def _predict_there(
    path: Path, checkpoints: tuple[str, ...], names: tuple[str, ...], config: PredictConfig
) -> Verdict:
    """Score one video in a cluster's worker, which loads the checkpoints once."""
    models = dict(zip(names, _load_once(checkpoints, config).values(), strict=True))
    return next(predict_videos([path], models, config))


_load_once = lru_cache(maxsize=1)(load_models)


def journal_of(out: Path) -> Path:
    """Where verdicts are kept until the submission is complete."""
    return Path(out).absolute().with_name(f".{Path(out).name}.verdicts")


def settings_of(out: Path) -> Path:
    """Where the settings behind the scores of a submission are kept."""
    return out.with_name(out.stem + SETTINGS)


def describe_call(models: dict[str, Scorer], config: PredictConfig) -> dict:
    """What verdicts depend on besides the video: settings, checkpoints, libraries."""
    libraries = {n: importlib.metadata.version(n) for n in ("dfdc-lib", "torch", "facenet-pytorch")}
    digests = [digest_file(Path(name)) for name in models]
    cards = [scorer.model.card.to_json() for scorer in models.values()]
    about = {"checkpoints": digests, "cards": cards, "openvino": bool(find_spec("openvino"))}
    return {"config": asdict(config), **about, **libraries}


def _read_journal(journal: Journal, call: dict) -> dict[str, Verdict]:
    """Read the verdicts of a stopped call with the same settings, or begin the journal."""
    try:
        stored, *entries = map(json.loads, journal.lines() or [json.dumps(call)])
        faces = [pd.DataFrame(entry.pop("faces")) for entry in entries]
        kept = {e["video"]: Verdict(**e, faces=f) for e, f in zip(entries, faces, strict=True)}
    except (ValueError, KeyError, TypeError) as error:
        fix = "delete it, and everything is scored again"
        raise DamagedFile(f"{journal.path} is damaged: {fix}") from error
    if stored != call:
        changed = ", ".join(name for name in call if stored.get(name) != call[name])
        ways = f"name another --out, or delete {journal.path} to begin again"
        raise ValueError(f"a stopped call for this --out had other settings ({changed}): {ways}")
    if not journal.path.exists():
        journal.append([json.dumps(call)])
    return kept


def find_videos(inputs: Iterable[Path | str]) -> tuple[list[Path], list[Path]]:
    """Find the videos in folders, at any depth, by name; return them and the files left out.

    A broken link may be a video; macOS's `._x.mp4` is not. Raises FileNotFoundError for a missing
    file, and for a folder without videos.
    """
    videos: list[Path] = []
    others: list[Path] = []
    for given in map(Path, inputs):
        if given.is_dir():
            files = sorted(path for path in given.rglob("*") if not path.is_dir())
            named = [path for path in files if VIDEO_NAME.fullmatch(path.name)]
            if not named:
                kinds = ".mp4, .mov, .mkv, .jpg, .png, …"
                raise FileNotFoundError(f"no video or picture ({kinds}) in {given}")
            videos += named
            others += sorted(set(files) - set(named))
        elif given.exists() or given.is_symlink():
            videos.append(given)
        else:
            raise FileNotFoundError(f"no such file or folder: {given}")
    unique = {video.absolute(): video for video in reversed(videos)}
    return list(unique.values())[::-1], others  # each once, as first named


def name_videos(paths: Sequence[Path]) -> dict[Path, str]:
    """Name each video in the results: by its file name, or by its path where two share one."""
    counts = Counter(path.name for path in paths)
    return {path: printable(path.name if counts[path.name] == 1 else path) for path in paths}


def check_results(out: Path) -> None:
    """Raise ValueError if results would replace files that are not results."""
    if out.name in (STATUS, PREDICTIONS):
        raise ValueError(f"{out.name} is the name of another result: rename the submission")
    files = (out, out.parent / STATUS, out.parent / PREDICTIONS, settings_of(out))
    there = [path for path in files if path.exists()]
    if 0 < len(there) < len(files) and not journal_of(out).exists():  # else a stopped call's
        raise ValueError(f"{there[0]} belongs to something else: choose another folder for --out")


def write_results(verdicts: Sequence[Verdict], out: Path, fallback: float | None = None) -> None:
    """Write the submission `out`: filename, label. Videos without a score get `fallback`, if given.

    Beside it go status.csv (all videos), predictions.parquet (a row per face and checkpoint) and
    <out>.settings.json (what the scores depend on besides the videos, if a journal has it).
    """
    names = name_videos([verdict.video for verdict in verdicts])
    scores, rows, faces = [], [], []
    for v in verdicts:
        name, n_people = names[v.video], v.faces.face_idx.nunique()
        scores.append((name, fallback if v.p_fake is None else v.p_fake))
        counts = v.n_frames, v.n_faces, n_people
        path = printable(os.path.abspath(v.video))
        rows.append((name, v.status, *counts, v.reason, "; ".join(v.warnings), path))
        if len(v.faces):
            faces.append(v.faces.assign(video=name))
    table = pd.concat(faces or [NO_FACES.assign(video=[])], ignore_index=True)
    write_csv(out, pd.DataFrame(scores, columns=["filename", "label"]).dropna())
    write_csv(out.parent / STATUS, pd.DataFrame(rows, columns=STATUS_COLUMNS))
    with appear_whole(out.parent / PREDICTIONS) as temporary:
        table.to_parquet(temporary, index=False)
    head = Journal(journal_of(out)).lines()[:1]
    paths = [os.path.abspath(name) for name in table.checkpoint.unique()]
    write_json(settings_of(out), json.loads(head[0]) | {"paths": paths} if head else {})
    journal_of(out).unlink(missing_ok=True)


def describe_verdict(verdict: Verdict) -> str:
    """State a video's score, why it has none, or why it doesn't cover the whole video."""
    words = f"{printable(verdict.video)}: {verdict.status}: "
    if verdict.p_fake is None:
        return words + verdict.reason
    words += f"p_fake {verdict.p_fake:.3f}, {verdict.n_faces} faces in {verdict.n_frames} frames"
    if 1 < len(people := verdict.people) <= 4:
        words += ", by person " + ", ".join(f"{p:.3f}" for p in people.p_fake)
    elif len(people) > 1:  # with cuts, a person may have several numbers
        words += f", the highest of {len(people)} people {people.p_fake.max():.3f}"
    if len(windows := verdict.windows) > 1:
        top = windows.loc[windows.p_fake.idxmax()]
        words += f", highest {top.p_fake:.3f} from {time_code(top.start)} to {time_code(top.end)}"
    elif verdict.faces.seconds.max() > LONG:
        words += "; a long video: --every-seconds 10 shows where its score is high"
    words += f" ({verdict.reason})" if verdict.reason else ""
    return "; warning: ".join([words, *verdict.warnings])


def describe_scores(verdicts: Sequence[Verdict], fallback: float | None) -> str:
    """State how many videos have a score, and what a score means."""
    count, total = sum(verdict.p_fake is not None for verdict in verdicts), len(verdicts)
    others = "" if fallback is None else f"; the others count as {fallback} in the submission"
    told = f"only {at_base_rate(0.9, 0.01):.0%}"
    return (
        f"{count} of {total} videos have a score (coverage {count / total:.0%}){others}\n"
        f"a score is not proof: if one video in 100 is fake, {told} of those scored 0.9 are"
    )
