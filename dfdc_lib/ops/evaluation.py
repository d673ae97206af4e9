"""How good are scores? The field's measures of submissions, with intervals: `dfdc evaluate`.

A bootstrap draws whole originals: an original and its fakes are not independent videos.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dfdc_lib.metrics import draw_groups
from dfdc_lib.ops.results import Results, match_truth, read_results, read_truth
from dfdc_lib.ops.scaling import Scaling, find_scaling, identify, keep_scaling, scale
from dfdc_lib.ops.submission import REHEARSAL_WARNING

METRICS = ("AUC", "EER", "AP", "accuracy", "Brier", "log loss", "false alarms", "found")
GROUP = ["result", "network", "data_set", "method", "level"]
ALL = "all"
BINS = 10  # of the reliability table
Measure = Callable[[np.ndarray], np.ndarray]  # weights (n,) → values


def measure(labels: np.ndarray, p_fake: np.ndarray, threshold: float = 0.5) -> Measure:
    """METRICS of scores (n,), as a function of how often each counts: weights (n,) → (8,) float.

    EER: where the ROC, its points joined by lines, has as many false alarms as misses. accuracy: at
    0.5. false alarms, found: the shares of reals and fakes that reach `threshold`. NaN if a
    class or the threshold is missing. Notebook 13 derives EER and AP by hand.
    """
    order = np.argsort(-p_fake, kind="stable")
    y, p = labels[order].astype(bool), p_fake[order]
    last: np.ndarray = np.append(np.diff(p) != 0, True)  # equal scores are one step
    right, squares = (p >= 0.5) == y, (p - y) ** 2
    losses = -np.log(np.clip(np.where(y, p, 1 - p), 1e-15, 1))
    reached = p >= threshold if np.isfinite(threshold) else np.full(len(p), np.nan)

    def values_of(weights: np.ndarray) -> np.ndarray:
        w = weights[order]
        of_fakes, of_reals = np.where(y, w, 0), np.where(y, 0, w)
        fakes: np.ndarray = np.append(0, np.cumsum(of_fakes)[last])
        reals: np.ndarray = np.append(0, np.cumsum(of_reals)[last])
        with np.errstate(invalid="ignore"):
            found, alarms = fakes / fakes[-1], reals / reals[-1]
            precision = np.nan_to_num(fakes[1:] / (fakes + reals)[1:])
            above = of_reals @ reached / reals[-1], of_fakes @ reached / fakes[-1]
        auc = np.trapezoid(found, alarms)
        both = 1 + 0 * auc  # NaN if a class is missing
        ranks = [
            auc,
            both * np.interp(1, found + alarms, alarms),
            both * np.diff(found) @ precision,
        ]
        return np.array([*ranks, *(w @ v / w.sum() for v in (right, squares, losses)), *above])

    return values_of


def draw_intervals(
    values_of: Measure, groups: Iterable, n_draws: int = 300, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The middle 95 % of what `values_of` weights returns, over draws of whole groups.

    Like `metrics.bootstrap_interval`, but for many values at once. One group gives NaN.
    """
    draws = draw_groups(np.asarray(groups), n_draws, seed)
    values = np.array([values_of(counts.astype(float)) for counts in draws])
    values *= 1 if len(set(groups)) > 1 else np.nan
    some = ~np.isnan(values).all(axis=0)
    bounds = np.full((2, values.shape[1]), np.nan)
    bounds[:, some] = np.nanpercentile(values[:, some], [2.5, 97.5], axis=0)
    return bounds[0], bounds[1]


class Scored(NamedTuple):
    """A result beside the truth: TRUTH's columns, data_set, path and score (maybe NaN) for each
    video, and for each frame."""

    results: Results
    videos: pd.DataFrame
    frames: pd.DataFrame
    notes: list[str]  # what a reader must know about it

    def levels(self, scaling: dict | None) -> dict[str, pd.DataFrame]:
        """The tables of scores by level, without the levels that have none.

        "video" is the score as it was given, "mean of frames" and "frame" are the field's
        conventions, "scaled" is the video's after a scaling.
        """
        videos = self.videos
        levels = {"video": videos, "mean of frames": videos.assign(score=videos["mean"])}
        levels |= {
            "frame": self.frames,
            "scaled": scale(videos, scaling) if scaling else videos[:0],
        }
        return {k: t for k, t in levels.items() if k == "video" or t.score.notna().any()}


