"""The experiment that chooses the preset `transfer`: what has chosen it is never reported."""

import shutil

import numpy as np
import pandas as pd
import pytest

from dfdc_lib.config import DEMO_TRAINING, PRESETS
from dfdc_lib.dataset import read_folds
from dfdc_lib.rehearsal import sample
from experiments import transfer
from experiments.training import leave_out


def test_the_second_sample_has_other_settings_and_every_method_everywhere():
    first, second = sample.plan(4, 16, 48, transfer.FIRST_SEED), transfer.plan_second()
    assert not {shot.seed for _, shot, _ in first} & {shot.seed for _, shot, _ in second}
    assert min(shot.width * shot.height for _, shot, _ in second) > 480 * 360
    for _, _, fakes in second:
        assert tuple(fake.method for fake in fakes) == sample.METHODS
    filmed = [shot.identities for _, shot, _ in second]
    assert {filmed.count(who) for who in filmed} == {16}


def test_methods_are_left_out_of_training_alone(small_sample, work_copy):
    made, key = sample.read_methods(small_sample), ["video_id", "frame_idx", "face_idx"]
    rows = read_folds(work_copy)
    training = rows.fold != DEMO_TRAINING.fold
    gone = sorted({made[v] for v in rows.video_id[training & (rows.label == 1)]})[:1]
    without = read_folds(leave_out(small_sample, work_copy, [*gone, "swap"]))  # swap: held out
    lost = rows.video_id.map(made).isin([*gone, "swap"]) & training
    assert lost.any()
    assert "swap" in set(without.video_id.map(made))
    assert without[key].equals(rows[~lost][key].reset_index(drop=True))


def test_what_chose_the_recipe_is_never_scored(small_sample, tmp_path, monkeypatch):
    """Not even under another name."""
    first, second = tmp_path / "sample", tmp_path / "second"
    shutil.copytree(small_sample, first)
    monkeypatch.setattr(transfer, "FIRST", first)
    monkeypatch.setattr(transfer, "SECOND", second)
    stranger, renamed = tmp_path / "stranger.mp4", tmp_path / "renamed.mp4"
    stranger.write_bytes(b"another video")
    transfer.refuse_tuned([stranger])
    shutil.copy(next(small_sample.glob("*/*.mp4")), renamed)
    with pytest.raises(ValueError, match="chosen on renamed"):
        transfer.score_clips([stranger, renamed])
    shutil.rmtree(first)
    with pytest.raises(ValueError, match="tune first"):
        transfer.score_clips([stranger])


def test_a_mean_of_methods_is_not_the_auc_of_all():
    """One method is found always, one never: 0.5, however many videos each has."""
    labels = np.array([0, 0, 1, 1, 1, 0, 0, 1])
    p_fake = [0.4, 0.5, 0.9, 0.8, 0.7, 0.4, 0.5, 0.1]
    values = np.stack([p_fake, [0, 0, 0, 0, 0, 1, 1, 1]], axis=1)
    assert transfer.mean_auc(labels, values) == pytest.approx(0.5)


def test_the_preset_is_the_recipe_that_did_best_on_the_second_sample():
    table = pd.read_csv(transfer.TABLE)
    mean = table[(table.method == "all") & (table.place == "second sample")].set_index("recipe")
    assert transfer.RECIPES[mean.auc.idxmax()] == PRESETS["transfer"]
    assert set(mean.index) == set(transfer.RECIPES)
