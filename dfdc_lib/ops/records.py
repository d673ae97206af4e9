"""Record what a verdict rests on, as JSON beside its page; check that it can be reproduced."""

import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from dfdc_lib.config import PredictConfig
from dfdc_lib.fast.scorers import choose_arithmetic
from dfdc_lib.model import DeepfakeClassifier
from dfdc_lib.ops.doctor import Finding, check_package
from dfdc_lib.predict import Scorer, Verdict, load_models, predict_videos
from dfdc_lib.store import DamagedFile, digest_file, read_json, show
from dfdc_lib.video import VideoError, probe

LIBRARIES = (
    "dfdc-lib",
    "torch",
    "timm",
    "facenet-pytorch",
    "openvino",
    "av",
    "opencv-python-headless",
)
# By how much p_fake may differ if either score was computed in these numbers: on another machine or
# back end, the last digits of a box or a sum are different.
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}


def make_record(verdict: Verdict, models: dict[str, Scorer], config: PredictConfig) -> dict:
    """Everything needed to check a verdict, in a form that JSON takes.

    models: those that scored it; a model that did not come from a file has no digest.
    """
    checkpoints = [
        {
            **describe_checkpoint(Path(name)),
            "numbers": describe_numbers(scorer.model, config),
            "card": scorer.model.card.to_json(),
        }
        for name, scorer in models.items()
    ]
    windows = verdict.windows.to_dict("records") if verdict.every_seconds else []
    return {
        "video": describe_file(verdict.video),
        "verdict": summarise(verdict) | {"reason": verdict.reason, "warnings": verdict.warnings},
        "windows": windows,
        "faces": verdict.faces.to_dict("records"),
        "checkpoints": checkpoints,
        "settings": asdict(replace(config, procedure=verdict.procedure)),
        "made": {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(sys.argv),
            "versions": read_versions(),
        },
    }


def summarise(verdict: Verdict) -> dict:
    """What scoring again must reproduce: status, scores, and how much they rest on."""
    return {
        "status": verdict.status,
        "p_fake": verdict.p_fake,
        "n_frames": verdict.n_frames,
        "n_faces": verdict.n_faces,
        "people": verdict.people.to_dict("records"),
    }


def describe_checkpoint(path: Path) -> dict:
    """A checkpoint's place and digest; None for a model that did not come from a file."""
    if not path.is_file():
        return {"path": None, "sha256": None}
    about = path.stat()
    sha256 = _digest_once(path.absolute(), about.st_size, about.st_mtime_ns)
    return {"path": os.path.abspath(path), "sha256": sha256}


@lru_cache
def _digest_once(path: Path, size: int, changed: int) -> str:
    """The digest of a file as it was then; cached, as each page needs those of seven large ones."""
    return digest_file(path)


def describe_file(path: Path) -> dict:
    """A video's place, digest and size; what can't be read is None."""
    about: dict = dict.fromkeys(("sha256", "bytes", "width", "height", "n_frames", "seconds"))
    about |= {"path": os.path.abspath(path)}
    with suppress(OSError, VideoError):  # the verdict's status says why
        about |= {"sha256": digest_file(path), "bytes": os.path.getsize(path)}
        info = probe(path)
        about |= {name: getattr(info, name) for name in ("width", "height", "n_frames")}
        about["seconds"] = float(info.times.max(initial=0)) + (1 / info.fps if info.fps else 0)
    return about


def describe_numbers(model: DeepfakeClassifier, config: PredictConfig) -> str:
    """Which back end computes a model's scores here, and in which numbers."""
    backend, number = choose_arithmetic(model, config.backend, config.precision)
    return f"{backend}, {str(number).removeprefix('torch.')}"


def tolerance_of(numbers: str) -> float:
    """By how much a score may differ. numbers: of `describe_numbers`."""
    return TOLERANCES[numbers.rpartition(", ")[2]]


def read_versions() -> dict[str, str]:
    """The versions of what a score depends on."""
    found = {name: check_package(name).found for name in LIBRARIES}
    return {"python": platform.python_version()} | found


def verify_record(
    path: Path, video: Path | None = None, checkpoints: Sequence[Path] = ()
) -> list[Finding]:
    """Score a record's video again and compare. video, checkpoints: where they are now.

    Raises DamagedFile if it is not a record, and FileNotFoundError.
    """
    stored = read_json(path)
    try:
        then, config = stored["verdict"], PredictConfig(**stored["settings"])
        video = video or Path(stored["video"]["path"])
        paths = [Path(c) for c in checkpoints or (c["path"] for c in stored["checkpoints"])]
        digests = [stored["video"]["sha256"], *(c["sha256"] for c in stored["checkpoints"])]
        limits = [tolerance_of(c["numbers"]) for c in stored["checkpoints"]]
        versions = dict(stored["made"]["versions"])
        before = {name: then[name] for name in ("status", "n_frames", "n_faces")}
        scores = flatten(then)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFile(f"{path} is not from `dfdc predict --report`: {error!r}") from error
    if not video.exists():
        raise FileNotFoundError(f"no such video: {video}; --video says where it is now")
    if len(paths) != len(limits):
        raise ValueError(f"{len(limits)} checkpoints gave this score, but {len(paths)} are named")
    findings = [compare_files(*pair) for pair in zip([video, *paths], digests, strict=True)]
    models = load_models(paths, config)
    verdict = next(predict_videos([video], models, config))
    now = summarise(verdict)
    found = ", ".join(f"{name} {now[name]}" for name in before)
    same = all(now[name] == value for name, value in before.items())
    told = "" if same else f"it was {', '.join(map(str, before.values()))}"
    findings.append(Finding("what was seen", same, found, told))
    limits += [tolerance_of(describe_numbers(s.model, config)) for s in models.values()]
    findings += compare_scores(scores, flatten(now), max(limits))
    changed = {n: v for n, v in read_versions().items() if versions.get(n) != v}
    words = ", ".join(f"{n} {versions.get(n)} then, {v} now" for n, v in changed.items())
    return [*findings, Finding("versions", True, words or "as then")]


def flatten(summary: dict) -> dict[str, float | None]:
    """The scores of a verdict and of its people, by name."""
    people = {f"p_fake of person {p['face_idx']}": p["p_fake"] for p in summary["people"]}
    return {"p_fake": summary["p_fake"]} | people


def compare_files(path: Path, sha256: str | None) -> Finding:
    """Is this still the file that was read?"""
    found = digest_file(path)
    known = f"it was {show(sha256)}"
    return Finding(str(path), found == sha256, f"sha256 {found}", "" if found == sha256 else known)


def compare_scores(then: dict, now: dict, limit: float) -> Iterator[Finding]:
    """Compare each score with what it was."""
    for name in dict.fromkeys([*then, *now]):
        old, new = then.get(name), now.get(name)
        if old is None or new is None:
            yield Finding(name, old is new, str(new), "" if old is new else f"it was {show(old)}")
        else:
            told = f"it was {old:.6f}: {abs(new - old):.6f} away, and {limit:g} is allowed"
            yield Finding(name, abs(new - old) <= limit, f"{new:.6f}", told)
