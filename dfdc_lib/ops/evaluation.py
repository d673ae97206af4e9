"""How good are scores? The field's measures of submissions, with intervals: `dfdc evaluate`.

A draw of the bootstrap takes whole originals: an original and its fakes are no independent videos.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dfdc_lib.ops.results import Results, match_truth, read_results, read_truth
from dfdc_lib.ops.scaling import Scaling, find_scaling, keep_scaling, scale
from dfdc_lib.predict import REHEARSAL_WARNING

METRICS = ("AUC", "EER", "AP", "accuracy", "Brier", "log loss", "false alarms", "found")
GROUP = ["result", "trained_on", "data_set", "method", "level"]
BINS = 10  # of the reliability table


def measure(
    labels: np.ndarray, p_fake: np.ndarray, weights: np.ndarray, threshold: float = 0.5
) -> np.ndarray:
    """METRICS of scores (n,), each counted `weights` (n,) times: (8,) float.

    EER: where the ROC, its points joined by lines, has as many false alarms as misses. accuracy: at
    0.5. false alarms, found: the shares of reals and fakes that reach `threshold`. NaN where a
    class is absent. Notebook 13 derives EER and AP by hand.
    """
    order = np.argsort(-p_fake, kind="stable")
    y, p, w = labels[order], p_fake[order], weights[order]
    last: np.ndarray = np.append(np.diff(p) != 0, True)  # equal scores are one step
    fakes: np.ndarray = np.append(0, np.cumsum(w * y)[last])
    reals: np.ndarray = np.append(0, np.cumsum(w * (1 - y))[last])
    with np.errstate(invalid="ignore"):
        found, alarms = fakes / fakes[-1], reals / reals[-1]
        precision = fakes[1:] / (fakes + reals)[1:]
        above = w * (p >= threshold)
        of_reals, of_fakes = above @ (1 - y) / reals[-1], above @ y / fakes[-1]
    auc = np.trapezoid(found, alarms)
    eer = np.interp(1, found + alarms, alarms) if np.isfinite(auc) else np.nan
    ap = np.sum(np.diff(found) * np.nan_to_num(precision)) if np.isfinite(auc) else np.nan
    right, q = (p >= 0.5) == y, np.clip(np.where(y, p, 1 - p), 1e-15, 1)
    of_all = [np.average(value, weights=w) for value in (right, (p - y) ** 2, -np.log(q))]
    return np.array([auc, eer, ap, *of_all, of_reals, of_fakes])


def draw_intervals(
    values_of: Callable[[np.ndarray], np.ndarray], groups: Iterable, n_draws: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The middle 95 % of what `values_of` weights returns, over draws of whole groups.

    As `metrics.bootstrap_interval`, for many values at once. One group gives NaN.
    """
    codes, names = pd.factorize(np.asarray(groups), sort=True)
    n, rng, drawn = len(names), np.random.default_rng(seed), []
    for _ in range(n_draws):
        counts = np.bincount(rng.integers(n, size=n), minlength=n)
        drawn.append(values_of(counts[codes].astype(float)))
    values = np.array(drawn) * (1 if n > 1 else np.nan)
    some = ~np.isnan(values).all(axis=0)
    bounds = np.full((2, values.shape[1]), np.nan)
    bounds[:, some] = np.nanpercentile(values[:, some], [2.5, 97.5], axis=0)
    return bounds[0], bounds[1]


class Rows(NamedTuple):
    """Scores with their truth: of videos and of frames, TRUTH's columns and score (maybe NaN)."""

    videos: pd.DataFrame
    frames: pd.DataFrame


