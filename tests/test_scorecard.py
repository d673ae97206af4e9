"""Notebook 11: runs are known by their records, verdicts follow from evidence, cards say what is known."""

import hashlib
import importlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest

from dfdc_lib.config import DEMO_TRAINING, TrainConfig
from dfdc_lib.dataset import read_folds
from dfdc_lib.metadata import read_metadata
from dfdc_lib.metrics import log_loss
from dfdc_lib.paths import WorkFolder, write_json
from dfdc_lib.report import data_card, follows_slides, judge_run, model_card, read_held_out, read_runs, write_card

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "11_reproduction_report.ipynb"
STATEMENTS = pd.read_csv(NOTEBOOK.parent / "11_statements.csv").set_index("topic")


def add_run(work: WorkFolder, name: str, config: TrainConfig, trained_on: str, wrong: float) -> Path:
    """The records of a finished run that says 0.1 and 0.9, and the opposite of the share `wrong` of all crops."""
    folder, rows = work.run(name), read_folds(work)
    folder.mkdir(parents=True)
    card = {"encoder": config.encoder, "size": config.input_size, "margin": 0.2, "trained_on": trained_on}
    data = hashlib.sha256(work.folds.read_bytes()).hexdigest()
    about = {"settings": asdict(config), "data": data, "processes": 4, "card": card, "versions": {"torch": "2"}}
    write_json(folder / "config.json", about)
    held_out = rows[rows.fold == config.fold]
    turned = np.arange(len(held_out)) < wrong * len(held_out)
    held_out.assign(p_fake=np.where(held_out.label.eq(1) ^ turned, 0.9, 0.1)).to_csv(
        folder / "held_out.csv", index=False
    )
    return folder


def test_a_run_is_known_by_its_records(work_copy):
    assert read_runs(work_copy).empty
    assert read_runs(work_copy).as_slides.dtype == bool
    add_run(work_copy, "b5_0", replace(TrainConfig(), precision="fp16"), "mine", 0)
    folder = add_run(work_copy, "old", DEMO_TRAINING, "sample", 0)
    about = json.loads((folder / "config.json").read_text())
    del about["settings"]["self_blend"], about["processes"]  # as before there were such settings
    write_json(folder / "config.json", about)
    (work_copy.run("unfinished")).mkdir()
    runs = read_runs(work_copy).set_index("run")
    assert runs.index.tolist() == ["b5_0", "old"]
    assert runs.as_slides.tolist() == [True, False]
    assert runs.self_blend.tolist() == [0, 0]
    assert runs.processes.tolist() == [4, 1]
    assert runs.trained_on.tolist() == ["mine", "sample"]


def test_names_stay_names(work_copy):
    add_run(work_copy, "b5_0", TrainConfig(), "mine", 0.3)
    path = work_copy.run("b5_0") / "held_out.csv"
    table = pd.read_csv(path)
    table.assign(video_id="null").to_csv(path, index=False)
    assert set(read_held_out(work_copy, "b5_0").video_id) == {"null"}


def test_only_the_slides_settings_are_theirs():
    slides = TrainConfig()
    for free in ({"encoder": "b7"}, {"seed": 3}, {"fold": 2}, {"batch": 12}, {"augmentation": "hard"}):
        assert follows_slides(replace(slides, **free))
    for other in ({"steps": 300}, {"optimizer": "adamw"}, {"smoothing": 0.05}, {"augmentation": "demo"}, {"size": 64}):
        assert not follows_slides(replace(slides, **other))


def test_a_run_is_judged_over_its_videos(work_copy):
    add_run(work_copy, "b5_0", TrainConfig(), "mine", 0.3)
    table = judge_run(work_copy, "b5_0").set_index(["strategy", "metric"])
    videos = read_held_out(work_copy, "b5_0").groupby("video_id")[["label", "p_fake"]].mean()
    row = table.loc["mean", "log loss"]
    assert row.value == pytest.approx(log_loss(videos.label, videos.p_fake))
    assert row.low <= row.value <= row.high
    assert row.videos == len(videos)


