"""Detection, preprocessing and prediction against named peers: the tables, and their figure."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from benchmarks import crops, detect, predict, preprocess
from benchmarks.measure import stamp

HERE = Path(__file__).parent
EVERYTHING = ["detect", "preprocess", "predict", "growth", "memory", "crops"]
# Targets on two cores without a GPU: how many times as fast as the peer.
# (benchmark, part of our name, part of the peer's)
TARGETS = {
    ("detect", "openvino", "facenet"): 3,
    ("detect", "torch", "facenet"): 2,
    ("detect", "", "networks"): 1 / 1.4,
    ("preprocess", "", "upstream"): 15,
    ("preprocess", "", "decoding"): 1 / 2,
    ("predict", "openvino bf16", "eager"): 6,
    ("predict", "openvino fp32", "eager"): 4,
}


def find_target(line: dict) -> float | None:
    """The target for a line of the table, if there is one."""
    fits = [
        target
        for (benchmark, ours, peer), target in TARGETS.items()
        if benchmark == line["benchmark"] and ours in line["ours"] and peer in line["peer"]
    ]
    return fits[0] if fits else None


def write_ratios(names: list[str]) -> None:
    """Replace the lines of these benchmarks in ratios.csv."""
    path = HERE / "ratios.csv"
    old = pd.read_csv(path) if path.exists() else pd.DataFrame({"benchmark": []})
    tables = [old[~old.benchmark.isin(names)]] if len(old) else []
    for name in names:
        module = {"detect": detect, "preprocess": preprocess, "predict": predict}[name]
        lines = [line | {"target": find_target(line)} for line in module.run()]
        tables.append(pd.DataFrame(lines).assign(**stamp(*module.PACKAGES)))
        print(tables[-1].drop(columns=["machine", "versions"]).to_string(), flush=True)
    pd.concat(tables).to_csv(path, index=False, float_format="%.4g")


def write_table(name: str, measure: Callable[[], pd.DataFrame]) -> None:
    """Write benchmarks/<name>.csv."""
    table = measure().assign(**stamp(*preprocess.PACKAGES))
    table.to_csv(HERE / f"{name}.csv", index=False, float_format="%.4g")
    some = table.drop(columns=["machine", "versions"]).iloc[:: max(len(table) // 8, 1)]
    print(some.to_string(), flush=True)


def write_site_tables(folder: Path) -> None:
    """The ratios as a reader wants them: against peers, and against lower bounds."""
    ratios = pd.read_csv(HERE / "ratios.csv")
    bound = ratios.peer.str.contains("alone")
    _write_site_table(ratios[~bound], folder / "benchmarks.csv")
    _write_site_table(ratios[bound], folder / "bounds.csv")


TIMES = "{:.2f} ({:.2f} to {:.2f})"


def _write_site_table(ratios: pd.DataFrame, path: Path) -> None:
    lines = [
        {
            "what": line.benchmark,
            "ours": line.ours,
            "against": line.peer,
            "seconds": f"{line.ours_s:.2f} against {line.peer_s:.2f}",
            "times as fast (range)": TIMES.format(line.ratio, line.ratio_low, line.ratio_high),
            "times aimed at": "" if pd.isna(line.target) else f"{line.target:.2g}",
        }
        for line in ratios.itertuples()
    ]
    pd.DataFrame(lines).to_csv(path, index=False)


def draw(path: Path) -> None:
    """Draw how many times as fast as each peer we are, and how the time grows."""
    fig, (left, right) = plt.subplots(
        2, 1, figsize=(7.1, 8), height_ratios=(3, 2), layout="constrained"
    )
    draw_ratios(left)
    draw_growth(right)
    fig.savefig(path, dpi=200)


def draw_ratios(axis: Axes) -> None:
    """Draw ratios.csv: each ratio with its range and its target."""
    ratios = pd.read_csv(HERE / "ratios.csv")
    ratios = ratios[~ratios.peer.str.contains("alone")].iloc[::-1]
    place = range(len(ratios))
    spread = [ratios.ratio - ratios.ratio_low, ratios.ratio_high - ratios.ratio]
    style = {"fmt": "ko", "lw": 1, "capsize": 3, "label": "measured, with range"}
    axis.errorbar(ratios.ratio, place, xerr=spread, **style)
    axis.plot(ratios.target, place, "|", color="#777777", ms=18, mew=3, label="aimed at", zorder=0)
    names = ratios.benchmark + ": " + ratios.ours + "\nagainst " + ratios.peer
    axis.set_yticks(place, names, fontsize=9)
    axis.axvline(1, color="black", lw=0.8, ls=":")
    axis.set(xscale="log", xlabel="times as fast as the peer (dotted: as fast)")
    axis.set_xticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"])
    axis.minorticks_off()
    axis.legend(frameon=False, loc="upper right", fontsize=9)


def draw_growth(axis: Axes) -> None:
    """Draw growth.csv: seconds against multiples of the number of videos, or of frames."""
    growth = pd.read_csv(HERE / "growth.csv")
    styles = ({"marker": "o", "color": "black"}, {"marker": "s", "color": "#777777", "ls": "--"})
    for (kind, table), style in zip(growth.groupby("grows"), styles, strict=True):
        axis.plot(table.times, table.seconds, label=f"more {kind}", **style)
    first = growth.seconds[growth.times == 1].mean()
    style = {"color": "black", "lw": 0.8, "ls": ":", "label": "in proportion", "zorder": 3}
    axis.plot([1, 8], [first, 8 * first], **style)
    axis.set(xscale="log", yscale="log", ylabel="seconds")
    axis.set_xlabel("times as many (1: one 720p video of 75 frames)")
    axis.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axis.set_yticks([0.2, 0.5, 1, 2, 4], ["0.2", "0.5", "1", "2", "4"])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=9)


def run(names: list[str]) -> None:
    """Measure what is named (some of EVERYTHING), write its tables, draw the figure."""
    if ratios := [name for name in EVERYTHING[:3] if name in names]:
        write_ratios(ratios)
    if "predict" in names:
        write_table("stages", predict.measure_stages)
    if "growth" in names:
        write_table("growth", preprocess.measure_growth)
    if "memory" in names:
        write_table("memory", preprocess.measure_memory)
    if "crops" in names:
        crops.run()
    write_site_tables(HERE.parent / "docs" / "_static")
    draw(HERE.parent / "docs" / "_static" / "benchmarks.png")
