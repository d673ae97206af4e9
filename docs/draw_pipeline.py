"""Draw docs/_static/pipeline.png from the sample:  python docs/draw_pipeline.py"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from dfdc_lib import augment, plots
from dfdc_lib.config import MARGINS
from dfdc_lib.faces import FaceDetector
from dfdc_lib.geometry import add_margin, crop_box, isotropic_resize, pad_to_square
from dfdc_lib.rehearsal.sample import make_sample, read_recipes
from dfdc_lib.ssim import ssim_difference
from dfdc_lib.video import iterate_frames

ROOT = Path(__file__).resolve().parent.parent
SIZE, FRAME = 200, 30
STEPS = ["1  detect", "2  crop", "3  mask (training)", "4  augment (training)"]
STEPS += ["5  score", "6  join"]


def main() -> None:
    data = make_sample(ROOT / "data" / "sample")
    recipes = read_recipes(data)
    drawn = {v: r for v, r in recipes.items() if r.get("fake", {}).get("method") == "autoencoder"}
    fake_id = next(video_id for video_id, recipe in drawn.items() if is_plain(recipe))
    fake = next(data.glob(f"*/{fake_id}.mp4"))
    original_id = next(v for v, r in recipes.items() if r["shot"] == recipes[fake_id]["shot"])
    frame, real = (
        next(iterate_frames(fake.with_stem(v), [FRAME]))[1] for v in (fake_id, original_id)
    )
    faces = FaceDetector().detect_resized([real])[0]
    box = add_margin(faces.boxes[0], MARGINS["slides"], frame.shape[1], frame.shape[0])
    crop, mask = crop_box(frame, box), ssim_difference(crop_box(real, box), crop_box(frame, box))
    marked = plots.draw_faces(frame, faces.boxes, faces.landmarks)
    seen = crop_box(marked, square((0, 0, frame.shape[1], frame.shape[0]), frame, box))
    transform = augment.demo_transforms(SIZE, seed=3)
    draws = [plots.undo_normalise(transform(image=crop)["image"]) for _ in range(4)]
    four = np.vstack([np.hstack(draws[:2]), np.hstack(draws[2:])])
    figure = draw(seen, crop, mask, four)
    figure.savefig(ROOT / "docs" / "_static" / "pipeline.png", dpi=192)


def is_plain(recipe: dict) -> bool:
    """One person, a wide frame, a manipulation that can be seen without being crude."""
    shot, strength = recipe["shot"], recipe["fake"]["strength"]
    return (
        shot["width"] == 480
        and len(shot["identities"]) == 1
        and not shot["leaves_frame"]
        and 0.2 < strength < 0.6
    )


def square(box: tuple, frame: np.ndarray, around: tuple) -> tuple[int, int, int, int]:
    """The largest square inside a box, around the middle of another one, kept in the frame."""
    side = min(box[2] - box[0], box[3] - box[1])
    x0 = int(np.clip((around[0] + around[2] - side) / 2, 0, frame.shape[1] - side))
    y0 = int(np.clip((around[1] + around[3] - side) / 2, 0, frame.shape[0] - side))
    return x0, y0, x0 + side, y0 + side


def draw(
    frame: np.ndarray, crop: np.ndarray, mask: np.ndarray, augmented: np.ndarray
) -> plt.Figure:
    """Six squares of one size, with titles that can be read on a phone.

    frame, augmented (S, S, 3), crop (H, W, 3) uint8 RGB; mask (H, W) uint8. The scores explain, and
    are not measured.
    """
    figure, axes = plt.subplots(2, 3, figsize=(7.5, 5.7), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)
    pictures = (frame, crop, mask, augmented, None, None)
    for axis, title, picture in zip(axes.flat, STEPS, pictures, strict=True):
        axis.set_title(title, fontsize=14, loc="left", pad=7)
        axis.axis("off")
        axis.set_box_aspect(1)
        if picture is not None:
            padded = pad_to_square(isotropic_resize(picture, 420), 420)
            axis.imshow(padded, cmap="magma", vmin=0, vmax=255)
    draw_network(axes[1, 1])
    draw_joining(axes[1, 2])
    return figure


def draw_network(axis: Axes) -> None:
    for i, height in enumerate((0.86, 0.66, 0.46, 0.3)):
        place = (0.04 + 0.16 * i, 0.5 - height / 2)
        axis.add_patch(plt.Rectangle(place, 0.11, height, color="black", alpha=0.75 - 0.17 * i))
    axis.text(0.67, 0.5, "→ 0.93", va="center", fontsize=15)
    axis.set(xlim=(0, 1), ylim=(0, 1))


def draw_joining(axis: Axes) -> None:
    scores = 0.84 + 0.1 * np.sin(np.arange(32)) - 0.5 * (np.arange(32) % 9 == 4)
    axis.bar(np.arange(32), scores, color=np.where(scores > 0.8, plots.FAKE, "#BBBBBB"))
    axis.plot([-1, 32], [0.8, 0.8], color="black", linewidth=1, linestyle="--")
    axis.text(32.2, 0.8, "0.8", fontsize=12, va="center")
    axis.text(-0.5, 1.05, f"{(scores > 0.8).sum()} of 32 sure: fake", fontsize=13)
    axis.set(xlim=(-1, 37), ylim=(0, 1.2))


if __name__ == "__main__":
    main()
