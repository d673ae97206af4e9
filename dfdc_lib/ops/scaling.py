"""Turn scores into better probabilities: one slope and offset of their logits, fitted on a split.

They are kept in a file beside the checkpoint, whose own bytes stay as they are.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from dfdc_lib.ops.results import Results
from dfdc_lib.store import read_record, write_json

Scaling = Literal["", "temperature", "platt"]


def fit_scaling(kind: Scaling, labels: np.ndarray, p_fake: np.ndarray) -> tuple[float, float]:
    """The slope and offset of the logit that give the lowest log loss.

    "temperature" has no offset (arXiv 1706.04599). Labels are softened a little, as Platt did
    (1999), so that scores that separate the classes have a slope too. Raises ValueError.
    """
    n_fakes, n_reals = int(labels.sum()), int((1 - labels).sum())
    if not n_fakes or not n_reals:
        raise ValueError(f"scaling needs fakes and reals, got {n_fakes} and {n_reals}")
    soft = np.where(labels == 1, (n_fakes + 1) / (n_fakes + 2), 1 / (n_reals + 2))
    model = LogisticRegression(C=np.inf, fit_intercept=kind == "platt", tol=1e-8, max_iter=1000)
    logit = np.tile(to_logit(p_fake), 2)[:, None]
    model.fit(logit, np.repeat([1, 0], len(soft)), np.concatenate([soft, 1 - soft]))
    return float(model.coef_[0, 0]), float(model.intercept_[0]) if kind == "platt" else 0.0


def to_logit(p_fake) -> np.ndarray:
    """The logit of scores, which are kept away from 0 and 1."""
    p = np.clip(np.asarray(p_fake, float), 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


def scale(videos: pd.DataFrame, scaling: dict) -> pd.DataFrame:
    """The videos with scaled scores."""
    logit = scaling["slope"] * to_logit(videos.p_fake) + scaling["offset"]
    return videos.assign(score=1 / (1 + np.exp(-logit)))


def keep_scaling(results: Results, videos: pd.DataFrame, kind: Scaling, split: str) -> Path:
    """Fit a scaling on these videos; write it beside the first checkpoint. Raises ValueError.

    split: which videos they are, for the record. An earlier scaling is replaced.
    """
    if not results.checkpoints:
        raise ValueError(f"a scaling is kept beside its checkpoints, but {results.name} names none")
    some = videos.dropna(subset="p_fake")
    slope, offset = fit_scaling(kind, some.label.to_numpy(), some.p_fake.to_numpy())
    about: dict = {"kind": kind, "slope": slope, "offset": offset, "split": split}
    about |= {"videos": len(some), "data_sets": sorted(set(some.data_set))}
    write_json(path := scaling_file(results), about | identify(results))
    return path


def scaling_file(results: Results) -> Path:
    """Where a scaling is kept: beside the first checkpoint."""
    return Path(f"{results.checkpoints[0]}.scaling.json")


def find_scaling(results: Results) -> dict | None:
    """The scaling that was fitted for these checkpoints and settings, if one was."""
    if not results.checkpoints or not scaling_file(results).exists():
        return None
    names = {"kind", "slope", "offset", "split", "data_sets", "checkpoints", "config"}
    kept = read_record(scaling_file(results), names, "delete it, and fit it again")
    return kept if identify(results).items() <= kept.items() else None


def identify(results: Results) -> dict:
    """What a scaling belongs to: the checkpoints' digests, and how their scores were joined."""
    return {name: results.settings.get(name) for name in ("checkpoints", "config")}