def join_truth(results: Results, truth: pd.DataFrame) -> tuple[Rows, list[str]]:
    """Put scores beside the truth; return also the names of the videos that have no label."""
    rows = match_truth(results.videos.filename.tolist(), truth)
    if (rows < 0).all():
        raise ValueError(f"no video of {results.name} has a label")
    without = results.videos.filename[rows < 0].tolist()
    given = results.videos[rows >= 0].reset_index(drop=True)
    videos = pd.concat([given, truth.iloc[rows[rows >= 0]].reset_index(drop=True)], axis=1)
    videos["original_id"] = videos.data_set + "/" + videos.original_id
    about = videos.drop(columns=["p_fake", "mean"])
    frames = results.frames.merge(about, on="filename").rename(columns={"p_fake": "score"})
    return Rows(videos.assign(score=videos.p_fake), frames), without


def choose_threshold(table: pd.DataFrame, rate: float) -> float:
    """The lowest threshold that at most a share `rate` of the reals reach; NaN without reals."""
    reals = np.sort(table.score[table.label == 0].dropna())[::-1]
    allowed = int(rate * len(reals) + 1e-9)
    if allowed >= len(reals):
        return 0.0 if len(reals) else float("nan")
    return float(np.nextafter(reals[allowed], 2))


def tabulate(rows: Rows, scaling: dict | None, rate: float, fit_on: str = "") -> Iterator[dict]:
    """Measure each data set, method and level: a line a metric, with its interval and counts.

    Levels: "video" is the score as it was given, "mean of frames" and "frame" are the field's
    conventions, "scaled" is the video's by a scaling. rate: of false alarms, by which thresholds
    are chosen: on the split `fit_on`, which is then not measured, else on the same videos.
    """
    several = rows.videos.data_set.nunique() > 1
    for name in [*["all"] * several, *rows.videos.data_set.unique()]:
        videos, frames = (t if name == "all" else t[t.data_set == name] for t in rows)
        levels = {"video": videos, "mean of frames": videos.assign(score=videos["mean"])}
        levels |= {"frame": frames, "scaled": scale(videos, scaling) if scaling else videos[:0]}
        for level, table in levels.items():
            threshold = choose_threshold(table[table.split == fit_on] if fit_on else table, rate)
            for method in ["all", *sorted(set(table.method) - {""})]:
                given, some = (choose_rows(t, method, fit_on) for t in (videos, table))
                if (level == "video" and len(given)) or some.score.notna().any():
                    about = {"data_set": name, "method": method, "level": level}
                    lines = measure_rows(some, threshold, given.path.nunique())
                    yield from (about | line for line in lines)


def choose_rows(table: pd.DataFrame, method: str, fit_on: str) -> pd.DataFrame:
    """The rows that are measured: a method's fakes, or all, and the reals; not those fitted on."""
    some = (table.label == 0) | (table.method == method) | (method == "all")
    return table[some & ((table.split != fit_on) | (not fit_on))]


def measure_rows(
    table: pd.DataFrame, threshold: float, n_videos: int, n_draws: int = 500
) -> list[dict]:
    """A line a metric: value, low, high (95 %), threshold, and counts.

    n_videos: how many were given. coverage: the share of them with a score. Of those: scores
    (frames, at that level), reals, fakes, originals, people (0 where the data set tells none).
    """
    scored = table.dropna(subset="score").sort_values("score", ascending=False)
    seen = scored.drop_duplicates("path")
    counts = {"videos": n_videos, "coverage": len(seen) / n_videos, "scores": len(scored)}
    counts |= {"reals": int((seen.label == 0).sum()), "fakes": int((seen.label == 1).sum())}
    counts |= {"originals": seen.original_id.nunique(), "people": len(set(seen.person) - {""})}
    labels, p_fake = scored.label.to_numpy(), scored.score.to_numpy(float)
    values = low = high = np.full(len(METRICS), np.nan)
    if len(scored):

        def values_of(weights: np.ndarray) -> np.ndarray:
            return measure(labels, p_fake, weights, threshold)

        values = values_of(np.ones(len(scored)))
        low, high = draw_intervals(values_of, scored.original_id, n_draws)
    found = zip(METRICS, values.tolist(), low.tolist(), high.tolist(), strict=True)
    return [
        {"metric": metric, "value": value, "low": a, "high": b, "threshold": threshold, **counts}
        for metric, value, a, b in found
    ]


