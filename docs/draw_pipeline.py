"""Draw docs/_static/pipeline.png from the sample:  python docs/draw_pipeline.py"""

from pathlib import Path

import numpy as np

from dfdc_lib import augment, plots
from dfdc_lib.faces import FaceDetector
from dfdc_lib.geometry import add_margin, crop_box
from dfdc_lib.sample import make_sample, read_recipes
from dfdc_lib.ssim import ssim_difference
from dfdc_lib.video import iterate_frames

ROOT = Path(__file__).resolve().parent.parent
SIZE, FRAME = 200, 30


def main() -> None:
    data = make_sample(ROOT / "data" / "sample")
    fake_id = next(
        v for v, r in read_recipes(data).items() if r.get("fake", {}).get("method") == "swap" and is_plain(r)
    )
    fake = next(data.glob(f"*/{fake_id}.mp4"))
    original_id = next(v for v, r in read_recipes(data).items() if r["shot"] == read_recipes(data)[fake_id]["shot"])
    frame, real = (next(iterate_frames(fake.with_stem(v), [FRAME]))[1] for v in (fake_id, original_id))
    faces = FaceDetector().detect_resized([real])[0]
    box = add_margin(faces.boxes[0], 0.2, frame.shape[1], frame.shape[0])
    crop, mask = crop_box(frame, box), ssim_difference(crop_box(real, box), crop_box(frame, box))
    transform = augment.demo_transforms(SIZE, seed=3)
    strip = np.hstack([plots.undo_normalise(transform(image=crop)["image"]) for _ in range(2)])
    figure = plots.draw_pipeline(plots.draw_faces(frame, faces.boxes, faces.landmarks), crop, mask, strip)
    figure.savefig(ROOT / "docs" / "_static" / "pipeline.png", dpi=110)


def is_plain(recipe: dict) -> bool:
    """One person, a wide frame, a manipulation that can be seen without being crude."""
    shot, strength = recipe["shot"], recipe["fake"]["strength"]
    return shot["width"] == 480 and len(shot["identities"]) == 1 and not shot["leaves_frame"] and 0.2 < strength < 0.6


if __name__ == "__main__":
    main()
