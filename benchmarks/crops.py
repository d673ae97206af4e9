"""The loader: how fast a core decodes and augments crops, beside the pace of training."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import skimage.data
import torch

from benchmarks.measure import alternate, stamp
from dfdc_lib.augment import train_transforms
from dfdc_lib.blending import FACE, self_blend
from dfdc_lib.store import read_png, write_png

HERE = Path(__file__).parent
CROP_SIZE = 400  # pixels: roughly a face in a 1080p DFDC video


def time_loader(repetitions: int, folder: Path) -> dict[str, float]:
    """Milliseconds per picture on one core: to decode it, blend it with itself and augment it."""
    portrait, path = skimage.data.astronaut()[:CROP_SIZE, :CROP_SIZE], folder / "crop.png"
    # A camera's noise is what makes PNGs slow.
    noisy = portrait + np.random.default_rng(0).normal(0, 2, portrait.shape)
    write_png(path, np.clip(noisy, 0, 255).astype(np.uint8))
    crop, many = read_png(path), range(100)
    rivals = {"decode": lambda: [read_png(path) for _ in many]}
    for size in (300, 380):
        transform = train_transforms(size, seed=0)
        rivals[f"augment_{size}"] = lambda use=transform: [use(image=crop) for _ in many]
    # Of a face that fills the crop.
    landmarks = CROP_SIZE * (0.5 + 0.3 * (FACE - FACE.mean(axis=0)))
    rng = np.random.default_rng(0)
    rivals["self_blend"] = lambda: [self_blend(crop, landmarks, rng) for _ in many]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = alternate(rivals, repetitions)
    torch.set_num_threads(threads)
    return {f"{name}_ms": seconds[name].median() * 1000 / len(many) for name in rivals}


def run(repetitions: int = 3) -> None:
    """Write loader.csv: pictures per second and core, beside those of train_step.csv."""
    with tempfile.TemporaryDirectory() as folder:
        loader = time_loader(repetitions, Path(folder))
    table = pd.read_csv(HERE / "train_step.csv")
    columns = table[["encoder", "ours"]].assign(model_pictures_per_s=table.batch / table.ours_s)
    spent = [loader["decode_ms"] + loader[f"augment_{size}_ms"] for size in table["size"]]
    columns["loader_pictures_per_s_and_core"] = 1000 / np.array(spent)
    columns = columns.join(table[["machine", "date"]]).assign(**loader)
    for name in ("machine", "date"):  # the steps may be from another day
        columns[f"loader_{name}"] = stamp()[name]
    columns.to_csv(HERE / "loader.csv", index=False, float_format="%.4g")
