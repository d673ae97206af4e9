import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dfdc_lib.config import BLACKOUTS, DEMO_TRAINING, MARGINS, TrainConfig
from dfdc_lib.dataset import CropReader, read_folds, split_fold
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint
from dfdc_lib.store import WorkFolder, face_file, hold, write_csv
from dfdc_lib.train import (
    balanced_loss,
    class_counts,
    make_optimizer,
    score_held_out,
    score_videos,
    train,
)

SHORT = replace(DEMO_TRAINING, steps=6, epoch_steps=3, batch=4)
SLIDES = replace(SHORT, paired=False, augmentation="slides", optimizer="sgd", learning_rate=0.01)


def test_loss_by_hand():
    logits, labels = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1.0, 0.0, 0.0])
    p = torch.sigmoid(logits).numpy()
    by_hand = (-np.log(p[0]) - np.log(1 - p[1:]).mean()) / 2
    assert balanced_loss(logits, labels, smoothing=0).item() == pytest.approx(by_hand, abs=1e-6)


def test_the_parts_of_a_batch_add_up_to_its_loss():
    logits, labels = torch.randn(7), torch.tensor([1.0, 0, 0, 1, 0, 0, 0])
    whole, counts = balanced_loss(logits, labels, 0.01), class_counts(labels)
    some = (slice(0, 2), slice(2, 7))
    parts = [balanced_loss(logits[part], labels[part], 0.01, counts) for part in some]
    assert torch.isclose(whole, sum(parts))
    assert not torch.isclose(whole, (balanced_loss(logits[:4], labels[:4], 0.01) + whole) / 2)


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


def test_crops_of_a_video_are_joined():
    crops = pd.DataFrame({"video_id": ["a", "a", "b"], "label": [1, 1, 0], "original_id": "b"})
    crops["p_fake"] = [0.2, 0.6, 0.3]
    assert score_videos(crops).p_fake.tolist() == pytest.approx([0.4, 0.3])
    videos = score_videos(crops, "max")
    assert list(videos) == ["video_id", "label", "original_id", "p_fake"]
    assert videos.p_fake.tolist() == pytest.approx([0.6, 0.3])


@pytest.fixture(scope="module")
def small_work(small_work, tmp_path_factory) -> WorkFolder:
    """The small sample's artifacts, for runs: others find theirs as they were."""
    folder = tmp_path_factory.mktemp("train") / "work"
    shutil.copytree(small_work.root, folder)
    return WorkFolder(folder)


@pytest.fixture(scope="module")
def run(small_work):
    return train(small_work, SHORT, "test")


def test_a_run_leaves_its_artifacts(run, small_work):
    assert run.folder == small_work.run("test")
    about = json.loads((run.folder / "config.json").read_text())
    assert about["settings"]["steps"] == 6
    assert about["card"]["margin"] == "0.2"
    assert pd.read_csv(run.folder / "metrics.csv").step.tolist() == [3, 6]
    assert len(run.losses) == 6
    card = load_checkpoint(run.checkpoint).card
    assert (card.trained_on, card.margin, card.encoder) == ("sample", MARGINS["slides"], "tiny")
    assert load_checkpoint(run.folder / "best.pt").card == card


def test_validation_is_upstreams_and_by_video(run):
    assert set(run.held_out.fold) == {0}
    metrics = pd.read_csv(run.folder / "metrics.csv")
    assert {"valid_video_mean", "valid_video_confident", "broken"} <= set(metrics)
    p, fake = run.held_out.p_fake, run.held_out.label == 1
    by_hand = (-np.log(1 - p[~fake]).mean() - np.log(p[fake]).mean()) / 2
    assert metrics.valid_loss.iloc[-1] == pytest.approx(by_hand, rel=1e-5)


def test_another_seed_trains_another_model(run, small_work):
    assert_same_run(train(small_work, SHORT, "again"), run)
    assert train(small_work, replace(SHORT, seed=1), "other").losses != run.losses


@pytest.mark.parametrize("config", [SHORT, SLIDES])
def test_a_batch_in_parts_trains_as_the_whole(small_work, config):
    config = replace(config, batch=6, freeze_batchnorm=True)
    configs = [replace(config, accumulate=n) for n in (1, 3)]
    whole, parts = (train(small_work, c, f"{c.accumulate}", overwrite=True) for c in configs)
    assert parts.losses == pytest.approx(whole.losses, abs=1e-5)


