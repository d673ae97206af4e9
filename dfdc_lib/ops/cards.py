"""Cards about a trained network and about its data: Markdown, with the YAML that hubs read.

The words are in templates/; the numbers come from a work folder.
"""

from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup

from dfdc_lib.config import STAGES, TrainConfig
from dfdc_lib.dataset import read_crops, read_folds
from dfdc_lib.metadata import is_own
from dfdc_lib.metrics import auc, bootstrap_interval, log_loss
from dfdc_lib.ops.pages import TEMPLATES
from dfdc_lib.ops.pipeline import read_status
from dfdc_lib.ops.submission import REHEARSAL_WARNING
from dfdc_lib.store import WorkFolder, digest_file, read_json
from dfdc_lib.train import score_videos

SETTINGS = [field.name for field in fields(TrainConfig)]
ABOUT = ("run", "processes", "trained_on", "margin", "data", "versions", "as_slides", "seconds")
# What may differ between two runs that both train as the slides do.
FREE_SETTINGS = ("encoder", "batch", "accumulate", "fold", "seed", "precision", "augmentation")
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "n>1M")  # as hubs name them


def read_runs(work: WorkFolder) -> pd.DataFrame:
    """The finished runs of a work folder (those with a held_out.csv), one row each, by name.

    Columns: ABOUT and SETTINGS. data: SHA-256 of the folds.csv that the run read; as_slides: see
    `follows_slides`; seconds: from its first file to its last, interruptions included.
    """
    rows = [read_run(path.parent) for path in sorted(work.root.glob("runs/*/held_out.csv"))]
    return pd.DataFrame(rows, columns=[*ABOUT, *SETTINGS]).astype({"as_slides": bool})


def read_run(folder: Path) -> dict:
    """What is known about a finished run, by the names of ABOUT and SETTINGS."""
    about = read_json(folder / "config.json")
    config = TrainConfig(**about["settings"])
    began, ended = ((folder / n).stat().st_mtime for n in ("config.json", "held_out.csv"))
    return asdict(config) | {
        "run": folder.name,
        "processes": about["processes"],
        "trained_on": about["card"]["trained_on"],
        "margin": about["card"]["margin"],
        "data": about["data"],
        "versions": ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        "as_slides": follows_slides(config),
        "seconds": ended - began,
    }


def follows_slides(config: TrainConfig) -> bool:
    """Does a run have the slides' steps, optimizer, schedule, smoothing and augmentation?"""
    free = {name: getattr(config, name) for name in FREE_SETTINGS}
    return config == replace(TrainConfig(), **free) and config.augmentation in ("slides", "hard")


def measure_run(work: WorkFolder, run: str) -> pd.DataFrame:
    """Log loss and AUC of a run over its held-out videos: a row per strategy and metric.

    Columns: strategy, metric, value, low, high (95 %, bootstrap over originals), videos.
    """
    crops, lines = read_crops(work.run(run) / "held_out.csv"), []
    for strategy in ("mean", "confident"):
        videos = score_videos(crops, strategy)
        given = (videos.label.to_numpy(), videos.p_fake.to_numpy())
        for name, metric in (("log loss", log_loss), ("AUC", auc)):
            low, high = bootstrap_interval(metric, *given, videos.original_id, n_draws=300)
            lines.append((strategy, name, metric(*given), low, high, len(videos)))
    return pd.DataFrame(lines, columns=["strategy", "metric", "value", "low", "high", "videos"])


def model_card(work: WorkFolder, run: str) -> str:
    """Markdown about a finished run: its use, its training, its scores, its limits."""
    about, rows = read_run(work.run(run)), read_folds(work)
    settings = {name: about[name] for name in SETTINGS}
    return TEMPLATES.get_template("model_card.md").render(
        about=about,
        settings=settings,
        size=TrainConfig(**settings).input_size,
        is_sample=about["trained_on"] == "sample",
        warning=REHEARSAL_WARNING,
        seen=count_crops(rows[rows.fold != about["fold"]]),
        changed=digest_file(work.folds) != about["data"],
        scores=measure_run(work, run),
        quote=quote,
    )


def data_card(work: WorkFolder, table: pd.DataFrame, folder: Path) -> str:
    """Markdown about the data, and what became of it. table: of `read_metadata(folder)`."""
    recipe, rows = work.read_recipe(), read_folds(work)
    lines = sorted(read_status(work).values(), key=lambda line: STAGES.index(line.stage))
    folds = rows.groupby("fold")[["part", "original_id", "video_id"]].nunique()
    by_fold = rows.groupby("fold").label.agg(["size", "mean"])
    return TEMPLATES.get_template("data_card.md").render(
        recipe=recipe,
        is_sample=recipe["data"] == "sample",
        table=table,
        size=SIZES[np.digitize(len(table), [1e3, 1e4, 1e5, 1e6])],
        n_named=((table.label == 1) & ~is_own(table)).sum(),
        n_here=sum((Path(folder) / file).exists() for file in table.file),
        crops=count_crops(rows),
        coverage=rows.video_id.nunique() / len(table),
        statuses=Counter((line.stage, line.status) for line in lines),
        folds=folds.join(by_fold),
        quote=quote,
    )


def count_crops(rows: pd.DataFrame) -> str:
    """How much a table of crops holds, in words."""
    videos, originals = rows.video_id.nunique(), rows.original_id.nunique()
    n_real = (rows.label == 0).sum()
    return f"{len(rows)} crops ({n_real} real) of {videos} videos, from {originals} originals"


def quote(text: str) -> Markup:
    """A name as YAML writes it in double quotes, whatever its characters."""
    dumped = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf"))
    return Markup(dumped.strip())
