"""A page about one video: its score, what each person's face scored over time, the most suspicious crops.

The page is one HTML file that needs no network and runs no script.
"""

import base64
import html
import io
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from dfdc_lib import plots
from dfdc_lib.augment import valid_transforms
from dfdc_lib.metrics import at_base_rate
from dfdc_lib.model import DeepfakeClassifier
from dfdc_lib.paths import appear_whole
from dfdc_lib.predict import REHEARSAL_WARNING, Verdict, cut_face
from dfdc_lib.video import iterate_frames

BASE_RATES = (0.5, 0.1, 0.01, 0.001)
STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
body { background: #fff; overflow-wrap: anywhere } img { max-width: 100%; background: #fff; border-radius: 4px }
table { border-collapse: collapse } td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top }
.score { font-size: 2.2rem; margin: .3rem 0 } .warning { border-left: 4px solid #D55E00; padding-left: .8rem }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1b1b1b } }
"""


def write_page(verdict: Verdict, models: dict[str, DeepfakeClassifier], out: Path, n_crops: int = 4) -> Path:
    """Write the page about a video to `out`, whole or not at all. models: name → model, those that judged it."""
    name = html.escape(verdict.video.name)
    parts = [f"<h1>{name}</h1>"]
    if any(model.card.trained_on == "sample" for model in models.values()):
        parts.append(f'<p class="warning"><strong>A rehearsal:</strong> {REHEARSAL_WARNING}.</p>')
    if verdict.p_fake is None:
        parts.append(f"<p>No score. Status <strong>{verdict.status}</strong>: {html.escape(verdict.reason)}.</p>")
    else:
        parts += [_tell_score(verdict), _tell_people(verdict), _show_suspects(verdict, models, n_crops)]
    parts.append(_tell_settings(verdict, models))
    body = "\n".join(parts)
    page = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>\
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n'
    with appear_whole(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(out)


def explain(model: DeepfakeClassifier, crop: torch.Tensor) -> np.ndarray:
    """Grad-CAM (arXiv 1610.02391): where the evidence for "fake" lies. crop (3, S, S) → (S, S) float32 in [0, 1]."""
    from pytorch_grad_cam import GradCAM

    with GradCAM(model=model, target_layers=[model.features]) as cam:
        heat = cam(crop[None].to(model.fc.weight.device), targets=[lambda logit: logit])[0]
    model.zero_grad(set_to_none=True)  # a B7's gradients would keep a quarter of a gigabyte
    return heat


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a heat map (S, S) in [0, 1] over a picture (S, S, 3) uint8 RGB."""
    colours = plt.get_cmap("magma")(heat)[..., :3] * 255
    return (0.5 * picture + 0.5 * colours).round().astype(np.uint8)


def pick_suspects(faces: pd.DataFrame, n_crops: int) -> pd.DataFrame:
    """The faces with the highest mean p_fake over models, by person and time."""
    place = ["frame_idx", "face_idx", "x0", "y0", "x1", "y1"]
    ranked = faces.groupby(place, as_index=False).p_fake.mean().sort_values("p_fake", ascending=False)
    return ranked.head(n_crops).sort_values(["face_idx", "frame_idx"], ignore_index=True)


def explain_suspects(
    verdict: Verdict, models: dict[str, DeepfakeClassifier], n_crops: int
) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """The most suspicious crops as the first model sees them, the same under Grad-CAM, and titles.

    The map is the mean over the models whose crops show the same part of the frame: those of the first one's margin.
    """
    suspects = pick_suspects(verdict.faces, n_crops)
    margin = next(iter(models.values())).card.margin
    models = {name: model for name, model in models.items() if model.card.margin == margin}
    frames = dict(iterate_frames(verdict.video, suspects.frame_idx))
    crops, maps, titles = [], [], []
    for row in suspects[suspects.frame_idx.isin(list(frames))].itertuples():
        size = next(iter(models.values())).card.size
        heats, views = [], []
        for model in models.values():
            cut = cut_face(frames[row.frame_idx], (row.x0, row.y0, row.x1, row.y1), model.card.margin)
            views.append(valid_transforms(model.card.size)(image=cut)["image"])
            heats.append(cv2.resize(explain(model, views[-1]), (size, size)))
        crops.append(plots.undo_normalise(views[0]))
        maps.append(overlay(crops[-1], np.mean(heats, axis=0)))
        titles.append(f"frame {row.frame_idx}, person {row.face_idx}\np_fake {row.p_fake:.2f}")
    return crops, maps, titles


def _tell_score(verdict: Verdict) -> str:
    rows = "".join(
        f"<tr><td>one in {round(1 / rate)}</td><td>{at_base_rate(verdict.p_fake, rate):.1%}</td></tr>"
        for rate in BASE_RATES
    )
    status = (
        ""
        if verdict.status == "ok"
        else f"<p>Status <strong>{verdict.status}</strong>: {html.escape(verdict.reason)}.</p>"
    )
    return f"""<p class="score">p_fake {verdict.p_fake:.3f}</p>{status}
<p>From {verdict.n_faces} faces in {verdict.n_frames} frames. This is a model's opinion and no proof: models err, above
all on kinds of video that they have not learned from. It learned with as many fakes as originals. Where fakes are
rarer, the same score means less:</p>
<table><tr><th>so many videos are fake</th><th>probability that this one is</th></tr>{rows}</table>
<p>(By Bayes' rule, if the model's probabilities are right.)</p>"""


def _tell_people(verdict: Verdict) -> str:
    rows = "".join(
        f"<tr><td>{p.face_idx}</td><td>{p.n_faces}</td><td>{p.p_fake:.3f}</td></tr>"
        for p in verdict.people.itertuples()
    )
    table = f"<table><tr><th>person</th><th>seen in frames</th><th>p_fake</th></tr>{rows}</table>"
    figure = plots.plot_people(verdict.faces)
    return f"<h2>Over time</h2>{_embed(figure, 'p_fake of each face over the frames of the video')}{table}"


def _show_suspects(verdict: Verdict, models: dict[str, DeepfakeClassifier], n_crops: int) -> str:
    crops, maps, titles = explain_suspects(verdict, models, n_crops)
    if not crops:
        return ""
    figure = plots.show_pictures([*crops, *maps], [*titles, *[""] * len(maps)], columns=len(crops))
    picture = _embed(figure, "the most suspicious faces; below each, where the model finds its evidence")
    return f"""<h2>The most suspicious faces</h2>{picture}
<p>Below each face: Grad-CAM, bright where the evidence for "fake" lies. The map is coarse, and scaled for each face
by itself: a bright spot says where, not how much.</p>"""


def _tell_settings(verdict: Verdict, models: dict[str, DeepfakeClassifier]) -> str:
    entries = {"file": str(verdict.video), "faces joined by": f"{verdict.strategy}; models by their mean"}
    for name, model in models.items():
        card = model.card
        entries[name] = f"{card.encoder}, {card.size} px, margin {card.margin}, trained on {card.trained_on}"
    items = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in entries.items())
    return f"<h2>How</h2><dl>{items}</dl>"


def _embed(figure: Figure, text: str) -> str:
    """A figure as an <img> that carries its own data."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=130)
        plt.close(figure)
        return (
            f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
        )