def test_half_precision_trains_too_and_epochs_can_be_kept(run, small_work):
    half = train(small_work, replace(SHORT, precision="bf16"), "half", keep_every=1)
    assert half.losses != run.losses
    assert half.losses == pytest.approx(run.losses, abs=0.1)
    first, last = (load_checkpoint(half.folder / f"epoch_{n}.pt").fc.weight for n in (0, 1))
    assert torch.equal(last, half.model.fc.weight)
    assert not torch.equal(first, last)


BLENDED = [replace(SLIDES, augmentation=name, self_blend=0.5) for name in BLACKOUTS]


@pytest.mark.parametrize("config", [replace(SHORT, self_blend=1.0, size=64), *BLENDED])
def test_self_blending_trains_pairs_and_single_crops_with_blackouts(small_work, config):
    blended = train(small_work, config, "blended", overwrite=True)
    assert len(blended.losses) == 6
    assert load_checkpoint(blended.checkpoint).card.size == config.input_size


def test_other_crops_are_other_data(work_copy):
    """Another margin moves a crop's corners, which stand in folds.csv."""
    train(work_copy, SHORT, "run")
    write_csv(work_copy.folds, read_folds(work_copy).assign(x1=lambda rows: rows.x1 + 1))
    with pytest.raises(ValueError, match="other settings or data"):
        train(work_copy, SHORT, "run")


@pytest.mark.slow
def test_processes_that_read_crops_change_no_number_and_are_not_forked(small_work, monkeypatch):
    def refuse():
        raise AssertionError("a process with many threads was forked")

    monkeypatch.setattr(os, "fork", refuse)
    config = replace(SHORT, steps=2, epoch_steps=2)
    alone, helped = (train(small_work, config, f"readers_{n}", workers=n) for n in (0, 1))
    assert_same_run(alone, helped)


def test_a_run_from_before_a_setting_existed_goes_on(small_work):
    run = train(small_work, SHORT, "older")
    stored = torch.load(run.checkpoint, weights_only=True)
    del stored["training"]["made_from"]["settings"]["self_blend"]
    torch.save(stored, run.checkpoint)
    assert train(small_work, SHORT, "older").losses == run.losses
    with pytest.raises(ValueError, match="other settings"):
        train(small_work, replace(SHORT, self_blend=0.5), "older")


WRONG = [("self_blend", p) for p in (1.5, -0.1, 1.0)] + [("smoothing", 0.5), ("optimizer", "adam")]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_setting_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name} (is|lies|must be)"):
        TrainConfig(**{name: value})


LONG = {
    "paired": replace(SHORT, steps=9),
    "slides": replace(SLIDES, steps=8),  # which ends within an epoch
    "hard": replace(SLIDES, augmentation="hard"),
}


def crash_at(last: int):
    """Stands for a kill: nothing gets the chance to be saved."""

    def progress(step: int, *_) -> None:
        if step == last:
            raise ZeroDivisionError

    return progress


def assert_same_run(one, other) -> None:
    assert one.losses == other.losses
    for name in ("metrics.csv", "held_out.csv"):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


@pytest.mark.parametrize("kind", LONG)
def test_a_run_that_crashed_goes_on_and_ends_bit_for_bit_the_same(small_work, kind):
    undisturbed, name = train(small_work, LONG[kind], f"{kind}_whole"), f"{kind}_broken"
    for last in (1, 4, 5):
        with pytest.raises(ZeroDivisionError):
            train(small_work, LONG[kind], name, save_every=2, progress=crash_at(last))
    seen = []
    resumed = train(small_work, LONG[kind], name, progress=lambda step, *_: seen.append(step))
    assert seen[0] > 1
    assert_same_run(undisturbed, resumed)


@pytest.mark.parametrize(("number", "when"), [(signal.SIGINT, 4), (signal.SIGTERM, 6)])
def test_ctrl_c_and_sigterm_save_and_end(small_work, number, when):
    """Within an epoch, or at its end: then it is validated first."""
    config, name = LONG["paired"], f"stopped_{int(number)}"

    def ask(step, *_):
        if step == when:
            signal.raise_signal(number)

    stopped = train(small_work, config, name, progress=ask)
    assert len(stopped.losses) == when
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {when}"):
        stopped.require_finished()
    resumed = train(small_work, config, name)
    assert resumed.finished
    assert_same_run(train(small_work, config, "paired_whole"), resumed)


def test_a_finished_run_is_kept_and_another_one_needs_a_word(small_work):
    done, steps = train(small_work, SHORT, "kept"), []
    again = train(small_work, SHORT, "kept", progress=lambda step, *_: steps.append(step))
    assert not steps
    assert_same_run(done, again)
    with pytest.raises(ValueError, match="other settings or data"):
        train(small_work, replace(SHORT, seed=5), "kept")
    done.checkpoint.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"last\.pt"):
        train(small_work, SHORT, "kept")
    (done.folder / "epoch_9.pt").write_bytes(b"of the old run")
    assert train(small_work, replace(SHORT, seed=5), "kept", overwrite=True).losses != done.losses
    assert not (done.folder / "epoch_9.pt").exists()


