"""The scorecard: verdicts follow from evidence, whatever the work folder holds."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
from test_cards import add_run

from dfdc_lib.config import TrainConfig
from dfdc_lib.store import WorkFolder, face_file, read_mask, write_json, write_png
from experiments import scorecard
from experiments.scorecard import Evidence, Folder, decide

ROOT = Path(__file__).resolve().parent.parent
TABLE = pd.read_csv(scorecard.STATEMENTS).set_index("topic")


def test_what_the_statements_name_exists():
    assert set(TABLE.kind) == {"rule", "accuracy"}
    assert TABLE.notna().all(axis=None)
    assert set(TABLE.index) == set(scorecard.CHECKS)
    for name in TABLE.here:
        if name.endswith(".py"):
            assert (ROOT / name).exists()
        else:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(f"dfdc_lib.{module}"), attribute), name


def test_a_verdict_follows_from_kind_evidence_and_place():
    verdicts = {
        ("rule", True, "sample"): "reproduced",
        ("rule", False, "any"): "not reproduced",
        ("accuracy", True, "part"): "rehearsed in demo",
        ("accuracy", True, "DFDC"): "reproduced",
        ("accuracy", False, "sample"): "not reproduced",
        ("accuracy", None, "DFDC"): "tie",
        ("accuracy", None, ""): "needs full",
    }
    for (kind, *found), verdict in verdicts.items():
        assert decide(kind, Evidence("", *found)) == verdict


def test_an_interval_around_zero_is_a_tie():
    rng = np.random.default_rng(0)
    original_id = [f"o{n}" for n in range(40)]
    about = pd.DataFrame({"label": np.tile([0, 1], 20), "original_id": original_id})
    noise = rng.normal(0, 0.1, 40)
    for shift, holds in ((-0.5, True), (0.5, False), (0, None)):
        assert scorecard.is_lower(noise + shift, np.zeros(40), about, "DFDC").holds is holds


def look(data: Path, work: WorkFolder) -> pd.DataFrame:
    return scorecard.look_at_all(Folder(data, work)).set_index("topic")


def test_without_runs_the_rules_stand_and_scores_need_full(small_sample, work_copy):
    table = look(small_sample, work_copy)
    rules = table[table.kind == "rule"].verdict
    assert rules.drop("precision and scale").eq("reproduced").all(), table.words[rules.index]
    accuracy = table[table.kind == "accuracy"].verdict
    assert not accuracy.eq("reproduced").any()
    assert accuracy[["B7 before B5", "ensembles", "clipping", "ResNeSt"]].eq("needs full").all()


def test_own_runs_speak_as_far_as_their_data_reach(small_sample, work_copy):
    """Two parts are not DFDC: such runs only rehearse, unless they speak against the slides."""
    write_json(work_copy.recipe, work_copy.read_recipe() | {"data": "mine"})
    for encoder, wrong in (("b3", 0.8), ("b4", 0.0), ("b5", 1.0), ("b7", 0.0)):
        config = TrainConfig(encoder=encoder, precision="fp16")
        add_run(work_copy, f"{encoder}_0", config, "mine", wrong)
    table = look(small_sample, work_copy)
    assert table.seen_on["B7 before B5"] == "part"
    assert table.verdict["B7 before B5"] == "rehearsed in demo"
    assert table.verdict["B5 before B4"] == "not reproduced"
    assert table.verdict["B5 before B6"] == "needs full"
    assert table.verdict["precision and scale"] == "reproduced"
    published = scorecard.compare_published(Folder(small_sample, work_copy)).set_index("what")
    assert published.published["one B4"] == "0.27"
    assert published.measured["one B4"].startswith("0.105 (1 runs")  # −log 0.9
    assert published.measured["one B6"] == "needs full"


def test_what_is_wrong_on_the_disk_is_not_reproduced(small_sample, work_copy):
    """Each check can say no: a box that moved, a crop of another margin, another mask."""
    fake = Folder(small_sample, work_copy).crops.query("label == 1").iloc[0]
    path = work_copy.masks(fake.video_id) / face_file(fake.frame_idx, fake.face_idx)
    write_png(path, 255 - read_mask(path))
    stored = work_copy.read_boxes(fake.original_id)
    for frame in stored["frames"]:
        frame["boxes"] = [[x + 40 for x in box] for box in frame["boxes"]]
    write_json(work_copy.boxes(fake.original_id), stored)
    verdicts = look(small_sample, work_copy).verdict
    assert verdicts[["detection", "mask"]].eq("not reproduced").all()
    for frame in stored["frames"]:
        frame["boxes"] = [[x0, y0, x1 + 30, y1] for x0, y0, x1, y1 in frame["boxes"]]
    write_json(work_copy.boxes(fake.original_id), stored)
    assert look(small_sample, work_copy).verdict["crop"] == "not reproduced"