def tabulate_reliability(videos: pd.DataFrame, n_draws: int = 500) -> pd.DataFrame:
    """Do as many fakes stand behind a score as it says? One row a bin of p_fake that has videos.

    Columns: bin, n, p_fake (the mean), share (of fakes), low, high (95 %).
    """
    scored = videos.dropna(subset="score")
    labels, p_fake = scored.label.to_numpy(), scored.score.to_numpy(float)
    bins = np.minimum((p_fake * BINS).astype(int), BINS - 1)

    def shares(weights: np.ndarray) -> np.ndarray:
        counts = np.bincount(bins, weights, BINS)
        with np.errstate(invalid="ignore"):
            return np.bincount(bins, weights * labels, BINS) / counts

    low, high = draw_intervals(shares, scored.original_id, n_draws)
    table = pd.DataFrame({"bin": np.arange(BINS), "n": np.bincount(bins, minlength=BINS)})
    ones = np.ones(len(scored))
    with np.errstate(invalid="ignore"):
        table["p_fake"] = np.bincount(bins, p_fake, BINS) / table.n
    return table.assign(share=shares(ones), low=low, high=high)[table.n > 0]


class Evaluation(NamedTuple):
    """What `evaluate` found."""

    table: pd.DataFrame  # GROUP, metric, and what `measure_rows` tells
    reliability: pd.DataFrame  # result, data_set, level, and `tabulate_reliability`'s columns
    truth: pd.DataFrame  # TRUTH, data_set and path of every video that has a label
    notes: list[str]  # what was left out, what was fitted


def evaluate(
    results: Sequence[Path],
    labels: Sequence[Path],
    rate: float = 0.05,
    fit_on: str = "",
    scaling: Scaling = "",
) -> Evaluation:
    """Measure any number of results over any number of data sets.

    rate, fit_on: see `tabulate`. scaling: fit one on that split, and keep it beside the checkpoint;
    one that was kept before is used too. Raises ValueError, MetadataError or DamagedFile.
    """
    if scaling and not fit_on:
        raise ValueError("name the split on which scaling is fitted: --fit-on val")
    scored = [read_results(path) for path in results]
    if len({given.name for given in scored}) < len(scored):
        raise ValueError("a result is given twice")
    sets = [read_truth(source) for source in labels]
    if len({each.data_set[0] for each in sets}) < len(sets):  # two folders of one name
        sets = [each.assign(data_set=str(s)) for each, s in zip(sets, labels, strict=True)]
    truth = pd.concat(sets, ignore_index=True)
    if fit_on and not 0 < (truth.split == fit_on).sum() < len(truth):
        known = ", ".join(sorted(set(truth.split) - {""})) or "none"
        raise ValueError(f"--fit-on takes one of several splits, got {fit_on!r} of {known}")
    lines, bins, notes = [], [], []
    for given in scored:
        rows, without = join_truth(given, truth)
        if without:
            notes.append(f"{given.name}: {len(without)} videos without a label, as {without[0]}")
        if "sample" in given.trained_on.split(" + "):
            notes.append(f"{given.name}: {REHEARSAL_WARNING}")
        if scaling:
            path = keep_scaling(given, rows.videos, scaling, fit_on)
            notes.append(f"{given.name}: {scaling} scaling, fitted on {fit_on}, is kept in {path}")
        found, about = find_scaling(given), {"result": given.name, "trained_on": given.trained_on}
        lines += [about | line for line in tabulate(rows, found, rate, fit_on)]
        rest = rows.videos[rows.videos.split != fit_on] if fit_on else rows.videos
        for name, videos in rest.groupby("data_set"):
            levels = {"video": videos} | ({"scaled": scale(videos, found)} if found else {})
            for level, table in levels.items():
                where = about | {"data_set": name, "level": level}
                bins.append(tabulate_reliability(table).assign(**where))
    return Evaluation(pd.DataFrame(lines), pd.concat(bins, ignore_index=True), truth, notes)
