"""What was reproduced? Holds the slides' thirty statements against the artifacts of a work folder
(a minute).

    python -m experiments.scorecard --data data/sample --work data/work/sample

Writes report/scorecard.csv in the work folder: of each statement in statements.csv the evidence,
where it was seen, and a verdict, which follows from the evidence by a rule (`decide`). Each check
compares with something that could have said no: facenet-pytorch's own detector, arithmetic or a
formula written out here, pandas' draw, the slides' numbers. Writes report/published.csv as well:
the scores that were published beside those of the runs that trained as the slides say.
"""

import argparse
import re
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from facenet_pytorch import MTCNN

from dfdc_lib import augment
from dfdc_lib.aggregate import confident_strategy, join_videos
from dfdc_lib.config import ENCODERS, PredictConfig, TrainConfig
from dfdc_lib.dataset import epoch_order, read_crops, read_folds, stream_seed
from dfdc_lib.faces import box_overlap
from dfdc_lib.geometry import detector_scale, spread_indices
from dfdc_lib.metadata import read_metadata
from dfdc_lib.metrics import bootstrap_interval, log_loss
from dfdc_lib.ops.cards import read_runs
from dfdc_lib.progress import NotEnough, require
from dfdc_lib.store import WorkFolder, face_file, read_mask, read_png, write_csv
from dfdc_lib.train import make_optimizer, score_videos
from dfdc_lib.video import VideoError, iterate_frames

HERE = Path(__file__).parent
STATEMENTS = HERE / "statements.csv"  # what the slides state and upstream does, and where ours is
LOOKS = 100  # crops, masks and boxes that are compared, of each kind
SLIDES = TrainConfig()  # a B5


class Evidence(NamedTuple):
    """What a check found."""

    words: str
    holds: bool | None = None  # None: it can't be told
    seen_on: str = ""  # "sample", "part", "DFDC"; "any": it depends on no data; "": nothing seen


def decide(kind: str, found: Evidence) -> str:
    """The verdict on a statement. kind: "rule", true of any data, or "accuracy", of the real."""
    if not found.seen_on:
        return "needs full"
    if found.holds is None:
        return "tie"
    if not found.holds:
        return "not reproduced"
    return "reproduced" if kind == "rule" or found.seen_on == "DFDC" else "rehearsed in demo"


class Folder:
    """The data set, the work folder's artifacts, and the stage that they stand for."""

    def __init__(self, data: Path, work: WorkFolder):
        self.data, self.work = data, work
        self.videos, self.crops = read_metadata(data), read_folds(work)
        self.trained_on, self.runs = work.read_recipe()["data"], read_runs(work)
        whole = self.videos.part.nunique() == 50
        whole &= self.crops.video_id.nunique() >= 0.95 * len(self.videos)
        real = "DFDC" if whole else "part"
        self.stage = "sample" if self.trained_on == "sample" else real
        own = self.runs.as_slides & (self.runs.trained_on == self.trained_on)
        self.best = self.runs[own & (self.stage != "sample")]  # trained as the slides say

    @cached_property
    def boxes(self) -> dict[str, dict]:
        """The stored boxes of the first originals."""
        paths = sorted((self.work.root / "boxes").glob("*.json"))[:LOOKS]
        return {path.stem: self.work.read_boxes(path.stem) for path in paths}

    def seen(self, runs: pd.DataFrame) -> str:
        """Where evidence of these runs was seen: only the slides' settings speak for DFDC."""
        return "part" if self.stage == "DFDC" and not runs.as_slides.all() else self.stage

    def score(self, run: str, strategy: str = "mean") -> pd.DataFrame:
        """A run's held-out videos with their p_fake, by video_id."""
        crops = read_crops(self.work.run(run) / "held_out.csv")
        return score_videos(crops, strategy).set_index("video_id").sort_index()


CHECKS: dict[str, Callable[[Folder], Evidence]] = {}  # by the statement's topic


def check(topic: str):
    """Register a function as the check of a topic."""

    def register(look: Callable[[Folder], Evidence]):
        CHECKS[topic] = look
        return look

    return register


