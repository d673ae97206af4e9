"""A page about one video; a card about a trained model, and one about the data it learned from.

The page is one HTML file that needs no network and runs no script: the video's score, what each person's face scored
over time, the most suspicious crops. The cards are Markdown. Notebook 11 writes them.
"""

import base64
import hashlib
import html
import io
from dataclasses import asdict, fields, replace
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from dfdc_lib import plots
from dfdc_lib.augment import valid_transforms
from dfdc_lib.config import TrainConfig
from dfdc_lib.dataset import read_crops, read_folds
from dfdc_lib.geometry import cut_face
from dfdc_lib.metrics import at_base_rate, auc, bootstrap_interval, log_loss
from dfdc_lib.model import DeepfakeClassifier
from dfdc_lib.paths import WorkFolder, appear_whole, read_json
from dfdc_lib.predict import REHEARSAL_WARNING, Cut, Verdict
from dfdc_lib.sample import credit
from dfdc_lib.train import score_videos
from dfdc_lib.video import iterate_frames

BASE_RATES = (0.5, 0.1, 0.01, 0.001)
# What may differ between two runs that both train as the slides say.
FREE_SETTINGS = ("encoder", "batch", "accumulate", "fold", "seed", "precision", "augmentation")
STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
body { background: #fff; overflow-wrap: anywhere } img { max-width: 100%; background: #fff; border-radius: 4px }
table { border-collapse: collapse } td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top }
.score { font-size: 2.2rem; margin: .3rem 0 } .warning { border-left: 4px solid #777; padding-left: .8rem }
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
    """The most suspicious crops (S, S, 3) uint8 RGB as the first model sees them, the same under Grad-CAM, and titles.

    The map is the mean over the models whose crops show the same part of the frame: those of the first one's margin.
    """
    suspects = pick_suspects(verdict.faces, n_crops)
    cuts = {name: Cut.of(model, verdict.procedure) for name, model in models.items()}
    margin = next(iter(cuts.values())).margin
    models = {name: model for name, model in models.items() if cuts[name].margin == margin}
    frames = dict(iterate_frames(verdict.video, suspects.frame_idx))
    crops, maps, titles = [], [], []
    for row in suspects[suspects.frame_idx.isin(list(frames))].itertuples():
        size = next(iter(models.values())).card.size
        heats, views = [], []
        for model in models.values():
            cut = cut_face(frames[row.frame_idx], (row.x0, row.y0, row.x1, row.y1), margin)
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
<p><em>{html.escape(credit(verdict.video))}</em></p>
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


RUN_COLUMNS = ["run", *(field.name for field in fields(TrainConfig)), "processes", "trained_on", "margin", "data"]
RUN_COLUMNS += ["versions", "as_slides", "seconds"]
CARD_WORDS = {  # of the sample: True; of other data: False
    True: {
        "model": f"**A rehearsal:** {REHEARSAL_WARNING}.",
        "data": "**Synthetic:** two public-domain portraits, filmed by a synthetic camera and manipulated.",
        "use": "To show that the pipeline works, and nothing else.",
        "limits": "Two people, synthetic pictures, three ways to make a fake: no evidence about other deepfakes.",
        "model licence": "The portraits are in the public domain.",
        "data licence": "Portraits: NASA and US Navy, public domain. All else is generated.",
    },
    False: {
        "model": "",
        "data": "",
        "use": "Research on the kinds of deepfakes that it learned from: one opinion among others; people decide.",
        "limits": "",
        "model licence": "The terms of the data come on top.",
        "data licence": "The terms under which you got the videos. DFDC's, and crops of them, must not be passed on.",
    },
}


def read_runs(work: WorkFolder) -> pd.DataFrame:
    """The finished runs of a work folder, one row each, by name.

    Columns: run; every setting of `config.TrainConfig`; processes; trained_on and margin, from the run's card; data
    (SHA-256 of the folds.csv it read); versions; as_slides (see `follows_slides`); seconds, on the clock from its
    first file to its last, interruptions included. A run without held_out.csv is not finished, and left out.
    """
    rows = [_read_run(path.parent) for path in sorted(work.root.glob("runs/*/held_out.csv"))]
    return pd.DataFrame(rows, columns=RUN_COLUMNS).astype({"as_slides": bool})


def _read_run(folder: Path) -> dict:
    about = read_json(folder / "config.json")
    known = {field.name for field in fields(TrainConfig)}
    config = TrainConfig(**{name: value for name, value in about["settings"].items() if name in known})
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return {
        "run": folder.name,
        **asdict(config),
        "processes": about.get("processes", 1),
        "trained_on": about["card"]["trained_on"],
        "margin": about["card"]["margin"],
        "data": about["data"],
        "versions": versions,
        "as_slides": follows_slides(config),
        "seconds": (folder / "held_out.csv").stat().st_mtime - (folder / "config.json").stat().st_mtime,
    }


def follows_slides(config: TrainConfig) -> bool:
    """Does a run train as the slides say: their steps, optimizer, schedule, smoothing and augmentation?"""
    free = {name: getattr(config, name) for name in FREE_SETTINGS}
    return config == replace(TrainConfig(), **free) and config.augmentation in ("slides", "hard")


def read_held_out(work: WorkFolder, run: str) -> pd.DataFrame:
    """What a finished run says about each crop that it has not seen: the columns of folds.csv, and p_fake."""
    return read_crops(work.run(run) / "held_out.csv")


def judge_run(work: WorkFolder, run: str) -> pd.DataFrame:
    """Log loss and AUC of a run over its held-out videos: one row a strategy and metric, with a 95 % interval.

    Columns: strategy, metric, value, low, high, videos. Intervals: bootstrap over originals.
    """
    crops, lines = read_held_out(work, run), []
    for strategy in ("mean", "confident"):
        videos = score_videos(crops, strategy)
        given = (videos.label.to_numpy(), videos.p_fake.to_numpy())
        for name, metric in (("log loss", log_loss), ("AUC", auc)):
            low, high = bootstrap_interval(metric, *given, videos.original_id, n_draws=300)
            lines.append((strategy, name, metric(*given), low, high, len(videos)))
    return pd.DataFrame(lines, columns=["strategy", "metric", "value", "low", "high", "videos"])


def model_card(work: WorkFolder, run: str) -> str:
    """Markdown about a finished run: what it is for, what it learned from, how good it is, where it ends."""
    about = _read_run(work.run(run))
    rows, judged = read_folds(work), judge_run(work, run)
    seen = rows[rows.fold != about["fold"]]
    config = {field.name: about[field.name] for field in fields(TrainConfig)}
    words = CARD_WORDS[about["trained_on"] == "sample"]
    changed = "" if _is_current(work, about) else "**folds.csv has changed since: these counts may be others.**"
    return f"""# Model card: {run}

{words["model"]}

**What it is.** {about["encoder"]}, {TrainConfig(**config).input_size} px, one output: the probability that a face was
manipulated. Crops have a margin of {about["margin"]}. Checkpoint: `runs/{run}/last.pt`.

**Intended use.** {words["use"]}
Not for accusing anybody, and not as a proof.

**Trained on.** {about["trained_on"]}: {_count(seen)}. Fold {about["fold"]} was held out. {changed}
SHA-256 of folds.csv: `{about["data"]}`

**How.** {", ".join(f"{name} {value}" for name, value in config.items())}; {about["processes"]} process(es).
{"These are the slides' settings." if about["as_slides"] else "These are not the slides' settings."}
Versions: {about["versions"]}.

**How good.** Over held-out videos of the same data set, 95 % by bootstrap over originals:

{_markdown(judged.round(3))}

The epoch was not chosen by these videos: `last.pt` is the end of training. Whoever compares runs by them, chooses by
them.

**Limits.** {words["limits"]}
What the training data do not hold, it does not know: other methods, other cameras, stronger compression. It learned
from as many fakes as originals; where fakes are rarer, a score means less. How it errs by sex, age or skin of those
who are seen was not measured.

**Licence.** The code: MIT. Weights that began as pretrained ones have those' terms too (the run does not record it).
{words["model licence"]}
"""


def data_card(work: WorkFolder, table: pd.DataFrame, folder: Path) -> str:
    """Markdown about the data: how much, from where, what became of it. table: of `read_metadata(folder)`."""
    source, rows = work.read_source(), read_folds(work)
    status = pd.read_csv(work.status, dtype={"video_id": str})
    here = sum((Path(folder) / file).exists() for file in table.file)
    words = CARD_WORDS[source["trained_on"] == "sample"]
    by_status = status.groupby(["stage", "status"], sort=False).size().rename("videos").reset_index()
    by_fold = rows.groupby("fold").agg(
        parts=("part", "nunique"), originals=("original_id", "nunique"), videos=("video_id", "nunique"),
        crops=("label", "size"), fake=("label", "mean"),
    )  # fmt: skip
    settings = ", ".join(f"{name} {value}" for name, value in source["settings"].items())
    return f"""# Data card: {source["trained_on"]}

{words["data"]}

**What it is.** {len(table)} videos in {table.part.nunique()} parts: {(table.label == 0).sum()} originals and
{(table.label == 1).sum()} fakes. {here} of the files are here. Every fake names its original.

**What was made of it.** {_count(rows)}: {rows.video_id.nunique() / len(table):.1%} of the listed videos have a crop.
Settings: {settings}.

{_markdown(by_status)}

**Folds.** By part (of one part alone, by original), so that an original and its fakes always share one.

{_markdown(by_fold.round(3).reset_index())}

**Limits.** {words["limits"]}
Videos that are not `ok` are missing from training, and may not be missing by chance: faces turned away, dark scenes.

**Licence.** {words["data licence"]}
"""


def write_card(path: Path, text: str) -> Path:
    """Write a card, whole or not at all; runs of empty lines become one."""
    lines = text.splitlines()
    kept = [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]
    with appear_whole(path) as temporary:
        temporary.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return Path(path)


def _count(rows: pd.DataFrame) -> str:
    reals = (rows.label == 0).sum()
    return (
        f"{len(rows)} crops ({reals} real) of {rows.video_id.nunique()} videos, "
        f"of {rows.original_id.nunique()} originals"
    )


def _is_current(work: WorkFolder, about: dict) -> bool:
    return hashlib.sha256(work.folds.read_bytes()).hexdigest() == about["data"]


def _markdown(table: pd.DataFrame) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(str(value) for value in line) + " |" for line in lines)
