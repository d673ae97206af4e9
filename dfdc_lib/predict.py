"""From a video to a verdict: 32 frames, their faces, a score each, one number."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dfdc_lib.aggregate import STRATEGIES, join_videos
from dfdc_lib.augment import valid_transforms
from dfdc_lib.config import INFERENCE_THRESHOLDS, MARGINS, Margin, PredictConfig, Procedure
from dfdc_lib.faces import DETECT_AT_ONCE, FaceLinker, Faces, shared_detector
from dfdc_lib.geometry import cut_face, isotropic_resize, spread_indices
from dfdc_lib.jobs import Lost, count_cores
from dfdc_lib.model import DeepfakeClassifier, ModelCard, load_checkpoint, score
from dfdc_lib.video import VideoError, VideoInfo, in_groups, probe, read_frames, run_ahead

BATCH = {"cpu": 8, "cuda": 32}  # crops that a model gets at once
FACE_COLUMNS = ["frame_idx", "seconds", "face_idx", "x0", "y0", "x1", "y1", "certainty"]
FACE_KEY = ["frame_idx", "face_idx"]
FEW_FACES = 12  # with fewer, `confident_strategy` is never sure of a fake
SMALL_FACE = 48  # pixels; smaller ones lose the traces of a fake (experiments/limits.csv)
NO_FACES = pd.DataFrame(columns=[*FACE_COLUMNS, "checkpoint", "p_fake"])


@dataclass
class Verdict:
    """What we say about one video: p_fake from the frames that could be read; None without a face.

    status: "ok", "short" (fewer frames than asked for, or the file breaks off), "decode_error",
    "detect_error", "no_face", "no_video_stream", "unreadable", "too_large", "missing_file" or
    "out_of_memory"; from `dfdc predict` also "crashed" or "timeout".
    """

    video: Path
    status: str
    p_fake: float | None = None
    n_frames: int = 0
    faces: pd.DataFrame = field(default_factory=NO_FACES.copy)  # a row per face and checkpoint
    reason: str = ""
    strategy: str = PredictConfig.strategy
    procedure: Procedure = "slides"  # how its faces were found and cut
    every_seconds: float = 0.0  # the length of its windows; 0: the whole video is one

    @property
    def n_faces(self) -> int:
        """Count each face once, however many models scored it."""
        return len(self.faces.drop_duplicates(FACE_KEY))

    @property
    def warnings(self) -> list[str]:
        """Say why this score deserves less trust than others."""
        if self.p_fake is None:
            return []
        told, width = [], (self.faces.x1 - self.faces.x0).median()
        if self.n_faces < FEW_FACES:
            needs = f"the rule needs {FEW_FACES} to be sure of a fake"
            told.append(f"only {self.n_faces} pictures of faces: {needs}")
        if width < SMALL_FACE:
            told.append(
                f"half of the faces are at most {width:.0f} pixels wide: a fake's traces vanish"
            )
        return told

    @property
    def people(self) -> pd.DataFrame:
        """Make a row per person: face_idx, n_faces, and p_fake joined over the person's faces."""
        return self._join("face_idx", self.faces.face_idx)

    @property
    def windows(self) -> pd.DataFrame:
        """Make a row per window that shows a face: start and end in seconds, n_faces, p_fake."""
        length = self.every_seconds or np.inf
        windows = self._join("start", self.faces.seconds // length * (self.every_seconds or 1))
        windows.insert(1, "end", windows.start + length)
        return windows

    def _join(self, name: str, groups: pd.Series) -> pd.DataFrame:
        """A row per group of faces: its value, how many faces it has, and their p_fake, joined."""
        rows = [
            (group, len(faces.drop_duplicates(FACE_KEY)), join_models(faces, self.strategy))
            for group, faces in self.faces.groupby(groups)
        ]
        return pd.DataFrame(rows, columns=[name, "n_faces", "p_fake"])


class Cut(NamedTuple):
    """How a checkpoint wants its crops."""

    margin: Margin
    size: int  # of the longer side, pixels

    @classmethod
    def of(cls, card: ModelCard, procedure: str) -> "Cut":
        """Choose them for a model with this card and a procedure, "slides" or "upstream"."""
        return cls(MARGINS["upstream"] if procedure == "upstream" else card.margin, card.size)


class Scorer(NamedTuple):
    """A model, ready to score."""

    model: DeepfakeClassifier
    score: Callable[[Tensor], Tensor]  # (N, 3, S, S) normalised → p_fake (N,), on the CPU


class Seen(NamedTuple):
    """What was seen in a video, before any score. status, reason, n_frames: as in `Verdict`."""

    status: str
    reason: str = ""
    n_frames: int = 0
    faces: pd.DataFrame = NO_FACES[FACE_COLUMNS]
    crops: tuple[dict[Cut, np.ndarray], ...] = ()  # of each face, as each checkpoint wants it


def load_models(
    models: Iterable[DeepfakeClassifier | Path | str], config: PredictConfig = PredictConfig()
) -> dict[str, Scorer]:
    """Return name → scorer for paths of checkpoints and for loaded models.

    config: backend and precision, for paths only. Raises ValueError for no model or a path twice.
    """
    from dfdc_lib.fast.scorers import make_scorer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded: dict[str, Scorer] = {}
    for number, given in enumerate(models):
        if isinstance(given, DeepfakeClassifier):
            model = given.to(device).eval()
            loaded[f"model {number}"] = Scorer(model, partial(score, model))
            continue
        if os.path.abspath(given) in map(os.path.abspath, loaded):
            raise ValueError(f"{given} is given twice: its vote would count double")
        model = load_checkpoint(Path(given)).to(device)
        loaded[str(given)] = Scorer(model, make_scorer(model, config.backend, config.precision))
    if not loaded:
        raise ValueError("a verdict needs at least one checkpoint")
    return loaded


def complete_config(config: PredictConfig, cards: Iterable[ModelCard]) -> PredictConfig:
    """Fill in the checkpoints' procedure, and check the strategy. Raises ValueError."""
    if config.strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise ValueError(f"unknown strategy {config.strategy!r}: choose one of {known}")
    wanted = {config.procedure or card.procedure for card in cards}
    if len(wanted) > 1:
        fix = "choose --procedure slides or upstream"
        raise ValueError(f"these checkpoints need different procedures: {fix}")
    return replace(config, procedure=wanted.pop())


def predict_video(
    path: Path, models, n_frames: int = PredictConfig.frames, strategy: str = PredictConfig.strategy
) -> Verdict:
    """Score one video. models: see `load_models`. Raises FileNotFoundError."""
    if not Path(path).exists():
        raise FileNotFoundError(f"no such video: {path}")
    return next(predict_videos([path], models, PredictConfig(n_frames, strategy)))


def predict_videos(
    paths: Iterable[Path], models, config: PredictConfig = PredictConfig()
) -> Iterator[Verdict]:
    """Yield verdicts in order; a thread works one video ahead. models: see `load_models`."""
    models = models if isinstance(models, dict) else load_models(models, config)
    cards = [scorer.model.card for scorer in models.values()]
    config = complete_config(config, cards)
    cuts = {Cut.of(card, config.procedure) for card in cards}
    videos = ((Path(path), cut_video(Path(path), config, cuts)) for path in paths)
    yield from score_in_batches(run_ahead(videos, 1), models, config)


def cut_video(path: Path, config: PredictConfig, cuts: Iterable[Cut]) -> Seen:
    """Decode a video, find its faces and cut them out. A failure becomes the status."""
    crops: list[dict[Cut, np.ndarray]] = []
    rows: list[tuple] = []  # in FACE_COLUMNS
    linker, n_frames, failed = FaceLinker(), 0, ""
    try:
        info = probe(path)
        wanted = choose_frames(info, config)
        for several in in_groups(read_frames(path, wanted, info), DETECT_AT_ONCE):
            for (frame_idx, picture), faces in zip(several, _detect(several, config), strict=True):
                if isinstance(faces, str):
                    failed = f"detection failed in frame {frame_idx} ({faces})"
                    continue
                views = [{cut: cut_crop(picture, box, cut) for cut in cuts} for box in faces.boxes]
                linker.notice_cut(picture)
                # In frame heights, since the size may change midway.
                people = linker.link(faces.scaled(1 / len(picture)), frame_idx)
                for who, box, certainty in zip(people, faces.boxes, faces.scores, strict=True):
                    place = frame_idx, float(info.times[frame_idx]), int(who)
                    rows.append((*place, *map(float, box), float(certainty)))
                crops += views
                n_frames += 1
        status, reason = describe_decoding(n_frames, len(wanted), config.frames, info.n_missing)
        if failed:
            status, reason = "detect_error", failed
    except FileNotFoundError:
        status, reason = "missing_file", "no such file: a broken link, or removed meanwhile"
    except VideoError as error:
        status, reason = error.status, error.reason
    except MemoryError:
        status, reason = "out_of_memory", "it doesn't fit into memory"
    except OSError as error:  # another run tries again
        status, reason = "unreadable", str(error)
    except (ValueError, RuntimeError, cv2.error) as error:  # the other videos must go on
        status, reason = "decode_error", f"{type(error).__name__}: {error}"
    return Seen(status, reason, n_frames, pd.DataFrame(rows, columns=FACE_COLUMNS), tuple(crops))


def choose_frames(info: VideoInfo, config: PredictConfig) -> np.ndarray:
    """The numbers of the frames to sample, evenly over the video or each of its windows."""
    windows = info.times // (config.every_seconds or np.inf)
    each = np.split(np.arange(info.n_frames), np.flatnonzero(np.diff(windows)) + 1)
    return np.concatenate([own[spread_indices(len(own), config.frames)] for own in each])


def describe_decoding(decoded: int, wanted: int, asked: int, missing: int) -> tuple[str, str]:
    """Return status and reason of a video that opened, from numbers of frames."""
    if decoded < max(wanted, 1):
        return "decode_error", f"{decoded} of {wanted} frames could be decoded"
    if missing:
        return "short", f"the file ends {missing} frames before its header says"
    if wanted < asked:
        return "short", f"{wanted} of {asked} frames: the video has no more"
    return "ok", ""


def _detect(frames: list[tuple], config: PredictConfig) -> Sequence[Faces | str]:
    """Find each frame's faces, or say what went wrong; its neighbours go on without it."""
    try:
        detector = shared_detector(INFERENCE_THRESHOLDS, count_cores())
        return detector.detect_resized([picture for _, picture in frames], config.procedure)
    except (ValueError, RuntimeError, cv2.error) as error:
        if len(frames) == 1:
            return [f"{type(error).__name__}: {error}"]
        return [found for frame in frames for found in _detect([frame], config)]


def cut_crop(picture: np.ndarray, box, cut: Cut) -> np.ndarray:
    """Cut out a face as a checkpoint wants it."""
    return isotropic_resize(cut_face(picture, box, cut.margin), cut.size)


def score_in_batches(
    videos: Iterable[tuple[Path, Seen | Lost]], models: dict[str, Scorer], config: PredictConfig
) -> Iterator[Verdict]:
    """Score crops in full batches, across videos; yield the verdicts in order."""
    size = BATCH[next(iter(models.values())).model.fc.weight.device.type]
    waiting: deque[tuple[Path, Seen]] = deque()
    crops: list[dict[Cut, np.ndarray]] = []  # not scored yet
    scores: deque[list[float]] = deque()  # of the crops before those, by each model
    for path, result in videos:
        seen = Seen(*result) if isinstance(result, Lost) else result
        waiting.append((path, seen))
        crops += seen.crops
        while len(crops) >= size:
            scores += score_crops(crops[:size], models, config.procedure)
            del crops[:size]
        while waiting and len(waiting[0][1].crops) <= len(scores):
            yield conclude_video(*waiting.popleft(), scores, models, config)
    if crops:
        scores += score_crops(crops, models, config.procedure)
    for path, seen in waiting:
        yield conclude_video(path, seen, scores, models, config)


def score_crops(
    crops: Sequence[dict[Cut, np.ndarray]], models: dict[str, Scorer], procedure: str
) -> list[list[float]]:
    """Score each crop, in each model's own cut; return a row per crop, a p_fake per model."""
    pictures = {}
    for cut in crops[0]:
        transform = valid_transforms(cut.size)
        pictures[cut] = torch.stack([transform(image=faces[cut])["image"] for faces in crops])
    scores = [s.score(pictures[Cut.of(s.model.card, procedure)]) for s in models.values()]
    return torch.stack(scores, dim=1).tolist()


def conclude_video(
    path: Path, seen: Seen, scores: deque[list[float]], names: Iterable[str], config: PredictConfig
) -> Verdict:
    """Make a verdict from what was seen; take its crops' scores off the front of `scores`."""
    status, reason, p_fake, faces = seen.status, seen.reason, None, NO_FACES
    if by_crop := [scores.popleft() for _ in seen.crops]:
        by_model = zip(names, zip(*by_crop, strict=True), strict=True)
        parts = [seen.faces.assign(checkpoint=name, p_fake=own) for name, own in by_model]
        faces = pd.concat(parts, ignore_index=True)
        p_fake = join_models(faces, config.strategy)
    elif seen.n_frames and status in ("ok", "short"):
        status, reason = "no_face", f"no face in {seen.n_frames} frames"
    about = (config.strategy, config.procedure, config.every_seconds)
    return Verdict(path, status, p_fake, seen.n_frames, faces, reason, *about)


def join_models(faces: pd.DataFrame, strategy: str) -> float:
    """Apply `strategy` to all faces for each model, then average the models, as upstream does."""
    scores, names = faces.p_fake.to_numpy(float), faces.checkpoint.to_numpy(str)
    return float(join_videos(strategy, scores, names)[1].mean())