# From videos to masks


@check("detection")
def boxes_are_the_peers(folder: Folder) -> Evidence:
    """A few stored faces against facenet-pytorch's own detector, on the frame by the size rule."""
    thresholds = list(folder.work.read_recipe()["settings"]["thresholds"])
    peer, same = MTCNN(keep_all=True, thresholds=thresholds), []
    for original, stored in list(folder.boxes.items())[:5]:
        frame = next((frame for frame in stored["frames"] if frame["boxes"]), None)
        file = folder.videos.set_index("video_id").file[original]
        if frame is None or not (folder.data / file).exists():
            continue
        try:
            ((_, picture),) = iterate_frames(folder.data / file, [frame["frame_idx"]])
        except (VideoError, ValueError):  # no such frame
            continue
        scale = detector_scale(*frame["size"])
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        resized = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=method)
        boxes, _, points = peer.detect(resized, landmarks=True)
        for box, landmarks in zip(frame["boxes"], frame["landmarks"], strict=True):
            overlap = [0] if boxes is None else box_overlap(boxes / scale, np.float32([box]))[:, 0]
            best = np.argmax(overlap)
            far = np.inf if boxes is None else np.abs(points[best] / scale - landmarks).max()
            same.append(overlap[best] > 0.9 and far < 0.05 * (box[2] - box[0]))
    require(same, "no stored face whose video is here")
    words = f"{sum(same)} of {len(same)} stored faces and landmarks are those of facenet-pytorch"
    return Evidence(words, all(same), folder.stage)


