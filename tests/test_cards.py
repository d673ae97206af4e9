"""Runs are known by their records; cards say what is known of them, to people and to model hubs."""

import hashlib
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import given
from hypothesis import strategies as st

from dfdc_lib.config import DEMO_TRAINING, TrainConfig
from dfdc_lib.dataset import read_crops, read_folds
from dfdc_lib.metadata import read_metadata
from dfdc_lib.metrics import draw_groups, log_loss
from dfdc_lib.ops import cards
from dfdc_lib.store import WorkFolder, write_json

SLIDES, TINY = TrainConfig(), replace(DEMO_TRAINING, encoder="tiny")


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    """Intervals themselves are tested elsewhere."""
    few = partial(draw_groups, n_draws=20, seed=0)
    monkeypatch.setattr("dfdc_lib.metrics.draw_groups", lambda groups, *_: few(groups))


def add_run(work: WorkFolder, name: str, config: TrainConfig, trained_on: str, wrong=0.0) -> Path:
    """The records of a finished run that scores 0.1 or 0.9, the share `wrong` of crops wrongly."""
    folder, rows = work.run(name), read_folds(work)
    folder.mkdir(parents=True)
    card = {"encoder": config.encoder, "size": config.input_size, "margin": "0.2"}
    about = {
        "settings": asdict(config),
        "data": hashlib.sha256(work.folds.read_bytes()).hexdigest(),
        "processes": 4,
        "card": card | {"trained_on": trained_on, "procedure": "slides"},
        "versions": {"torch": "2"},
    }
    write_json(folder / "config.json", about)
    held_out = rows[rows.fold == config.fold]
    turned = np.arange(len(held_out)) < wrong * len(held_out)
    held_out = held_out.assign(p_fake=np.where(held_out.label.eq(1) ^ turned, 0.9, 0.1))
    held_out.to_csv(folder / "held_out.csv", index=False)
    return folder


def read_head(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_run_is_known_by_its_records(work_copy):
    assert cards.read_runs(work_copy).empty
    assert cards.read_runs(work_copy).as_slides.dtype == bool
    fp16 = replace(SLIDES, precision="fp16")
    held_out = add_run(work_copy, "b5_0", fp16, "mine") / "held_out.csv"
    about = add_run(work_copy, "old", TINY, "sample") / "config.json"
    old = json.loads(about.read_text())
    del old["settings"]["self_blend"]  # as before there was such a setting
    write_json(about, old)
    work_copy.run("unfinished").mkdir()
    runs = cards.read_runs(work_copy).set_index("run")
    known = runs[["as_slides", "self_blend", "processes", "trained_on"]].T.to_dict("list")
    assert known == {"b5_0": [True, 0, 4, "mine"], "old": [False, 0, 4, "sample"]}
    pd.read_csv(held_out).assign(video_id="null").to_csv(held_out, index=False)
    assert set(read_crops(work_copy.run("b5_0") / "held_out.csv").video_id) == {"null"}


def test_only_the_slides_settings_are_theirs():
    free = ({"encoder": "b7", "batch": 12}, {"seed": 3, "fold": 2}, {"augmentation": "hard"})
    others = ({"steps": 300}, {"optimizer": "adamw"}, {"size": 64}, {"augmentation": "demo"})
    assert all(cards.follows_slides(replace(SLIDES, **change)) for change in free)
    assert not any(cards.follows_slides(replace(SLIDES, **change)) for change in others)


def test_a_model_card_says_to_people_and_hubs_how_good_a_run_is(work_copy):
    path = add_run(work_copy, "b5", SLIDES, "mine", wrong=0.3) / "held_out.csv"
    crops, measured = pd.read_csv(path), cards.measure_run(work_copy, "b5")
    videos = crops.groupby("video_id")[["label", "p_fake"]].mean()
    row = measured.set_index(["strategy", "metric"]).loc["mean", "log loss"]
    assert row.value == pytest.approx(log_loss(videos.label, videos.p_fake))
    assert row.videos == len(videos)
    card = cards.model_card(work_copy, "b5")
    assert "These are the slides' settings" in card
    assert "A rehearsal" not in card
    assert "has changed since" not in card
    head = ModelCard(card).data
    assert (head.datasets, head.model_name) == (["mine"], "b5")
    assert [r.metric_type for r in head.eval_results] == ["log_loss", "roc_auc"] * 2
    assert [r.metric_value for r in head.eval_results] == measured.value.round(4).tolist()
    crops[crops.label == 1].to_csv(path, index=False)
    work_copy.folds.write_text(work_copy.folds.read_text() + "\n")
    changed = cards.model_card(work_copy, "b5")
    assert "has changed since" in changed
    (result,) = read_head(changed)["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == ["log_loss"] * 2  # no AUC
    add_run(work_copy, "tiny", TINY, "sample")
    rehearsal = cards.model_card(work_copy, "tiny")
    assert "A rehearsal" in rehearsal
    assert "These are not the slides' settings" in rehearsal


def test_a_data_card_counts_for_people_and_hubs(work_copy, small_sample, tmp_path):
    text = cards.data_card(work_copy, read_metadata(small_sample), small_sample)
    assert "12 videos in 2 parts: 4 originals and\n8 fakes, of which 8 name their original." in text
    assert "| crop | ok | 12 |" in text
    assert "margin 0.2.\n" in text
    assert "\n\n\n" not in text
    head = DatasetCard(text).data
    assert head.size_categories == ["n<1K"]
    assert "synthetic" in head.tags


@pytest.mark.parametrize("name", ["<script>: \"' #\n---", "null"])
def test_cards_hold_any_name(name, work_copy, small_sample):
    write_json(work_copy.recipe, work_copy.read_recipe() | {"data": name})
    add_run(work_copy, "b5", SLIDES, name)
    about_data = cards.data_card(work_copy, read_metadata(small_sample), small_sample)
    about_model = cards.model_card(work_copy, "b5")
    assert read_head(about_data)["pretty_name"] == name
    assert read_head(about_model)["datasets"] == [name]
    for card in (about_data, about_model):
        assert "<script" not in card.split("---\n", 2)[2]


@given(st.text())
def test_any_text_can_be_quoted(text):
    assert yaml.safe_load(f"{{tags: [{cards.quote(text)}, 1]}}") == {"tags": [text, 1]}
