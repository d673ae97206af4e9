"""What does each difference between upstream's code and the slides do to a score? Writes
experiments/procedures.csv.

    python -m experiments.procedures

Ten minutes on two cores. Videos of the sample are scored by a B7 whose weights follow a formula
(doctor.formula_weights): it knows nothing about fakes, but uses the same details of a crop as a
trained one. Its last layer is scaled so that its scores spread: the logits of these crops have a
mean of 0 and a standard deviation of 2. Each line is a video under upstream's procedure with one
step done differently; `change` is what that does to the video's p_fake.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from benchmarks.measure import stamp
from dfdc_lib.aggregate import confident_strategy
from dfdc_lib.augment import valid_transforms
from dfdc_lib.config import INFERENCE_THRESHOLDS, MARGINS, Margin
from dfdc_lib.faces import FaceDetector, resize_for_detection
from dfdc_lib.fast.scorers import make_scorer
from dfdc_lib.geometry import cut_face, detector_scale, isotropic_resize, spread_indices
from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import DeepfakeClassifier
from dfdc_lib.ops.doctor import formula_weights
from dfdc_lib.rehearsal.sample import make_sample
from dfdc_lib.video import iterate_frames, probe

TABLE = Path(__file__).with_suffix(".csv")
VIDEOS, FRAMES = 8, 16


def halve(frame: np.ndarray, procedure: str = "upstream") -> tuple[np.ndarray, float]:
    """The detector's input and its scale: halved by Pillow, as upstream, or by the slides' rule."""
    scale = 0.5 if procedure == "upstream" else detector_scale(*frame.shape[1::-1])
    return resize_for_detection(frame, procedure), scale


def halve_by_opencv(frame: np.ndarray) -> tuple[np.ndarray, float]:
    return cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), 0.5


def round_indices(n_total: int, n_wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, n_total - 1, min(n_total, n_wanted)).round().astype(int))


def round_sides(crop: np.ndarray, size: int) -> np.ndarray:
    factor = size / max(crop.shape[:2])
    sides = [round(side * factor) for side in crop.shape[1::-1]]
    return cv2.resize(crop, sides, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


@dataclass(frozen=True)
class Steps:
    """From a video to crops. The defaults are upstream's."""

    spread: Callable = spread_indices
    shrink: Callable = halve
    margin: Margin = MARGINS["upstream"]
    resize: Callable = isotropic_resize

    def cut(self, path: Path, detector: FaceDetector, size: int) -> torch.Tensor:
        """The crops of a video as a network reads them: (n, 3, size, size)."""
        crops, transform = [], valid_transforms(size)
        for _, frame in iterate_frames(path, self.spread(probe(path).n_frames, FRAMES)):
            picture, scale = self.shrink(frame)
            for box in detector.detect([picture])[0].scaled(1 / scale).boxes:
                crops.append(
                    transform(image=self.resize(cut_face(frame, box, self.margin), size))["image"]
                )
        return torch.stack(crops)


UPSTREAM = Steps()
DIFFERENCES = {
    "none": UPSTREAM,
    "frame numbers rounded, not cut": replace(UPSTREAM, spread=round_indices),
    "halved by OpenCV (area), not by Pillow": replace(UPSTREAM, shrink=halve_by_opencv),
    "boxes to a fraction of a pixel, not whole": replace(UPSTREAM, margin=Margin(1 / 3)),
    "the crop's shorter side rounded, not cut": replace(UPSTREAM, resize=round_sides),
    "the detector's input by the slides' rule": replace(
        UPSTREAM, shrink=partial(halve, procedure="slides")
    ),
    "a margin of 20 %": replace(UPSTREAM, margin=MARGINS["slides"]),
    "the slides' procedure": Steps(
        shrink=partial(halve, procedure="slides"), margin=MARGINS["slides"]
    ),
}


def spread_scores(model: DeepfakeClassifier, crops: torch.Tensor) -> DeepfakeClassifier:
    """Give it weights from a formula; its logits of these crops have mean 0 and deviation 2."""
    model.load_state_dict(formula_weights(model))
    logits = make_scorer(model, precision="fp32")(crops).logit()
    with torch.no_grad():
        scale = 2 / logits.std()
        model.fc.bias.copy_((model.fc.bias - logits.mean()) * scale)
        model.fc.weight *= scale
    return model


def main() -> None:
    """Score each video in each way; write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/sample"))
    data = make_sample(parser.parse_args().data, workers=os.cpu_count() or 1)
    files = read_metadata(data).file
    paths = [data / file for file in files[:: len(files) // VIDEOS][:VIDEOS]]
    detector, size = FaceDetector(INFERENCE_THRESHOLDS), DeepfakeClassifier("b7").card.size
    upstream = {path: UPSTREAM.cut(path, detector, size) for path in paths}
    some = torch.cat([crops[:4] for crops in upstream.values()])
    model, rows = spread_scores(DeepfakeClassifier("b7").eval(), some), []
    score = make_scorer(model, precision="fp32")
    for difference, steps in DIFFERENCES.items():
        for path in paths:
            crops = upstream[path] if steps == UPSTREAM else steps.cut(path, detector, size)
            scores = score(crops).numpy()
            rows.append((difference, path.stem, len(scores), confident_strategy(scores)))
        print(difference, flush=True)
    table = pd.DataFrame(rows, columns=["difference", "video_id", "n_faces", "p_fake"])
    table["change"] = table.p_fake - table.video_id.map(
        table[table.difference == "none"].set_index("video_id").p_fake
    )
    table.assign(**stamp("timm", "facenet-pytorch", "opencv-python-headless", "pillow")).to_csv(
        TABLE, index=False, float_format="%.5f"
    )


if __name__ == "__main__":
    main()
