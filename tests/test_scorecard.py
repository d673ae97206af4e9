"""Notebook 14: verdicts follow from evidence, whatever the work folder holds."""

import importlib
from pathlib import Path

import pandas as pd
import papermill
import pytest
from test_cards import add_run

from dfdc_lib.config import TrainConfig
from dfdc_lib.store import WorkFolder, write_json

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "14_reproduction_report.ipynb"
STATEMENTS = pd.read_csv(NOTEBOOK.parent / "14_statements.csv").set_index("topic")


def test_what_the_statements_name_exists():
    assert set(STATEMENTS.kind) == {"rule", "accuracy"}
    assert STATEMENTS.notna().all(axis=None)
    for name in STATEMENTS.here:
        if name.endswith(".py"):
            assert (NOTEBOOK.parent.parent / name).exists()
        else:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(f"dfdc_lib.{module}"), attribute), name


def write_report(data: Path, work: WorkFolder, tmp_path: Path) -> pd.DataFrame:
    """Execute the notebook; return its scorecard."""
    values = {"DATA": str(data), "WORK": str(work.root)}
    how = {"kernel_name": "python3", "progress_bar": False, "start_timeout": 600}
    where = tmp_path / "executed.ipynb"
    papermill.execute_notebook(NOTEBOOK, where, values, cwd=NOTEBOOK.parent, **how)
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
    """Two parts are not DFDC: such runs only rehearse, unless they speak against the slides."""
    write_json(work_copy.recipe, work_copy.read_recipe() | {"data": "mine"})
    for encoder, wrong in (("b3", 0.8), ("b4", 0.0), ("b5", 1.0), ("b7", 0.0)):
        config = TrainConfig(encoder=encoder, precision="fp16")
        add_run(work_copy, f"{encoder}_0", config, "mine", wrong)
    scorecard = write_report(small_sample, work_copy, tmp_path)
    assert scorecard.seen_on["B7 before B5"] == "part"
    assert scorecard.verdict["B7 before B5"] == "rehearsed in demo"
    assert scorecard.verdict["B5 before B4"] == "not reproduced"
    assert scorecard.verdict["B5 before B6"] == "needs full"
    assert scorecard.verdict["precision and scale"] == "reproduced"
    assert "b7, 380 px" in (work_copy.root / "report" / "model_card.md").read_text()


@pytest.mark.slow
def test_an_empty_work_folder_names_the_notebook_to_run(small_sample, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="run 05_ssim_masks first"):
        write_report(small_sample, WorkFolder(tmp_path / "empty"), tmp_path)
