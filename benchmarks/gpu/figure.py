"""The figure of docs/gpu.md, from the tables that are there."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

RIVALS = {"bare step": "k_", "ours": "ko", "original's loop": "kx"}


def draw(tables: Path, path: Path) -> None:
    """Draw training and prediction, if both were measured."""
    training, predict = tables / "training.csv", tables / "predict.csv"
    if not (training.exists() and predict.exists()):
        return  # the time was over
    figure, (above, below) = plt.subplots(2, 1, figsize=(7.1, 6.4), layout="constrained")
    draw_training(above, pd.read_csv(training).drop_duplicates("encoder").sort_values("encoder"))
    draw_prediction(below, pd.read_csv(predict))
    figure.savefig(path, dpi=200)
    plt.close(figure)


def draw_training(axis: Axes, table: pd.DataFrame) -> None:
    """Pictures a second of each encoder: ours between the least step and the original's loop."""
    for name, style in RIVALS.items():
        axis.plot(
            range(len(table)), table[name], style, label=name, markersize=14 if "_" in style else 6
        )
    names = table.encoder + "\n" + table["size"].astype(str) + " px"
    axis.set_xticks(range(len(table)), names)
    axis.set(ylabel="training, pictures a second", ylim=(0, None), xlim=(-0.5, len(table) - 0.5))
    axis.legend(frameon=False)


def draw_prediction(axis: Axes, table: pd.DataFrame) -> None:
    """Videos a second against decoding processes, and the original's procedure."""
    ours = table[table["decoding processes"] > 0].sort_values("decoding processes")
    for (count, rows), style in zip(ours.groupby("networks"), ("ko-", "ks--"), strict=False):
        label = f"{count} network" + "s" * (count > 1)
        axis.plot(rows["decoding processes"], rows["videos/s"], style, label=label)
    original = table[table["decoding processes"] == 0]["videos/s"].max()
    axis.axhline(original, color="#777777", ls=":", label="the original's procedure, 1 network")
    axis.set(xlabel="decoding processes", ylabel="scoring, videos a second", ylim=(0, None))
    axis.set_xticks(sorted(ours["decoding processes"].unique()))
    axis.legend(frameon=False, loc="upper left")
