"""Figures: grids of pictures, boxes, scores. Each function returns a matplotlib figure; none touches the disk.

Blue is real and orange is fake, everywhere and for nothing else: the two stay apart for colour-blind readers. What is
neither (thresholds, people, epochs) is black or grey, told apart by dashes and marks.
"""

import html
from collections.abc import Callable, Sequence

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

REAL, FAKE = "#0072B2", "#D55E00"


def label_colour(label: int) -> str:
    """Blue for 0 (real), orange for 1 (fake)."""
    return FAKE if label else REAL


def show_pictures(
    pictures: Sequence[np.ndarray], titles: Sequence[str], columns: int = 4, width: float = 7.1
) -> Figure:
    """A grid of pictures, each (H, W, 3) uint8 RGB or (H, W) shown as a heat map, with its title above.

    `width` is that of the whole figure, in inches: at 7.1 the titles have the size of the text around them. Raises
    ValueError where there are no pictures, or not as many titles.
    """
    if not len(pictures) or len(pictures) != len(titles):
        raise ValueError(f"{len(pictures)} pictures need as many titles, got {len(titles)}; and one at least")
    columns = min(columns, len(pictures))
    shapes = [picture.shape[0] / picture.shape[1] for picture in pictures]
    heights = [width / columns * max(shapes[i : i + columns]) + 0.3 for i in range(0, len(pictures), columns)]
    figure, axes = plt.subplots(
        len(heights), columns, figsize=(width, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
        axis.set_anchor("N")  # titles of a row stand at one height
    for axis, picture, title in zip(axes.flat, pictures, titles, strict=False):
        axis.imshow(picture, cmap="magma" if picture.ndim == 2 else None, vmin=0, vmax=255)
        axis.set_title(title, fontsize=9)
    return figure


def caption(text: str) -> None:
    """Show the figures that a cell has drawn, and below them a line: whose pictures they are (see `sample.credit`)."""
    from IPython.display import HTML, display

    plt.show()
    display(HTML(f"<p><em>{html.escape(text)}</em></p>"))


def play(draw: Callable[[float], object], values: Sequence[float], shown: Sequence[float], interactive: bool) -> None:
    """Let a reader move a slider over `values` and see `draw(value)`; a headless run draws those of `shown` instead."""

    def step(value: float) -> None:
        draw(value)
        plt.show()

    if not interactive:
        for value in shown:
            step(value)
        return
    from ipywidgets import SelectionSlider, interact

    interact(step, value=SelectionSlider(options=values, value=shown[0], continuous_update=False))


def draw_faces(frame: np.ndarray, boxes: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """A copy of the frame (H, W, 3) with boxes (n, 4) and landmarks (n, 5, 2) drawn in."""
    drawn, thick = frame.copy(), max(frame.shape[1] // 240, 1)
    for box, points in zip(boxes, landmarks, strict=True):
        x0, y0, x1, y1 = (int(v) for v in box)
        cv2.rectangle(drawn, (x0, y0), (x1, y1), (0, 255, 0), thick)
        for x, y in points:
            cv2.circle(drawn, (int(x), int(y)), 2 * thick, (255, 255, 0), -1)
    return drawn


def plot_training(metrics: pd.DataFrame, losses: Sequence[float]) -> Figure:
    """The loss of each step in grey, the mean of each epoch in black at the epoch's middle, against guessing.

    metrics: columns step (the epoch's last), train_loss.
    """
    figure, axis = plt.subplots(figsize=(7.1, 3), layout="constrained")
    middles = (metrics.step + metrics.step.shift(fill_value=0) + 1) / 2
    axis.plot(np.arange(1, len(losses) + 1), losses, color="#999999", linewidth=0.8, label="one step")
    axis.plot(middles, metrics.train_loss, "o-", color="black", label="mean of an epoch")
    axis.axhline(np.log(2), color="black", linewidth=0.8, linestyle="--", label="guessing: log 2 = 0.693")
    axis.set(xlabel="step", ylabel="training loss (log loss)", ylim=(0, None))
    axis.legend(frameon=False, fontsize=9)
    return figure


def plot_timelines(timelines: dict[str, tuple[int, pd.DataFrame]], threshold: float = 0.8) -> Figure:
    """p_fake over the frames of a few videos. timelines: title → (label, table with frame_idx and p_fake)."""
    rows = -(-len(timelines) // 2)
    figure, axes = plt.subplots(
        rows, 2, figsize=(7.1, 2.2 * rows), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (title, (label, faces)) in zip(axes.flat, timelines.items(), strict=False):
        axis.plot(faces.frame_idx, faces.p_fake, "o", color=label_colour(label), markersize=4)
        axis.axhline(threshold, color="black", linewidth=0.8, linestyle="--")
        axis.set_title(title, fontsize=10, color=label_colour(label))
        axis.set_ylim(-0.03, 1.03)
    figure.supxlabel("frame number", fontsize=10)
    figure.supylabel("p_fake of a face", fontsize=10)
    return figure


def plot_people(faces: pd.DataFrame, threshold: float = 0.8) -> Figure:
    """p_fake over the frames of one video, a mark and a grey a person. faces: columns frame_idx, face_idx, p_fake.

    Where several models judged a face, their mean is drawn.
    """
    figure, axis = plt.subplots(figsize=(7.1, 2.6), layout="constrained")
    mean = faces.groupby(["face_idx", "frame_idx"], as_index=False).p_fake.mean()
    for number, (who, seen) in enumerate(mean.groupby("face_idx")):
        style = {"color": ("black", "#777777")[number % 2], "marker": "osD^"[number % 4], "linestyle": "-:"[number % 2]}
        axis.plot(seen.frame_idx, seen.p_fake, markersize=4, linewidth=1, label=f"person {who}", **style)
    axis.axhline(threshold, color="black", linewidth=0.8, linestyle="--")
    axis.set_title(
        f"dashed: {threshold}, above which confident_strategy counts a face as sure", fontsize=9, loc="right"
    )
    axis.set(xlabel="frame number", ylabel="p_fake", ylim=(-0.03, 1.03))
    if 1 < mean.face_idx.nunique() <= 12:  # a crowd's legend would cover the figure
        figure.legend(frameon=False, fontsize=9, ncols=6, loc="outside upper left")
    return figure


def plot_verdicts(groups: dict[str, np.ndarray], threshold: float = 0.5) -> Figure:
    """One dot a video, one row a kind. groups: kind → p_fake of its videos; the kind "original" is drawn as real."""
    figure, axis = plt.subplots(figsize=(7.1, 0.6 * len(groups) + 1.1), layout="constrained")
    for row, (kind, scores) in enumerate(groups.items()):
        spread = row + 0.24 * np.sin(np.arange(len(scores)) * 2.4)
        axis.plot(scores, spread, "o", color=REAL if kind == "original" else FAKE, alpha=0.75, markersize=6)
    axis.axvline(threshold, color="black", linewidth=0.8, linestyle="--")
    axis.set_yticks(range(len(groups)), [f"{kind} ({len(scores)})" for kind, scores in groups.items()])
    axis.set(xlabel="p_fake of the video: 0 = surely real, 1 = surely fake", xlim=(-0.02, 1.02))
    axis.invert_yaxis()
    return figure


def undo_normalise(tensor) -> np.ndarray:
    """A model's input (3, S, S), normalised with ImageNet's mean and spread, back to a picture (S, S, 3) uint8 RGB."""
    mean, spread = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    picture = np.asarray(tensor).transpose(1, 2, 0) * spread + mean
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