def join_truth(results: Results, truth: pd.DataFrame) -> Scored:
    """Put scores beside the truth. Raises ValueError if none has a label."""
    rows = match_truth(results.videos.name.tolist(), truth)
    if (rows < 0).all():
        some = f"{results.videos.name.iloc[0]}; the labels name {truth.path.iloc[0]}"
        raise ValueError(f"no video of {results.name} has a label, e.g. {some}")
    given = results.videos[rows >= 0].set_axis(rows[rows >= 0])
    videos = given.join(truth).sort_index().reset_index(drop=True)  # in the order of the labels
    frames = results.frames.merge(videos.drop(columns=["p_fake", "mean"]), on="name")
    notes = [REHEARSAL_WARNING] if "sample" in results.trained_on else []
    if without := results.videos.name[rows < 0].tolist():
        notes.append(f"{len(without)} videos without a label are left out, e.g. {without[0]}")
    for name, listed in truth.groupby("data_set"):
        here = videos[videos.data_set == name]
        if 0 < len(here) < len(listed):
            notes.append(f"it scored {len(here)} of the {len(listed)} videos of {name}")
        if len(here) and name in results.trained_on:
            notes.append(f"it was trained on {name}, and may have learned some of these videos")
        if here.label.any() and here.original_id.nunique() == len(here):
            notes.append(f"{name} names no originals, so its intervals count each video by itself")
    videos = videos.assign(score=videos.p_fake)
    return Scored(results, videos, frames.rename(columns={"p_fake": "score"}), notes)


def choose_threshold(table: pd.DataFrame, rate: float) -> float:
    """The lowest threshold that at most a share `rate` of the reals reach; NaN without reals."""
    reals = np.sort(table.score[table.label == 0].dropna())[::-1]
    allowed = int(rate * len(reals) + 1e-9)
    if allowed >= len(reals):
        return 0.0 if len(reals) else float("nan")
    return float(np.nextafter(reals[allowed], 2))


def tabulate(levels: dict[str, pd.DataFrame], rate: float, fit_on: str) -> Iterator[dict]:
    """Measure each level, data set and method: a line per metric, with its interval and counts.

    levels: see `Scored.levels`. rate: of false alarms, which sets each level's threshold: over all
    reals of the split `fit_on`, which is then not measured, or else over all that are.
    """
    _, given = split_rows(levels["video"], fit_on)
    sets = list(given.data_set.unique())
    for level, table in levels.items():
        fitting, rest = split_rows(table, fit_on)
        threshold = choose_threshold(fitting if fit_on else rest, rate)
        for name in [*[ALL] * (len(sets) > 1), *sets]:
            for method in [ALL, *sorted(set(given.method[given.data_set == name]) - {""})]:
                about = {"data_set": name, "method": method, "level": level}
                some, videos = (choose_rows(t, name, method) for t in (rest, given))
                lines = measure_rows(some, threshold, videos.path.nunique())
                yield from (about | line for line in lines)


