"""A page about one video, as a single HTML file that needs no network and runs no script."""

import base64
import io
import shlex
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from dfdc_lib.augment import valid_transforms
from dfdc_lib.config import PredictConfig
from dfdc_lib.metrics import at_base_rate
from dfdc_lib.model import DeepfakeClassifier
from dfdc_lib.ops.records import make_record
from dfdc_lib.ops.submission import REHEARSAL_WARNING
from dfdc_lib.plots import plot_people, show_pictures, undo_normalise
from dfdc_lib.predict import FACE_COLUMNS, Cut, Scorer, Verdict, cut_crop
from dfdc_lib.rehearsal.sample import credit
from dfdc_lib.store import write_json, write_text
from dfdc_lib.video import iterate_frames, time_code

TEMPLATES = Environment(  # file names and reasons come from outside: all values are escaped
    loader=PackageLoader("dfdc_lib.ops"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {"time_code": time_code, "quote": shlex.quote}


def write_page(
    verdict: Verdict, models: dict[str, Scorer], out: Path, config: PredictConfig = PredictConfig()
) -> Path:
    """Write the page about a video to `out`, and its record beside it, as .json.

    models, config: those that scored it.
    """
    record = make_record(verdict, models, config)
    write_json(out.with_suffix(".json"), record)
    is_rehearsal = any(s.model.card.trained_on == "sample" for s in models.values())
    values: dict = {"verdict": verdict, "record": record, "credit": credit(verdict.video)}
    named = list(zip(models, record["checkpoints"], strict=True))
    values |= {"names_and_checkpoints": named, "record_file": out.with_suffix(".json").name}
    values |= {"warning": REHEARSAL_WARNING if is_rehearsal else "", "suspects": "", "maps": []}
    if verdict.p_fake is not None:
        rates = (0.5, 0.1, 0.01, 0.001)
        values["base_rates"] = {rate: at_base_rate(verdict.p_fake, rate) for rate in rates}
        values["timeline"] = embed(plot_people(verdict.faces))
        crops, maps, titles = explain_suspects(verdict, models, 4)
        titles, values["maps"] = titles + [""] * len(maps), maps
        if crops:  # else no frame can be read again
            values["suspects"] = embed(show_pictures([*crops, *maps], titles, columns=len(crops)))
    return write_text(out, TEMPLATES.get_template("page.html").render(values))


def explain(model: DeepfakeClassifier, crop: torch.Tensor) -> np.ndarray | None:
    """Grad-CAM (arXiv 1610.02391): where the evidence for "fake" lies, (S, S) float32 in [0, 1].

    crop: (3, S, S), normalised. A feature's weight is its mean gradient. After an average and one
    linear layer, as in an EfficientNet, that is the layer's weight, up to a factor. None for an
    encoder that ends differently.
    """
    with torch.inference_mode():
        features = model.encoder.forward_features(crop[None].to(model.fc.weight.device))[0]
        if features.ndim != 3 or len(features) != model.fc.in_features:
            return None
        heat = torch.einsum("c,chw->hw", model.fc.weight[0], features).relu().cpu().numpy()
    heat = cv2.resize(heat - heat.min(), crop.shape[1:])
    return heat / max(heat.max(), 1e-7)


def pick_suspects(faces: pd.DataFrame, n_crops: int) -> pd.DataFrame:
    """The faces with the highest mean p_fake over models, each person's first; by person, time."""
    place = [name for name in FACE_COLUMNS if name != "certainty"]
    mean = faces.groupby(place, as_index=False).p_fake.mean()
    mean = mean.sort_values("p_fake", ascending=False)
    rank = mean.groupby("face_idx").cumcount().clip(upper=1)  # 0: a person's highest
    highest = mean.iloc[np.argsort(rank, kind="stable")].head(n_crops)
    return highest.sort_values(["face_idx", "frame_idx"], ignore_index=True)


def explain_suspects(
    verdict: Verdict, models: dict[str, Scorer], n_crops: int
) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """The most suspicious crops (S, S, 3) uint8 RGB, the same under Grad-CAM, and titles.

    Crops and maps are those of the first model; p_fake is the mean over models.
    """
    model = next(iter(models.values())).model
    cut = Cut.of(model.card, verdict.procedure)
    suspects = pick_suspects(verdict.faces, n_crops)
    frames = dict(iterate_frames(verdict.video, suspects.frame_idx))
    crops, maps, titles = [], [], []
    for row in suspects[suspects.frame_idx.isin(list(frames))].itertuples():
        crop = cut_crop(frames[row.frame_idx], np.array([row.x0, row.y0, row.x1, row.y1]), cut)
        view = valid_transforms(cut.size)(image=crop)["image"]
        crops.append(undo_normalise(view))
        if (heat := explain(model, view)) is not None:
            colours = plt.get_cmap("magma")(heat)[..., :3] * 255
            maps.append((0.5 * crops[-1] + 0.5 * colours).round().astype(np.uint8))
        told = f"{time_code(row.seconds)}, frame {row.frame_idx}\nperson {row.face_idx}, "
        titles.append(f"{told}p_fake {row.p_fake:.2f}")
    return crops, maps, titles


def embed(figure: Figure) -> str:
    """A figure as a data URL, for <img src>."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    plt.close(figure)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
