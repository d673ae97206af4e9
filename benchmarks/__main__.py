"""Measure against named peers, write the tables and draw the plot that the site shows.

    python -m benchmarks all                       everything below but train_step (about 15 minutes on two cores)
    python -m benchmarks detect preprocess …       some of it: detect, preprocess, predict, growth, memory, crops
    python -m benchmarks scale                     the bookkeeping of all 119,154 videos, simulated (about 15 minutes,
                                                   3 GB of disk and 7 million names in it)

Each ratio comes from one run in which the rivals take turns. Run it on a machine with nothing else to do.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from benchmarks import crops, detect, predict, preprocess, scale
from benchmarks.measure import stamp

HERE = Path(__file__).parent
# What was aimed at on two cores without a GPU: how many times as fast as the peer, or the share of its time.
TARGETS = {
    ("detect", "openvino", "facenet"): 3, ("detect", "torch", "facenet"): 2, ("detect", "", "networks"): 1 / 1.4,
    ("preprocess", "", "upstream"): 15, ("preprocess", "", "decoding"): 1 / 2,
    ("predict", "openvino bf16", "eager"): 6, ("predict", "openvino fp32", "eager"): 4,
}  # fmt: skip


def find_target(line: dict) -> float | None:
    """The target of a line of the table, where there is one."""
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
    print(table.drop(columns=["machine", "versions"]).iloc[:: max(len(table) // 8, 1)].to_string(), flush=True)


def write_site_tables(folder: Path) -> None:
    """The ratios as a reader wants them: against peers, and against what can't be beaten."""
    ratios = pd.read_csv(HERE / "ratios.csv")
    bound = ratios.peer.str.contains("alone")
    _write_site_table(ratios[~bound], folder / "benchmarks.csv")
    _write_site_table(ratios[bound], folder / "bounds.csv")


def _write_site_table(ratios: pd.DataFrame, path: Path) -> None:
    table = pd.DataFrame(
        {
            "what": ratios.benchmark,
            "ours": ratios.ours,
            "against": ratios.peer,
            "seconds": [
                f"{ours:.2f} against {peer:.2f}" for ours, peer in zip(ratios.ours_s, ratios.peer_s, strict=True)
            ],
            "times as fast (range)": [
                f"{ratio:.2f} ({low:.2f} to {high:.2f})"
                for ratio, low, high in zip(ratios.ratio, ratios.ratio_low, ratios.ratio_high, strict=True)
            ],
            "times aimed at": ["" if pd.isna(target) else f"{target:.2g}" for target in ratios.target],
        }
    )
    table.to_csv(path, index=False)


def draw(path: Path) -> None:
    """How many times faster than each peer, and how the time grows."""
    ratios = pd.read_csv(HERE / "ratios.csv")
    ratios = ratios[~ratios.peer.str.contains("alone")].iloc[::-1]
    fig, (left, right) = plt.subplots(2, 1, figsize=(7.1, 8), height_ratios=(3, 2), layout="constrained")
    place = range(len(ratios))
    spread = [ratios.ratio - ratios.ratio_low, ratios.ratio_high - ratios.ratio]
    left.errorbar(ratios.ratio, place, xerr=spread, fmt="ko", lw=1, capsize=3, label="measured, with range")
    left.plot(ratios.target, place, "|", color="#777777", ms=18, mew=3, label="aimed at", zorder=0)
    names = [f"{benchmark}: {ours}\nagainst {peer}" for benchmark, ours, peer in zip(
        ratios.benchmark, ratios.ours, ratios.peer, strict=True)]  # fmt: skip
    left.set_yticks(place, names, fontsize=9)
    left.axvline(1, color="black", lw=0.8, ls=":")
    left.set(xscale="log", xlabel="times as fast as the peer (dotted: as fast)")
    left.set_xticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"])
    left.minorticks_off()
    left.legend(frameon=False, loc="lower right", fontsize=9)
    growth = pd.read_csv(HERE / "growth.csv")
    styles = ({"marker": "o", "color": "black"}, {"marker": "s", "color": "#777777", "ls": "--"})
    for (kind, table), style in zip(growth.groupby("grows"), styles, strict=True):
        right.plot(table.times, table.seconds, label=f"more {kind}", **style)
    first = growth.seconds[growth.times == 1].mean()
    right.plot([1, 8], [first, 8 * first], color="black", lw=0.8, ls=":", label="in proportion", zorder=3)
    right.set(xscale="log", yscale="log", xlabel="times as many (1: one 720p video of 75 frames)", ylabel="seconds")
    right.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    right.set_yticks([0.2, 0.5, 1, 2, 4], ["0.2", "0.5", "1", "2", "4"])
    right.minorticks_off()
    right.legend(frameon=False, fontsize=9)
    fig.savefig(path, dpi=150)


def main(names: list[str]) -> int:
    """Run what is named."""
    if names == ["scale"]:
        return scale.run()
    everything = ["detect", "preprocess", "predict", "growth", "memory", "crops"]
    chosen = everything if names == ["all"] else names
    if not chosen or not set(chosen) <= set(everything):
        print(__doc__, file=sys.stderr)
        return 2
    if ratios := [name for name in everything[:3] if name in chosen]:
        write_ratios(ratios)
    if "predict" in chosen:
        write_table("stages", predict.measure_stages)
    if "growth" in chosen:
        write_table("growth", preprocess.measure_growth)
    if "memory" in chosen:
        write_table("memory", preprocess.measure_memory)
    if "crops" in chosen:
        crops.run()
    write_site_tables(HERE.parent / "docs" / "_static")
    draw(HERE.parent / "docs" / "_static" / "benchmarks.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
