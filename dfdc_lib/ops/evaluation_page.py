"""An evaluation as JSON, CSV and a page that needs no network, with the generalisation card."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dfdc_lib.ops.evaluation import ALL, GROUP, METRICS, Evaluation
from dfdc_lib.ops.pages import TEMPLATES, embed
from dfdc_lib.plots import LINE
from dfdc_lib.store import write_csv, write_json, write_text

MARKS = ("o", "s", "D", "^", "v")  # of results, in figures


def tell(line, value: str = "value") -> str:
    """A value with its interval, as tables show it. line: has the value, low and high."""
    number = getattr(line, value)
    if np.isnan(number):
        return "–"
    interval = "" if np.isnan(line.low) else f" ({line.low:.3f} to {line.high:.3f})"
    return f"{number:.3f}{interval}"


def describe_evaluation(table: pd.DataFrame) -> str:
    """The main measures of whole videos, as a table of text."""
    whole = table[table.level.isin(["video", "scaled"])]
    whole = whole.assign(told=[tell(line) for line in whole.itertuples()])
    wide = whole.pivot_table("told", GROUP, "metric", aggfunc="first", sort=False)
    wide = wide[["AUC", "EER", "AP", "log loss"]].join(whole.groupby(GROUP).coverage.first())
    shown = wide.reset_index()
    alone = [name for name in GROUP if shown[name].nunique() == 1]
    head = ", ".join(f"{name.replace('_', ' ')} {shown[name].iloc[0]}" for name in alone)
    rows = shown.drop(columns=alone)
    return f"{head}\n{rows.to_string(index=False, formatters={'coverage': '{:.0%}'.format})}"


def make_card(table: pd.DataFrame, metric: str = "AUC") -> pd.DataFrame:
    """Network by test set: each cell has the metric of whole videos, coverage and counts.

    Results of the same networks share a row if they are for different sets.
    """
    cells = table[(table.level == "video") & (table.method == ALL) & (table.metric == metric)]
    again = cells.duplicated(["network", "data_set"], keep=False)
    rows = cells.network.mask(again, cells.network + ": " + cells.result)
    told = [
        f"{tell(c)}; {c.coverage:.0%} of {c.videos} videos, {c.originals} originals"
        + (f", {c.people} people" if c.people else "")
        for c in cells.itertuples()
    ]
    cells = cells.assign(told=told, trained=rows)
    card = cells.pivot_table("told", "trained", "data_set", aggfunc="first", sort=False)
    return card.rename_axis(index="trained on", columns=None).fillna("–")


def plot_intervals(table: pd.DataFrame, metric: str = "AUC") -> Figure:
    """A metric of whole videos with its interval: a row per set and method, a mark per result."""
    lines = table[(table.level == "video") & (table.metric == metric)]
    rows = lines[["data_set", "method"]].drop_duplicates().reset_index(drop=True)
    figure, axis = plt.subplots(figsize=(7.1, 0.35 * len(rows) + 1.2), layout="constrained")
    for number, (name, own) in enumerate(lines.groupby("result", sort=False)):
        own = rows.merge(own, "left", ["data_set", "method"])
        places = np.arange(len(rows)) + 0.15 * number
        ends = np.abs(own[["low", "high"]].to_numpy().T - own.value.to_numpy())
        mark = MARKS[number % len(MARKS)]
        axis.errorbar(own.value, places, xerr=ends, fmt=mark, color="black", label=name, capsize=2)
    axis.axvline(0.5, **LINE)
    names = [f"{row.data_set}: {row.method}" for row in rows.itertuples()]
    axis.set_yticks(range(len(rows)), names, fontsize=9)
    axis.set(xlabel=f"{metric} with its 95 % interval (dashed: guessing)", xlim=(None, 1.01))
    axis.invert_yaxis()
    if lines.result.nunique() > 1:
        figure.legend(frameon=False, fontsize=8, loc="outside upper left")
    return figure


def plot_reliability(bins: pd.DataFrame) -> Figure:
    """The share of fakes behind each score: a panel per set. bins: `Evaluation.reliability`."""
    sets = list(bins.data_set.unique())
    figure, axes = plt.subplots(
        1, len(sets), figsize=(max(3.6, 2.4 * len(sets)), 3.4), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, data_set in zip(axes.flat, sets, strict=True):
        groups = bins[bins.data_set == data_set].groupby(["result", "level"], sort=False)
        for number, ((name, level), own) in enumerate(groups):
            ends = np.abs(own[["low", "high"]].to_numpy().T - own.share.to_numpy())
            style = {"fmt": f"{MARKS[number % len(MARKS)]}-", "capsize": 2, "linewidth": 1}
            colour = "black" if level == "video" else "#777777"
            label = name if level == "video" else f"{name}, scaled"
            axis.errorbar(own.p_fake, own.share, yerr=ends, color=colour, label=label, **style)
        axis.plot([0, 1], [0, 1], **LINE)
        axis.set(xlabel="p_fake, mean of a bin", title=data_set, xlim=(0, 1), ylim=(-0.02, 1.02))
    axes[0, 0].set_ylabel("share of fakes")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower left")
    return figure


def to_records(table: pd.DataFrame | None) -> list[dict] | None:
    """A table in a form that JSON takes: NaN becomes null."""
    return (
        None
        if table is None
        else table.astype(object).where(table.notna(), None).to_dict("records")
    )


def write_evaluation(
    found: Evaluation,
    folder: Path,
    rate: float,
    fit_on: str = "",
    leaks: tuple[pd.DataFrame, int] | None = None,
) -> Path:
    """Write evaluation.csv, .json and .html into a folder; return the page's path.

    rate, fit_on: as `evaluate` took them. leaks: of `find_leaks`; None if nobody looked for them.
    """
    write_csv(folder / "evaluation.csv", found.table)
    pairs, unreadable = leaks or (None, 0)
    stored = {"rows": found.table, "reliability": found.reliability, "leaks": pairs}
    plain: dict = {name: to_records(each) for name, each in stored.items()}
    write_json(folder / "evaluation.json", plain | {"notes": found.notes})
    values = {"found": found, "rate": rate, "fit_on": fit_on, "metrics": METRICS, "tell": tell}
    values |= {"leaks": pairs, "unreadable": unreadable}
    values["cards"] = {"AUC": make_card(found.table), "EER": make_card(found.table, "EER")}
    values["intervals"] = embed(plot_intervals(found.table))
    values["calibration"] = embed(plot_reliability(found.reliability))
    page = TEMPLATES.get_template("evaluation.html").render(values)
    return write_text(folder / "evaluation.html", page)
