"""Draw pictures, boxes and scores. Nothing here touches the disk."""

import html
from collections.abc import Callable, Sequence
from itertools import cycle

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dfdc_lib.video import time_code

COLOURS = REAL, FAKE = "#0072B2", "#D55E00"  # by label; colour-blind readers can tell them apart
LINE = {"color": "black", "linewidth": 0.8, "linestyle": "--"}  # of thresholds


def show_pictures(
    pictures: Sequence[np.ndarray], titles: Sequence[str], columns: int = 4, width: float = 7.1
) -> Figure:
    """Show pictures (H, W, 3) uint8 RGB, or (H, W) as heat maps, in a grid with titles.

    width: of the figure, in inches; at 7.1 the titles are as large as the page's text.
    """
    if not len(pictures) or len(pictures) != len(titles):
        counts = f"{len(pictures)} pictures and {len(titles)} titles"
        raise ValueError(f"a grid needs pictures, and a title for each, got {counts}")
    columns = min(columns, len(pictures))
    shapes = [picture.shape[0] / picture.shape[1] for picture in pictures]
    rows = [shapes[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = [width / columns * max(row) + 0.3 for row in rows]
    figure = plt.figure(figsize=(width, sum(heights)), layout="constrained")
    axes = figure.subplots(len(rows), columns, height_ratios=heights, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
        axis.set_anchor("N")  # so that the titles of a row line up
    for axis, picture, title in zip(axes.flat, pictures, titles, strict=False):
        axis.imshow(picture, cmap="magma" if picture.ndim == 2 else None, vmin=0, vmax=255)
        axis.set_title(title, fontsize=9)
    return figure


def caption(text: str) -> None:
    """Show the figures a cell has drawn, with a line below that says whose pictures they are."""
    from IPython.display import HTML, display

    plt.show()
    display(HTML(f"<p><em>{html.escape(text)}</em></p>"))


def play(draw: Callable, values: Sequence, shown: Sequence, interactive: bool) -> None:
    """Let a reader move a slider over `values`; if not `interactive`, draw those in `shown`."""

    def step(value: float) -> None:
        draw(value)
        plt.show()

    if interactive:
        from ipywidgets import SelectionSlider, interact

        slider = SelectionSlider(options=values, value=shown[0], continuous_update=False)
        interact(step, value=slider)
    else:
        for value in shown:
            step(value)


def draw_faces(frame: np.ndarray, boxes: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Draw boxes (n, 4) and landmarks (n, 5, 2) into a copy of the frame (H, W, 3)."""
    drawn, thick = frame.copy(), max(frame.shape[1] // 240, 1)
    for box, points in zip(boxes, landmarks, strict=True):
        x0, y0, x1, y1 = (int(v) for v in box)
        cv2.rectangle(drawn, (x0, y0), (x1, y1), (0, 255, 0), thick)
        for x, y in points:
            cv2.circle(drawn, (int(x), int(y)), 2 * thick, (255, 255, 0), -1)
    return drawn


def plot_training(metrics: pd.DataFrame, losses: Sequence[float]) -> Figure:
    """Plot the loss of each step and epoch. metrics: columns step (an epoch's last), train_loss."""
    figure, axis = plt.subplots(figsize=(7.1, 3), layout="constrained")
    middles = (metrics.step + metrics.step.shift(fill_value=0) + 1) / 2
    steps = np.arange(1, len(losses) + 1)
    axis.plot(steps, losses, color="#999999", linewidth=0.8, label="one step")
    axis.plot(middles, metrics.train_loss, "o-", color="black", label="mean of an epoch")
    axis.axhline(np.log(2), **LINE, label="guessing: log 2 = 0.693")
    axis.set(xlabel="step", ylabel="training loss (log loss)", ylim=(0, None))
    axis.legend(frameon=False, fontsize=9)
    return figure


def plot_people(faces: pd.DataFrame, threshold: float = 0.8) -> Figure:
    """Plot the models' mean p_fake of each person over time.

    faces: columns frame_idx, seconds, face_idx, p_fake.
    """
    figure, axis = plt.subplots(figsize=(7.1, 2.6), layout="constrained")
    mean = faces.groupby(["face_idx", "frame_idx", "seconds"], as_index=False).p_fake.mean()
    styles = cycle([("o-", "black"), ("s:", "#777777"), ("D-", "black"), ("^:", "#777777")])
    for (who, seen), (mark, colour) in zip(mean.groupby("face_idx"), styles, strict=False):
        style = {"color": colour, "markersize": 4, "linewidth": 1, "label": f"person {who}"}
        axis.plot(seen.seconds, seen.p_fake, mark, **style)
    axis.axhline(threshold, **LINE)
    told = f"dashed: {threshold}; above it, confident_strategy counts a face as surely fake"
    axis.set_title(told, fontsize=9, loc="right")
    frames = mean.drop_duplicates("frame_idx").sort_values("frame_idx")
    some = frames.iloc[np.unique(np.linspace(0, len(frames) - 1, 7).round().astype(int))]
    names = [f"{time_code(t)}\n{i}" for t, i in zip(some.seconds, some.frame_idx, strict=True)]
    axis.set_xticks(some.seconds, names, fontsize=9)
    axis.set(xlabel="time and frame number", ylabel="p_fake", ylim=(-0.03, 1.03))
    if 1 < mean.face_idx.nunique() <= 12:  # a crowd's legend would cover the figure
        figure.legend(frameon=False, fontsize=9, ncols=6, loc="outside upper left")
    return figure


def plot_verdicts(groups: dict[str, np.ndarray], threshold: float = 0.5) -> Figure:
    """Plot a dot per video, a row per kind. groups: p_fake by kind; the kind "original" is real."""
    figure, axis = plt.subplots(figsize=(7.1, 0.6 * len(groups) + 1.1), layout="constrained")
    for row, (kind, scores) in enumerate(groups.items()):
        spread = row + 0.24 * np.sin(np.arange(len(scores)) * 2.4)
        axis.plot(scores, spread, "o", color=COLOURS[kind != "original"], alpha=0.75, markersize=6)
    axis.axvline(threshold, **LINE)
    names = [f"{kind} ({len(scores)})" for kind, scores in groups.items()]
    axis.set_yticks(range(len(groups)), names)
    axis.set(xlabel="p_fake of the video: 0 = surely real, 1 = surely fake", xlim=(-0.02, 1.02))
    axis.invert_yaxis()
    return figure


def undo_normalise(tensor) -> np.ndarray:
    """Turn a model's input (3, S, S), normalised for ImageNet, into a picture (S, S, 3) uint8."""
    mean, spread = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    picture = np.asarray(tensor).transpose(1, 2, 0) * spread + mean
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