def test_cards_say_what_is_a_rehearsal_and_what_has_changed(work_copy, small_sample, tmp_path):
    add_run(work_copy, "tiny", DEMO_TRAINING, "sample", 0)
    add_run(work_copy, "b5", TrainConfig(), "mine", 0)
    tiny, b5 = model_card(work_copy, "tiny"), model_card(work_copy, "b5")
    assert "A rehearsal" in tiny
    assert "not the slides' settings" in tiny
    assert "A rehearsal" not in b5
    assert "These are the slides' settings" in b5
    assert "has changed since" not in b5
    work_copy.folds.write_text(work_copy.folds.read_text() + "\n")
    assert "has changed since" in model_card(work_copy, "b5")
    about_data = data_card(work_copy, read_metadata(small_sample), small_sample)
    assert "12 videos in 2 parts: 4 originals and\n8 fakes. 12 of the files are here." in about_data
    assert "| crop | ok | 12 |" in about_data
    written = write_card(tmp_path / "card.md", "a\n\n\n\n| b |\n| c |").read_text()
    assert written == "a\n\n| b |\n| c |\n"


def test_what_the_statements_name_exists():
    assert set(STATEMENTS.kind) == {"rule", "accuracy"}
    assert STATEMENTS.notna().all(axis=None)
    for name in STATEMENTS.here:
        if name.endswith(".py"):
            assert (NOTEBOOK.parent.parent / name).exists()
        else:
            module, attribute = name.split(".")
            assert hasattr(importlib.import_module(f"dfdc_lib.{module}"), attribute), name


def write_report(data: Path, work: WorkFolder, tmp_path: Path) -> pd.DataFrame:
    """Execute the notebook; return its scorecard."""
    values = {"DATA": str(data), "WORK": str(work.root)}
    executed = tmp_path / "executed.ipynb"
    papermill.execute_notebook(
        NOTEBOOK, executed, values, cwd=NOTEBOOK.parent, kernel_name="python3", progress_bar=False, start_timeout=600
    )
    assert (work.root / "report" / "data_card.md").exists()
    return pd.read_csv(work.root / "report" / "scorecard.csv").set_index("topic")


@pytest.mark.slow
def test_without_runs_the_rules_stand_and_scores_need_full(small_sample, work_copy, tmp_path):
    scorecard = write_report(small_sample, work_copy, tmp_path)
    rules = scorecard[scorecard.kind == "rule"].verdict
    assert rules.drop("precision and scale").eq("reproduced").all()
    accuracy = scorecard[scorecard.kind == "accuracy"].verdict
    assert not accuracy.eq("reproduced").any()
    assert accuracy[["B7 before B5", "ensembles", "clipping", "ResNeSt"]].eq("needs full").all()
    assert not (work_copy.root / "report" / "model_card.md").exists()


@pytest.mark.slow
def test_own_runs_speak_as_far_as_their_data_reach(small_sample, work_copy, tmp_path):
    """Two parts are not DFDC: what such runs show is a rehearsal, unless they speak against the slides."""
    write_json(work_copy.source, work_copy.read_source() | {"trained_on": "mine"})
    for encoder, wrong in (("b3", 0.8), ("b4", 0.0), ("b5", 1.0), ("b7", 0.0)):
        add_run(work_copy, f"{encoder}_0", TrainConfig(encoder=encoder, precision="fp16"), "mine", wrong)
    scorecard = write_report(small_sample, work_copy, tmp_path)
    assert scorecard.seen_on["B7 before B5"] == "part"
    assert scorecard.verdict["B7 before B5"] == "rehearsed in demo"
    assert scorecard.verdict["B5 before B4"] == "not reproduced"
    assert scorecard.verdict["B5 before B6"] == "needs full"
    assert scorecard.verdict["precision and scale"] == "reproduced"
    assert "b7, 380 px" in (work_copy.root / "report" / "model_card.md").read_text()


@pytest.mark.slow
def test_an_empty_work_folder_names_the_notebook_to_run(small_sample, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="run 04_ssim_masks first"):
        write_report(small_sample, WorkFolder(tmp_path / "empty"), tmp_path)
