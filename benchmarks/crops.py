"""The loader: how fast one core decodes and augments crops, beside what each encoder's training step takes."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import skimage.data
import torch

from benchmarks.measure import alternate, stamp
from dfdc_lib.augment import train_transforms
from dfdc_lib.manipulate import FACE, self_blend
from dfdc_lib.paths import read_png, write_png

HERE = Path(__file__).parent
CROP_SIZE = 400  # pixels: about what a face of a 1080p DFDC video gives


def time_loader(repetitions: int, folder: Path) -> dict[str, float]:
    """Milliseconds for one picture on one core: decoding its PNG, blending it with itself, augmenting it."""
    portrait = skimage.data.astronaut()[:CROP_SIZE, :CROP_SIZE]
    noise = np.random.default_rng(0).normal(0, 2, portrait.shape)  # a camera's: it is what makes PNGs slow
    write_png(folder / "crop.png", np.clip(portrait + noise, 0, 255).astype(np.uint8))
    crop = read_png(folder / "crop.png")
    many, rivals = range(100), {"decode": lambda: [read_png(folder / "crop.png") for _ in many]}
    for size in (300, 380):
        transform = train_transforms(size, seed=0)
        rivals[f"augment_{size}"] = lambda transform=transform: [transform(image=crop) for _ in many]
    rng, landmarks = np.random.default_rng(0), CROP_SIZE * (0.5 + 0.3 * (FACE - FACE.mean(axis=0)))  # fills the crop
    rivals["self_blend"] = lambda: [self_blend(crop, landmarks, rng) for _ in many]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = alternate(rivals, repetitions)
    torch.set_num_threads(threads)
    return {f"{name}_ms": seconds[name].median() * 1000 / len(many) for name in rivals}


def run(repetitions: int = 3) -> None:
    """Write loader.csv: pictures a second and core, beside the pictures a second of train_step.csv."""
    with tempfile.TemporaryDirectory() as folder:
        loader = time_loader(repetitions, Path(folder))
    table = pd.read_csv(HERE / "train_step.csv")
    appetite = table.assign(
        model_pictures_per_s=table.batch / table.ours_s,
        loader_pictures_per_s_and_core=[
            1000 / (loader["decode_ms"] + loader[f"augment_{s}_ms"]) for s in table["size"]
        ],
    )
    columns = ["encoder", "ours", "model_pictures_per_s", "loader_pictures_per_s_and_core", "machine", "date"]
    loader |= {f"loader_{name}": stamp()[name] for name in ("machine", "date")}  # the steps may be of another day
    appetite[columns].assign(**loader).to_csv(HERE / "loader.csv", index=False, float_format="%.4g")