@check("detector's input")
def frames_are_resized_by_width(_: Folder) -> Evidence:
    expected = {299: 2, 300: 1, 1000: 1, 1001: 0.5, 1900: 0.5, 1901: 0.33}
    right = [detector_scale(side, side // 2) == scale for side, scale in expected.items()]
    return Evidence(
        f"right at {sum(right)} of {len(right)} widths around the limits", all(right), "any"
    )


@check("crop")
def crops_have_the_margin(folder: Folder) -> Evidence:
    """The size of each original's first crop on the disk, by arithmetic."""
    right = []
    for original, stored in folder.boxes.items():
        frame = next((frame for frame in stored["frames"] if frame["boxes"]), None)
        if frame is None or not folder.work.crop_names(original):
            continue
        name = face_file(frame["frame_idx"], frame["face_idx"][0])
        low, high = np.float64(frame["boxes"][0]).reshape(2, 2)
        margin = 0.2 * (high - low)
        low, high = (
            np.clip(np.round(corner), 0, frame["size"]) for corner in (low - margin, high + margin)
        )
        shape = read_png(folder.work.crops(original) / name).shape
        right.append(shape[1::-1] == tuple(high - low))
    require(right, "no crop of an original")
    words = f"{sum(right)} of {len(right)} crops on the disk are the box and 20 % on each side"
    return Evidence(words, all(right), folder.stage)


@check("mask")
def masks_are_ssim(folder: Folder) -> Evidence:
    """Stored masks against Wang's formula, written out below."""
    off = []
    for row in (
        folder.crops[folder.crops.label == 1].drop_duplicates("video_id")[:LOOKS].itertuples()
    ):
        name = face_file(row.frame_idx, row.face_idx)
        path = folder.work.masks(row.video_id) / name
        if path.exists():
            real, fake = (
                read_png(folder.work.crops(v) / name) for v in (row.original_id, row.video_id)
            )
            inside = (slice(3, -3), slice(3, -3))  # where the window lies within the crop
            off.append(np.abs(read_mask(path)[inside] - 255 * difference(real, fake)[inside]).max())
    require(off, "no mask")
    same = sum(value <= 1 for value in off)
    return Evidence(
        f"{same} of {len(off)} masks are 1 − SSIM by the formula", same == len(off), folder.stage
    )


def difference(real: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """1 - SSIM (H, W) over windows of 7 x 7 pixels: Wang et al. 2004, equation 13."""

    def mean(values):
        return cv2.blur(values, (7, 7))

    x, y = np.float64(real), np.float64(fake)
    mx, my = mean(x), mean(y)
    vx, vy, cov = (49 / 48 * (mean(a * b) - mean(a) * mean(b)) for a, b in ((x, x), (y, y), (x, y)))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return 1 - ssim.mean(axis=2).clip(0, 1)


@check("data")
def nothing_is_from_outside(folder: Folder) -> Evidence:
    strangers = set(folder.crops.video_id) - set(folder.videos.video_id)
    others = folder.runs.run[folder.runs.trained_on != folder.trained_on].tolist()
    words = f"{folder.crops.video_id.nunique()} videos used, {len(strangers)} from elsewhere; "
    words += f"{len(others)} runs on other data"
    return Evidence(words, not strangers and not others, folder.stage)


@check("gallery")
def files_are_named_by_frame_and_face(folder: Folder) -> Evidence:
    names = [path.name for path in sorted((folder.work.root / "crops").glob("*/*"))[:LOOKS]]
    require(names, "no crop")
    right = [re.fullmatch(r"\d+_\d+\.png", name) is not None for name in names]
    return Evidence(
        f"{sum(right)} of {len(right)} names, such as {names[-1]}", all(right), folder.stage
    )


# Training: the rules are looked at as they are set up for a B5


@check("input sizes")
def encoders_have_their_sizes(_: Folder) -> Evidence:
    sizes = {name.upper(): ENCODERS[name].size for name in ("b3", "b4", "b5", "b6", "b7")}
    words = ", ".join(f"{name} {size}" for name, size in sizes.items()) + " pixels"
    return Evidence(words, list(sizes.values()) == [300, 380, 380, 380, 380], "any")


@check("sampling")
def classes_are_balanced(folder: Folder) -> Evidence:
    """The library's pass against the line of pandas that stands in the slides."""
    reals, fakes = (folder.crops[folder.crops.label == label] for label in (0, 1))
    require(len(fakes) >= len(reals), "fewer fakes than reals")
    seed = stream_seed(SLIDES.seed, 0, 0)
    drawn = fakes.sample(n=len(reals), replace=False, random_state=seed)
    library = epoch_order(folder.crops, SLIDES, 0, 2 * len(reals))
    words = (
        f"one pass: all {len(reals)} real crops and {library.label.sum()} fakes, pandas' own draw"
    )
    return Evidence(
        words, sorted(library.index) == sorted([*reals.index, *drawn.index]), folder.stage
    )


@check("schedule")
def schedule_is_the_slides(_: Folder) -> Evidence:
    """A thousand rates against the polynomial, and as many updates against Nesterov's."""
    layer = torch.nn.Linear(1, 1, bias=False)
    optimizer, scheduler = make_optimizer(layer, SLIDES)
    w, v, right = layer.weight.item(), 0.0, [SLIDES.epoch_steps == 2500, SLIDES.steps == 75_000]
    for step in range(1000):
        rate = 0.01 * (1 - step / 75_000) ** 0.9
        right.append(np.isclose(scheduler.get_last_lr()[0], rate))
        layer.weight.grad = torch.ones(1, 1)
        v = 0.9 * v + (1 + 1e-4 * w)
        w -= rate * ((1 + 1e-4 * w) + 0.9 * v)
        optimizer.step()
        scheduler.step()
        right.append(np.isclose(layer.weight.item(), w, rtol=1e-3))
    return Evidence("1,000 rates and updates by hand are the optimizer's", all(right), "any")


@check("augmentation")
def augmentation_is_the_slides(_: Folder) -> Evidence:
    """Kinds, order and probabilities. `Affine` is what ShiftScaleRotate is called now."""
    expected = [("ImageCompression", 0.5), ("GaussNoise", 0.1), ("GaussianBlur", 0.05)]
    expected += [("HorizontalFlip", 0.5), ("OneOf", 1), ("PadIfNeeded", 1), ("OneOf", 0.7)]
    expected += [("ToGray", 0.2), ("Affine", 0.5)]
    found = [
        (type(transform).__name__, transform.p) for transform in augment.slides_transforms(380)
    ]
    words = f"{len(found)} transforms, their order and probabilities as stated"
    return Evidence(words, found == expected, "any")


@check("hard augmentation")
def hard_set_covers_parts(_: Folder) -> Evidence:
    """How often a part is covered, in 1,000 draws, against upstream's probabilities: a landmark
    7/8 of 0.7, else half of the hull 0.2, else a part of the picture 0.1."""
    cover = augment.train_transforms(64, hard=True, as_upstream=True).transforms[0]
    cover.set_random_seed(0)
    points = np.float32([[20, 24], [44, 24], [32, 36], [22, 48], [42, 48]])
    given = {"image": np.full((64, 64, 3), 200, np.uint8), "mask": np.zeros((64, 64), np.uint8)}
    given |= {"landmarks": points, "label": 0}
    covered = np.mean([(cover(**given)["image"] == 0).any() for _ in range(1000)])
    expected = 0.7 * 7 / 8 + 0.3 * 0.2 + 0.3 * 0.8 * 0.1
    words = f"a part is covered in {covered:.0%} of 1,000 draws, upstream's probabilities say "
    words += f"{expected:.0%}; then a grid, which is ours"
    return Evidence(words, abs(covered - expected) < 0.045, "any")


@check("batch")
def batches_are_the_slides(_: Folder) -> Evidence:
    b5, b7 = ENCODERS["b5"].batch, ENCODERS["b7"].batch
    return Evidence(f"on each GPU {b5} for B5, {b7} for B7", (b5, b7) == (16, 12), "any")


@check("precision and scale")
def runs_are_mixed_and_parallel(folder: Folder) -> Evidence:
    fitting = folder.runs[(folder.runs.precision != "no") & (folder.runs.processes > 1)]
    words = f"{len(fitting)} of {len(folder.runs)} runs had several processes and 16 bits"
    return Evidence(words, True, folder.stage) if len(fitting) else Evidence(words)


# Scores


@check("confident_strategy")
def rule_is_the_slides(_: Folder) -> Evidence:
    """The library's rule against plain Python, on a thousand random videos."""

    def by_hand(scores: list[float]) -> float:
        fakes, reals = [p for p in scores if p > 0.8], [p for p in scores if p < 0.2]
        if len(fakes) > len(scores) // 2.5 and len(fakes) > 11:
            return sum(fakes) / len(fakes)
        chosen = reals if len(reals) > 0.9 * len(scores) else scores
        return sum(chosen) / len(chosen)

    rng = np.random.default_rng(0)
    some = [rng.beta(*rng.uniform(0.05, 3, 2), rng.integers(1, 65)) for _ in range(1000)]
    same = [np.isclose(by_hand(p.tolist()), confident_strategy(p)) for p in some]
    return Evidence(f"equal on {sum(same)} of {len(same)} random videos", all(same), "any")


@check("frames")
def frames_are_spread(_: Folder) -> Evidence:
    long, short = (spread_indices(total, PredictConfig().frames) for total in (300, 20))
    even = len(long) == 32 and np.ptp(np.diff(long)) <= 1 and list(short) == list(range(20))
    return Evidence(f"of 300 frames {len(long)}, evenly; of 20 all {len(short)}", even, "any")


def losses(label, p_fake) -> np.ndarray:
    """Each video's log loss, natural logarithms."""
    p = np.clip(p_fake, 1e-7, 1 - 1e-7)
    return -np.where(label == 1, np.log(p), np.log(1 - p))


def signed(number: float) -> str:
    """With a sign, and more decimals where three would say zero."""
    return f"{number:+.{3 if abs(number) >= 0.0005 else 5}f}".replace("-", "−")


def is_lower(first, second, about: pd.DataFrame, seen_on: str) -> Evidence:
    """Is the first loss lower, video by video? 95 % interval by bootstrap over originals.

    An interval below zero says yes, above zero no, and on both sides that it is a tie.
    """
    gap = np.asarray(first) - np.asarray(second)
    low, high = bootstrap_interval(
        lambda _, gaps: gaps.mean(), about.label, gap, about.original_id, n_draws=500
    )
    words = f"log loss {signed(gap.mean())}"
    if np.isnan(low):
        return Evidence(f"{words} on {len(gap)} videos, too few for an interval", None, seen_on)
    holds = True if high < 0 else False if low > 0 else None
    words += f" ({signed(low)} to {signed(high)}; lower is better) on {len(gap)} videos"
    return Evidence(words, holds, seen_on)


@check("joining frames")
def confident_beats_the_mean(folder: Folder) -> Evidence:
    faces, models, seen_on = scored_frames(folder)
    about = faces.groupby("video_id")[["label", "original_id"]].first()
    each = {}
    for rule in ("confident", "mean"):
        answers = [join_videos(rule, faces[model], faces.video_id)[1] for model in models]
        each[rule] = np.mean([losses(about.label, p) for p in answers], axis=0)
    return is_lower(each["confident"], each["mean"], about, seen_on)


def scored_frames(folder: Folder) -> tuple[pd.DataFrame, list[str], str]:
    """Faces, their columns of scores, and where they were seen. The rule needs whole videos:
    notebook 09's predictions by a run of the slides' settings, else the experiment's."""
    path = folder.work.root / "predictions" / "predictions.parquet"
    if len(folder.best) and path.exists():
        faces = pd.read_parquet(path)
        faces["video_id"] = [Path(name).stem for name in faces.video]
        runs = [Path(name).parent.name for name in faces.checkpoint]
        faces = faces[np.isin(runs, folder.best.run)].merge(folder.videos, on="video_id")
        if len(faces):
            return faces, ["p_fake"], folder.seen(folder.best)
    faces = read_experiment("frame_scores")
    return faces, [name for name in faces if name.startswith("seed")], "sample"


def read_experiment(name: str) -> pd.DataFrame:
    return pd.read_csv(
        HERE / f"{name}.csv", comment="#", dtype={"video_id": str, "original_id": str}
    )


def compare_encoders(folder: Folder, better: str, worse: str) -> Evidence:
    """The mean loss of each encoder's runs, on the held-out videos that all have scored."""
    best = folder.best
    tables = {
        n: [folder.score(run) for run in best.run[best.encoder == n]] for n in (better, worse)
    }
    if lacking := [name.upper() for name, some in tables.items() if not some]:
        return Evidence(f"no run, trained as the slides say, of {' and '.join(lacking)}")
    common = sorted(set.intersection(*(set(t.index) for some in tables.values() for t in some)))
    if not common:
        return Evidence("no run of one has scored the videos of the other")
    about, each = tables[better][0].loc[common], []
    for some in tables.values():
        each.append(np.mean([losses(about.label, t.loc[common].p_fake) for t in some], axis=0))
    return is_lower(*each, about, folder.seen(best))


for _better, _worse in (("b4", "b3"), ("b5", "b4"), ("b7", "b5"), ("b5", "b6")):
    check(f"{_better.upper()} before {_worse.upper()}")(
        partial(compare_encoders, better=_better, worse=_worse)
    )


@check("EfficientNet")
def efficientnet_is_best(folder: Folder) -> Evidence:
    others = sorted(set(folder.best.encoder) - {"b3", "b4", "b5", "b6", "b7"})
    missing = Evidence("no full run of another family")
    return compare_encoders(folder, "b7", others[0]) if others else missing


@check("ensembles")
def seeds_together_beat_one(folder: Folder) -> Evidence:
    """The largest group of runs that differ in the seed alone, their mean against one of them."""
    alike = ["encoder", "steps", "fold", "augmentation", "batch", "processes", "data"]
    runs = folder.best if len(folder.best) else folder.runs
    groups = [group for _, group in runs.groupby(alike) if group.seed.nunique() > 1]
    require(groups, "no two finished runs differ in the seed alone (notebook 10)")
    group = max(groups, key=len)
    members = [folder.score(run) for run in group.run]
    each = [losses(table.label, table.p_fake) for table in members]
    together = losses(members[0].label, np.mean([table.p_fake for table in members], axis=0))
    found = is_lower(together, np.mean(each, axis=0), members[0], folder.seen(group))
    return found._replace(
        words=f"{len(group)} x {group.encoder.iloc[0]} against one: {found.words}"
    )


@check("motto")
def many_small_beat_one_larger(_: Folder) -> Evidence:
    """At equal time of training: four Lite0 against one Lite2 with twice the steps (notebook 10).
    Of fifteen small ones there are three sets of four, and two of the larger."""
    table = read_experiment("ensembles")
    scores = table.pivot_table(index=["arm", "number"], columns="video_id", values="p_mean")
    about = table.drop_duplicates("video_id").set_index("video_id").loc[scores.columns]
    label, larger = about.label.to_numpy(), scores.loc["larger, longer"].to_numpy()
    small = scores.loc["seed"].to_numpy()[:12].reshape(3, 4, -1).mean(axis=1)
    found = is_lower(losses(label, small).mean(0), losses(label, larger).mean(0), about, "sample")
    return found._replace(words=f"four against one: {found.words}")


@check("label smoothing")
def smoothing_was_best(_: Folder) -> Evidence:
    """Three seeds a value (notebook 08). Intervals that overlap tell nothing apart."""
    rows = read_experiment("encoders").query("seed == 'all'")
    rows = rows[rows.arm.str.startswith("smoothing")].set_index("smoothing")
    own, others = rows.loc[0.01], rows.drop(0.01)
    told = [
        f"{s:g}: {r.log_loss:.3f} ({r.log_loss_low:.3f} to {r.log_loss_high:.3f})"
        for s, r in rows.iterrows()
    ]
    holds = None
    if (own.log_loss_high < others.log_loss_low).all():
        holds = True
    elif (own.log_loss_low > others.log_loss_high).any():
        holds = False
    return Evidence("log loss with " + ", ".join(told), holds, "sample")


@check("clipping")
def clipping_gains_nothing(folder: Folder) -> Evidence:
    """Scores clipped to 0.01 and 0.99 against the same unclipped; only a sure gain refutes."""
    runs = folder.best if len(folder.best) else folder.runs[folder.runs.smoothing > 0]
    require(len(runs), "no finished run")
    run = runs.run.iloc[-1]
    about = folder.score(run)
    clipped = losses(about.label, about.p_fake.clip(0.01, 0.99))
    found = is_lower(losses(about.label, about.p_fake), clipped, about, folder.seen(runs))
    return found._replace(words=f"{run}, unclipped against clipped: {found.words}")


# What generalises, and what was left open


def big_margin_helps(family: str) -> Evidence:
    """Does some margin above 20 % find the family better, where the face keeps its size, surely and
    with all seeds of one sign? Some surely worse and none better refutes it (notebook 12)."""
    rows = read_experiment("margins").query("arm == 'face' and family == @family and margin > 0.2")
    sure = rows[rows.against_20_same_sign.eq(True)]
    better, worse = (sure.against_20_low > 0).sum(), (sure.against_20_high < 0).sum()
    words = f"{len(rows)} margins against 20 %, at the same size of the face: "
    words += f"{better} surely better, {worse} surely worse"
    return Evidence(words, True if better else False if worse else None, "sample")


def is_found(family: str, least: float = 0.5) -> Evidence:
    """Can a detector find the family at 20 %, with an AUC above `least` (notebook 12)?"""
    rows = read_experiment("margins").query("arm == 'input' and margin == 0.2")
    row = rows.set_index("family").loc[family]
    words = f"AUC {row.auc:.2f} ({row.low:.2f} to {row.high:.2f}) after {row.steps} steps; "
    words += f"asked: surely above {least:g}"
    holds = True if row.low > least else None if row.high > 0.5 else False
    return Evidence(words, holds, "sample")


@check("encoding difference")
def a_margin_shows_encoding(_: Folder) -> Evidence:
    return big_margin_helps("encoding")


@check("face warping")
def a_margin_shows_warping(_: Folder) -> Evidence:
    return big_margin_helps("warping")


@check("visual artifacts")
def visual_artifacts_are_found(_: Folder) -> Evidence:
    return is_found("visual", least=0.8)  # "well": better than a detector of a few steps


@check("blending")
def blending_is_found(_: Folder) -> Evidence:
    return is_found("blending")


@check("ResNeSt")
def resnest_was_compared(folder: Folder) -> Evidence:
    """The full experiment's table; a rehearsal shows that it runs, and nothing else."""
    full, rehearsal = HERE / "resnest_against_b7.csv", folder.work.root / "resnest_rehearsal.csv"
    if not full.exists():
        ran = (
            f"{len(pd.read_csv(rehearsal))} arms ran for a few steps"
            if rehearsal.exists()
            else "no run"
        )
        return Evidence(f"{ran}; the experiment is ready")
    rows = pd.read_csv(full).set_index("arm").drop("B7")
    gaps = [
        f"{arm}: {signed(r.minus_b7)} ({signed(r.low)} to {signed(r.high)})"
        for arm, r in rows.iterrows()
    ]
    words = "log loss minus B7's (lower is better): " + "; ".join(gaps)
    tied = ((rows.low < 0) & (rows.high > 0)).all()
    return Evidence(words, None if tied else True, folder.stage)


def look_at_all(folder: Folder) -> pd.DataFrame:
    """The scorecard: statements.csv, and of each topic words, holds, seen_on and verdict."""
    statements, rows = pd.read_csv(STATEMENTS).set_index("topic"), []
    for topic, kind in statements.kind.items():
        try:
            found = CHECKS[topic](folder)
        except (FileNotFoundError, NotEnough) as error:
            found = Evidence(f"nothing yet ({str(error).replace(str(folder.work.root), '')})")
        rows.append(found._asdict() | {"verdict": decide(kind, found)})
    return statements.join(pd.DataFrame(rows, statements.index)).reset_index()


def compare_published(folder: Folder) -> pd.DataFrame:
    """Published scores beside those of the runs that trained as the slides say."""

    def measure(encoder: str, strategy="mean", members=1, augmentation="slides") -> str:
        runs = folder.best[
            (folder.best.encoder == encoder) & (folder.best.augmentation == augmentation)
        ]
        groups = [[folder.score(run, strategy) for run in g.run] for _, g in runs.groupby("fold")]
        group = max(groups, key=len, default=[])
        if len(group) < members:
            return "needs full"
        answers = [table.p_fake for table in group]
        answers = answers if members == 1 else [np.mean(answers, axis=0)]
        score = np.mean([log_loss(group[0].label, p) for p in answers])
        return f"{score:.3f} ({len(group)} runs, {len(group[0])} videos)"

    names = ("b3", "b4", "b5", "b6", "b7")
    rows = [
        (f"one {n.upper()}", f"{ENCODERS[n].published_log_loss:.2f}", measure(n)) for n in names
    ]
    rows.append(("one B5, confident_strategy", "0.22", measure("b5", "confident")))
    rows.append(("15 x B5", "10th place", measure("b5", "confident", 15)))
    hard = measure("b7", "confident", 7, "hard")
    rows.append(("7 x B7, hard augmentation", "3rd, then 1st place", hard))
    rows.append(
        ("the winning entry, private leaderboard", "0.428", "closed: can't be measured again")
    )
    return pd.DataFrame(rows, columns=["what", "published", "measured"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    folder = Folder(args.data, WorkFolder(args.work))
    table = look_at_all(folder)
    report = args.work / "report"
    report.mkdir(exist_ok=True)
    write_csv(report / "scorecard.csv", table)
    write_csv(report / "published.csv", compare_published(folder))
    print(f"stage {folder.stage!r}:", table.verdict.value_counts().to_dict())


if __name__ == "__main__":
    main()
