import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from dfdc_lib.config import DEMO_TRAINING, TrainConfig
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint
from dfdc_lib.train import balanced_loss, make_optimizer, score_videos, train

SHORT = replace(DEMO_TRAINING, steps=6, epoch_steps=3, batch=4)


def test_loss_by_hand():
    logits, labels = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1.0, 0.0, 0.0])
    p = torch.sigmoid(logits).numpy()
    fake = -np.log(p[0])
    real = -np.log(1 - p[1:]).mean()
    assert balanced_loss(logits, labels, smoothing=0).item() == pytest.approx((fake + real) / 2, abs=1e-6)


def test_neither_class_outweighs_the_other():
    logits = torch.tensor([0.3, -1.2])
    once = balanced_loss(logits, torch.tensor([1.0, 0.0]), 0.01)
    more_reals = balanced_loss(torch.cat([logits, logits[1:].repeat(9)]), torch.tensor([1.0] + [0.0] * 10), 0.01)
    assert torch.isclose(once, more_reals)


def test_smoothing_makes_certainty_cost():
    sure, label = torch.tensor([20.0]), torch.tensor([1.0])
    assert balanced_loss(sure, label, 0.0) < 1e-6
    assert balanced_loss(sure, label, 0.01) == pytest.approx(0.01 * 20, rel=1e-3)


def test_the_slides_schedule_is_polynomial():
    config = TrainConfig(encoder="tiny")
    optimizer, scheduler = make_optimizer(DeepfakeClassifier("tiny"), config)
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 1e-4)
    for step in (0, 1, 37_500, 74_999):
        scheduler.last_epoch = step
        rate = scheduler._get_closed_form_lr()[0]
        assert rate == pytest.approx(0.01 * (1 - step / 75_000) ** 0.9)


@pytest.fixture(scope="module")
def run(small_work):
    return train(small_work, SHORT, "test")


def test_a_run_leaves_its_artifacts(run, small_work):
    assert run.folder == small_work.run("test")
    assert json.loads((run.folder / "config.json").read_text())["steps"] == 6
    assert pd.read_csv(run.folder / "metrics.csv").step.tolist() == [3, 6]
    assert len(run.losses) == 6
    card = load_checkpoint(run.checkpoint).card
    assert (card.trained_on, card.margin, card.encoder) == ("sample", 0.2, "tiny")


def test_only_the_held_out_fold_is_scored(run):
    assert set(run.held_out.fold) == {0}
    assert run.held_out.p_fake.between(0, 1).all()


def test_the_same_seed_trains_the_same_model(run, small_work):
    again = train(small_work, SHORT, "again")
    other = train(small_work, replace(SHORT, seed=1), "other")
    assert again.losses == run.losses
    assert other.losses != run.losses
    for a, b in zip(run.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_single_crops_train_as_the_slides_say(small_work):
    config = replace(SHORT, paired=False, augmentation="slides", optimizer="sgd", learning_rate=0.01)
    assert len(train(small_work, config, "slides").losses) == 6


def test_wrong_settings_name_the_choices():
    with pytest.raises(ValueError, match="optimizer must be one of sgd, adamw"):
        TrainConfig(optimizer="adam")


def test_crops_of_a_video_are_joined():
    crops = pd.DataFrame(
        {"video_id": ["a", "a", "b"], "label": [1, 1, 0], "original_id": ["b", "b", "b"], "p_fake": [0.2, 0.6, 0.3]}
    )
    videos = score_videos(crops)
    assert videos.p_fake.tolist() == pytest.approx([0.4, 0.3])
    assert score_videos(crops, max).p_fake.tolist() == pytest.approx([0.6, 0.3])