def split_rows(table: pd.DataFrame, fit_on: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows to fit on, of this split, and the rows to measure; without a split, all of them."""
    fitting = (table.split == fit_on) & (fit_on != "")
    return table[fitting], table[~fitting]


def choose_rows(table: pd.DataFrame, data_set: str, method: str) -> pd.DataFrame:
    """A data set's reals and its fakes of one method, or of all."""
    of_set = (table.data_set == data_set) | (data_set == ALL)
    return table[of_set & ((table.label == 0) | (table.method == method) | (method == ALL))]


def measure_rows(table: pd.DataFrame, threshold: float, n_videos: int) -> list[dict]:
    """A line per metric: value, low, high (95 %), threshold, and counts.

    n_videos: how many were given. coverage: the share of them with a score. Of those: scores
    (frames, at that level), reals, fakes, originals, people (0 if the data set names none).
    """
    scored = table.dropna(subset="score")
    seen = scored.drop_duplicates("path")
    counts = {"videos": n_videos, "coverage": len(seen) / n_videos, "scores": len(scored)}
    counts |= {"reals": int((seen.label == 0).sum()), "fakes": int((seen.label == 1).sum())}
    counts |= {"originals": seen.original_id.nunique(), "people": len(set(seen.person) - {""})}
    values = low = high = np.full(len(METRICS), np.nan)
    if len(scored):
        values_of = measure(scored.label.to_numpy(), scored.score.to_numpy(float), threshold)
        values = values_of(np.ones(len(scored)))
        low, high = draw_intervals(values_of, scored.original_id)
    found = zip(METRICS, values.tolist(), low.tolist(), high.tolist(), strict=True)
    return [
        {"metric": metric, "value": value, "low": a, "high": b, "threshold": threshold, **counts}
        for metric, value, a, b in found
    ]


def tabulate_bins(levels: dict[str, pd.DataFrame], fit_on: str) -> Iterator[pd.DataFrame]:
    """`tabulate_reliability` of each data set's scores of whole videos, as given and scaled."""
    for level in ("video", "scaled"):
        if level in levels:
            for name, videos in split_rows(levels[level], fit_on)[1].groupby("data_set"):
                yield tabulate_reliability(videos).assign(data_set=name, level=level)


def tabulate_reliability(videos: pd.DataFrame) -> pd.DataFrame:
    """Are as many videos fake as their scores say? One row per bin of p_fake that has videos.

    Columns: bin, n, p_fake (the mean), share (of fakes), low, high (95 %).
    """
    scored = videos.dropna(subset="score")
    labels, p_fake = scored.label.to_numpy(), scored.score.to_numpy(float)
    bins = np.minimum((p_fake * BINS).astype(int), BINS - 1)

    def shares(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.bincount(bins, weights * labels, BINS) / np.bincount(bins, weights, BINS)

    table = pd.DataFrame({"bin": bins, "n": 1, "p_fake": p_fake})
    table = table.groupby("bin").agg({"n": "sum", "p_fake": "mean"}).reset_index()
    low, high = draw_intervals(shares, scored.original_id) if len(scored) else ([], [])
    values = {"share": shares(np.ones(len(scored))), "low": low, "high": high}
    return table.assign(**{name: np.asarray(v)[table.bin] for name, v in values.items()})


class Evaluation(NamedTuple):
    """What `evaluate` found."""

    table: pd.DataFrame  # GROUP, metric, and what `measure_rows` returns
    reliability: pd.DataFrame  # GROUP without method, and `tabulate_reliability`'s columns
    truth: pd.DataFrame  # TRUTH, data_set and path of every video that has a label
    notes: list[str]  # what a reader must know


def evaluate(
    results: Sequence[Path],
    labels: Sequence[Path],
    rate: float = 0.05,
    fit_on: str = "",
    scaling: Scaling = "",
) -> Evaluation:
    """Measure any number of results over any number of data sets.

    rate, fit_on: see `tabulate`. scaling: fit one on that split, and keep it beside the checkpoint;
    one that was kept before is used too. Raises FileNotFoundError or ValueError.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"a rate of false alarms must lie between 0 and 1, got {rate}")
    given = [read_results(path) for path in results]
    if len({each.name for each in given}) < len(given):
        raise ValueError("a result is given twice")
    truth = read_truths(labels)
    if fit_on and not 0 < (truth.split == fit_on).sum() < len(truth):
        known = ", ".join(sorted(set(truth.split) - {""})) or "none"
        raise ValueError(f"--fit-on must name one of several splits, got {fit_on!r} of {known}")
    scored = [join_truth(each, truth) for each in given]
    notes = [f"{each.results.name}: {note}" for each in scored for note in each.notes]
    notes += fit_scalings(scored, scaling, fit_on) if scaling else []
    lines, bins = [], []
    for each in scored:
        kept = find_scaling(each.results)
        if kept and not scaling:
            place = f"{kept['split']} of {', '.join(kept['data_sets'])}"
            notes.append(f"{each.results.name}: an earlier scaling is used, fitted on {place}")
        about = {"result": each.results.name, "network": each.results.network}
        levels = each.levels(kept)
        lines += [about | line for line in tabulate(levels, rate, fit_on)]
        bins += [table.assign(**about) for table in tabulate_bins(levels, fit_on)]
    if not lines:
        raise ValueError(f"there is nothing to measure besides the split {fit_on}")
    return Evaluation(pd.DataFrame(lines), pd.concat(bins, ignore_index=True), truth, notes)


def read_truths(labels: Sequence[Path]) -> pd.DataFrame:
    """The truth about several data sets; if two share a name, their paths tell them apart."""
    sets = [read_truth(source) for source in labels]
    names = [each.data_set.iloc[0] for each in sets]
    if len(set(names)) < len(names):
        names = list(map(str, labels))
    truth = pd.concat([each.assign(data_set=n) for each, n in zip(sets, names, strict=True)])
    return truth.assign(original_id=truth.data_set + "/" + truth.original_id).reset_index(drop=True)


def fit_scalings(scored: Sequence[Scored], kind: Scaling, fit_on: str) -> list[str]:
    """Fit one scaling for all results of the same networks, and keep it. Says what was done."""
    if not fit_on:
        raise ValueError("name the split to fit scaling on: --fit-on val")
    groups: dict[str, list[Scored]] = {}
    for each in scored:
        groups.setdefault(str(identify(each.results)), []).append(each)
    notes = []
    for several in groups.values():
        results = several[0].results
        videos = pd.concat([split_rows(each.videos, fit_on)[0] for each in several])
        path = keep_scaling(results, videos, kind, fit_on)
        notes.append(
            f"{results.name}: {kind} scaling, fitted on {len(videos)} videos, is in {path}"
        )
    return notes