def test_processes_that_would_overwrite_each_other_are_refused(small_work, monkeypatch):
    taken = small_work.run("taken") / "metrics.csv"
    with hold(taken), pytest.raises(ValueError, match="another process writes .*taken"):
        train(small_work, SHORT, "taken")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="4 processes do not see each other"):
        train(small_work, SHORT, "strangers")


def test_a_broken_picture_is_counted_and_a_missing_one_is_an_error(work_copy):
    rows, _ = split_fold(read_folds(work_copy), 0)
    crops = [p for video in rows.video_id.unique() for p in work_copy.crops(video).glob("*.png")]
    for crop in crops[::4]:
        crop.write_text("no picture")
    run = train(work_copy, replace(SLIDES, epoch_steps=6), "broken")
    assert run.metrics.broken.iloc[-1] >= 1
    assert len(run.losses) == 6
    crops[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"1 crops of folds.csv are missing"):
        train(work_copy, SLIDES, "missing")


BRIEF = replace(SHORT, steps=12, epoch_steps=4)
KILLED = """
import os, signal, sys
from pathlib import Path
from dfdc_lib.store import WorkFolder
from dfdc_lib.train import train
from test_train import BRIEF

left = int(sys.argv[2])
def watch(event, args):
    global left
    if event in ("open", "os.rename", "os.remove") and "runs/killed/" in str(args[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
train(WorkFolder(Path(sys.argv[1])), BRIEF, "killed", save_every=2)
"""


@pytest.mark.slow
def test_killed_when_it_touches_a_file_it_ends_bit_for_bit_the_same(small_work):
    for last in (16, 7, 13, 10):
        command = [sys.executable, "-c", KILLED, small_work.root, str(last)]
        ended = subprocess.run(command, cwd=Path(__file__).parent)
        assert ended.returncode == -signal.SIGKILL
    seen, whole = [], train(small_work, BRIEF, "undisturbed")
    killed = train(small_work, BRIEF, "killed", progress=lambda step, *_: seen.append(step))
    assert 0 < len(seen) < 12  # it went on from its last save
    assert_same_run(whole, killed)


CURVE = replace(DEMO_TRAINING, steps=10, epoch_steps=5, batch=8, freeze_batchnorm=True)
TWO_PROCESSES = """
import os, sys
from dataclasses import replace
from pathlib import Path
from dfdc_lib.config import DEMO_TRAINING
from dfdc_lib.store import WorkFolder
from dfdc_lib.train import train

config = replace(DEMO_TRAINING, steps=10, epoch_steps=5, batch=4, freeze_batchnorm=True)
for paired, parts in ((True, 2), (False, 1)):
    settings = replace(config, paired=paired, accumulate=parts)
    run = train(WorkFolder(Path(sys.argv[1])), settings, f"two_{paired}")
    Path(sys.argv[2], f"{paired}_{os.environ['RANK']}").write_text(repr(run.losses))
"""


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_whole_batch(small_work, tmp_path):
    """gloo on the CPU, BatchNorm frozen: the same loss curve, though each sees other counts."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    root = Path(__file__).resolve().parent.parent
    subprocess.run([*launch, script, small_work.root, tmp_path], check=True, cwd=root)
    for paired in (True, False):
        alone = train(small_work, replace(CURVE, paired=paired), f"one_{paired}")
        for rank in (0, 1):
            losses = json.loads((tmp_path / f"{paired}_{rank}").read_text())
            assert losses == pytest.approx(alone.losses, abs=1e-4)
        together = pd.read_csv(small_work.run(f"two_{paired}") / "held_out.csv")
        assert together.p_fake.to_numpy() == pytest.approx(alone.held_out.p_fake, abs=1e-3)


def test_a_held_out_crop_that_is_broken_is_left_out(work_copy):
    rows, model = read_folds(work_copy), DeepfakeClassifier("tiny")
    whole = score_held_out(model, rows, CropReader(work_copy, 112))
    broken = rows.iloc[3]
    (work_copy.crops(broken.video_id) / face_file(broken.frame_idx, broken.face_idx)).write_text("")
    left = score_held_out(model, rows, CropReader(work_copy, 112))
    pd.testing.assert_frame_equal(left, whole.drop(index=rows.index[3]), atol=1e-6)
