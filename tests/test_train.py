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

from dfdc_lib.config import BLACKOUTS, DEMO_TRAINING, PreprocessConfig, TrainConfig
from dfdc_lib.dataset import check_files, epoch_order, read_folds, split_fold
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint
from dfdc_lib.paths import WorkFolder
from dfdc_lib.preprocess import preprocess
from dfdc_lib.train import balanced_loss, class_counts, make_optimizer, score_videos, train

SHORT = replace(DEMO_TRAINING, steps=6, epoch_steps=3, batch=4)


def test_loss_by_hand():
    logits, labels = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1.0, 0.0, 0.0])
    p = torch.sigmoid(logits).numpy()
    fake = -np.log(p[0])
    real = -np.log(1 - p[1:]).mean()
    assert balanced_loss(logits, labels, smoothing=0).item() == pytest.approx((fake + real) / 2, abs=1e-6)


def test_the_parts_of_a_batch_add_up_to_its_loss():
    logits, labels = torch.randn(7), torch.tensor([1.0, 0, 0, 1, 0, 0, 0])
    whole, counts = balanced_loss(logits, labels, 0.01), class_counts(labels)
    parts = [balanced_loss(logits[some], labels[some], 0.01, counts) for some in (slice(0, 2), slice(2, 7))]
    assert torch.isclose(whole, sum(parts))
    assert not torch.isclose(whole, (balanced_loss(logits[:4], labels[:4], 0.01) + whole) / 2)


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
    assert json.loads((run.folder / "config.json").read_text())["settings"]["steps"] == 6
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


@pytest.mark.parametrize("config", [SHORT, replace(SHORT, paired=False, augmentation="slides")])
def test_a_batch_in_parts_trains_as_the_whole(small_work, config):
    config = replace(config, batch=6, freeze_batchnorm=True)
    whole, parts = (train(small_work, replace(config, accumulate=n), f"parts_{n}", overwrite=True) for n in (1, 3))
    assert parts.losses == pytest.approx(whole.losses, abs=1e-5)


def test_epochs_can_be_kept(small_work):
    run = train(small_work, SHORT, "snapshots", keep_every=1)
    kept = [load_checkpoint(run.folder / f"epoch_{epoch}.pt") for epoch in (0, 1)]
    assert torch.equal(kept[1].fc.weight, run.model.fc.weight)
    assert not torch.equal(kept[0].fc.weight, run.model.fc.weight)


def test_half_precision_trains_too_in_the_same_process(small_work):
    whole, half = (train(small_work, replace(SHORT, precision=p), f"precision_{p}") for p in ("no", "bf16"))
    assert half.losses != whole.losses
    assert half.losses == pytest.approx(whole.losses, abs=0.1)


def test_the_inputs_size_can_be_chosen_and_is_kept(small_work):
    run = train(small_work, replace(SHORT, size=64), "small")
    assert load_checkpoint(run.checkpoint).card.size == 64


def test_single_crops_train_as_the_slides_say(small_work):
    config = replace(SHORT, paired=False, augmentation="slides", optimizer="sgd", learning_rate=0.01)
    assert len(train(small_work, config, "slides").losses) == 6


def test_self_blending_trains_and_needs_its_own_name(small_work):
    """Pairs without one given fake, single crops with the blackouts of the hard set."""
    assert len(train(small_work, replace(SHORT, self_blend=1.0), "blended").losses) == 6
    for name in BLACKOUTS:
        hard = replace(SHORT, paired=False, augmentation=name, self_blend=0.5)
        assert len(train(small_work, hard, f"blended_{name}").losses) == 6
    with pytest.raises(ValueError, match="other settings"):
        train(small_work, SHORT, "blended")


def test_crops_of_another_margin_are_other_data(small_sample, work_copy):
    """folds.csv is the same for any margin."""
    train(work_copy, SHORT, "run")
    folds = work_copy.folds.read_bytes()
    preprocess(small_sample, work_copy, PreprocessConfig(every=6, margin=0.5))
    assert work_copy.folds.read_bytes() == folds
    with pytest.raises(ValueError, match="other settings or data"):
        train(work_copy, SHORT, "run")


def test_overwrite_replaces_a_run_whose_checkpoint_is_damaged(work_copy):
    folder = work_copy.run("damaged")
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="last.pt"):
        train(work_copy, SHORT, "damaged")
    assert train(work_copy, SHORT, "damaged", overwrite=True).finished


@pytest.mark.slow
def test_processes_that_read_crops_change_no_number_and_are_not_forked(small_work, monkeypatch):
    def refuse():
        raise AssertionError("a process with many threads was forked")

    monkeypatch.setattr(os, "fork", refuse)
    config = replace(SHORT, steps=2, epoch_steps=2)
    alone, helped = (train(small_work, config, f"readers_{n}", workers=n) for n in (0, 1))
    assert alone.losses == helped.losses
    assert alone.held_out.equals(helped.held_out)


def test_a_run_from_before_a_setting_existed_goes_on(small_work):
    run = train(small_work, SHORT, "older")
    stored = torch.load(run.checkpoint, weights_only=True)
    del stored["training"]["made_from"]["settings"]["self_blend"]
    torch.save(stored, run.checkpoint)
    assert train(small_work, SHORT, "older").losses == run.losses
    with pytest.raises(ValueError, match="other settings"):
        train(small_work, replace(SHORT, self_blend=0.5), "older")


def test_wrong_settings_name_the_choices():
    for wrong in (1.5, -0.1, 1.0):
        with pytest.raises(ValueError, match="self_blend is a probability"):
            TrainConfig(self_blend=wrong)
    with pytest.raises(ValueError, match="smoothing must be"):
        TrainConfig(smoothing=0.5)
    with pytest.raises(ValueError, match="optimizer must be one of sgd, adamw"):
        TrainConfig(optimizer="adam")


def test_crops_of_a_video_are_joined():
    crops = pd.DataFrame(
        {"video_id": ["a", "a", "b"], "label": [1, 1, 0], "original_id": ["b", "b", "b"], "p_fake": [0.2, 0.6, 0.3]}
    )
    videos = score_videos(crops)
    assert videos.p_fake.tolist() == pytest.approx([0.4, 0.3])
    assert score_videos(crops, "max").p_fake.tolist() == pytest.approx([0.6, 0.3])


SLIDES = replace(SHORT, paired=False, augmentation="slides", optimizer="sgd", learning_rate=0.01)
LONG = {
    "paired": replace(SHORT, steps=9),
    "slides": replace(SLIDES, steps=9),
    "hard": replace(SLIDES, augmentation="hard"),
}


class Crash(Exception):
    """Stands for a kill: nothing gets the chance to be saved."""


def crash_at(last: int):
    def progress(step: int, steps: int, loss: float) -> None:
        if step == last:
            raise Crash

    return progress


def assert_same_run(one, other) -> None:
    assert one.losses == other.losses
    for name in ("metrics.csv", "held_out.csv"):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()
    for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", LONG)
def test_a_run_that_crashed_goes_on_and_ends_bit_for_bit_the_same(small_work, kind):
    undisturbed = train(small_work, LONG[kind], f"{kind}_whole")
    for last in (1, 4, 5):
        with pytest.raises(Crash):
            train(small_work, LONG[kind], f"{kind}_broken", save_every=2, progress=crash_at(last))
    seen = []
    resumed = train(small_work, LONG[kind], f"{kind}_broken", progress=lambda step, *_: seen.append(step))
    assert seen[0] > 1
    assert_same_run(undisturbed, resumed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_and_end(small_work, number):
    name = f"stopped_{int(number)}"
    stopped = train(
        small_work, LONG["paired"], name, progress=lambda step, *_: signal.raise_signal(number) if step == 4 else None
    )
    assert not stopped.finished
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4"):
        stopped.require_finished()
    assert len(stopped.losses) == 4
    resumed = train(small_work, LONG["paired"], name)
    assert resumed.finished
    assert_same_run(train(small_work, LONG["paired"], "paired_whole"), resumed)


def test_a_finished_run_is_kept_and_another_one_needs_a_word(small_work):
    done = train(small_work, SHORT, "kept")
    steps = []
    again = train(small_work, SHORT, "kept", progress=lambda step, *_: steps.append(step))
    assert not steps
    assert_same_run(done, again)
    with pytest.raises(ValueError, match="other settings or data"):
        train(small_work, replace(SHORT, seed=5), "kept")
    (small_work.run("kept") / "epoch_9.pt").write_bytes(b"of the old run")
    assert train(small_work, replace(SHORT, seed=5), "kept", overwrite=True).losses != done.losses
    assert not (small_work.run("kept") / "epoch_9.pt").exists()


def test_best_and_last_are_checkpoints(run):
    best = load_checkpoint(run.folder / "best.pt")
    assert best.card == load_checkpoint(run.checkpoint).card
    metrics = pd.read_csv(run.folder / "metrics.csv")
    assert {"valid_loss", "valid_video_mean", "valid_video_confident", "broken"} <= set(metrics)
    by_class = [
        -np.log(1 - run.held_out[run.held_out.label == 0].p_fake),
        -np.log(run.held_out[run.held_out.label == 1].p_fake),
    ]
    assert metrics.valid_loss.iloc[-1] == pytest.approx(np.mean([loss.mean() for loss in by_class]), rel=1e-5)


def test_only_one_run_writes_to_a_folder(small_work):
    folder = small_work.run("taken")
    folder.mkdir(parents=True)
    (folder / ".running").write_text("another-host-7")
    with pytest.raises(ValueError, match="process 7 on another-host"):
        train(small_work, SHORT, "taken")


def test_processes_that_do_not_see_each_other_are_refused(small_work, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="4 processes were started"):
        train(small_work, SHORT, "strangers")


def test_an_epoch_holds_every_real_and_as_many_fakes(small_work):
    rows = read_folds(small_work)
    reals = rows[rows.label == 0]
    order = epoch_order(rows, SLIDES, 0, 2 * len(reals))
    assert set(reals.index) <= set(order.index)
    assert (order.label == 1).sum() == len(reals)
    assert order.index.tolist() != epoch_order(rows, SLIDES, 1, 2 * len(reals)).index.tolist()
    assert order.index.tolist() == epoch_order(rows, SLIDES, 0, 2 * len(reals)).index.tolist()
    assert len(epoch_order(rows, SLIDES, 0, 5 * len(reals))) == 5 * len(reals)


def test_weight_decay_pulls_weights_to_zero():
    weight = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(weight.weight, 1.0)
    optimizer, _ = make_optimizer(weight, replace(TrainConfig(encoder="tiny"), learning_rate=0.1, weight_decay=0.5))
    weight.weight.grad = torch.zeros_like(weight.weight)
    optimizer.step()
    assert weight.weight.item() == pytest.approx(1 - 0.1 * 0.5 * 1.9)  # Nesterov: the step and 0.9 of it again


@pytest.fixture
def damaged_work(small_work, tmp_path) -> WorkFolder:
    shutil.copytree(small_work.root, tmp_path / "work", ignore=shutil.ignore_patterns("runs"))
    return WorkFolder(tmp_path / "work")


def test_a_broken_picture_is_counted_and_a_missing_one_is_an_error(damaged_work):
    rows, _ = split_fold(read_folds(damaged_work), 0)
    crops = [path for video_id in rows.video_id.unique() for path in damaged_work.crops(video_id).glob("*.png")]
    for crop in crops[::4]:
        crop.write_text("no picture")
    run = train(damaged_work, replace(SLIDES, epoch_steps=6), "broken")
    assert run.metrics.broken.iloc[-1] >= 1
    assert len(run.losses) == 6
    crops[1].unlink()
    with pytest.raises(FileNotFoundError, match="1 crops of folds.csv are missing"):
        train(damaged_work, SLIDES, "missing")
    check_files(rows[rows.video_id != crops[1].parent.name], damaged_work)


BRIEF = replace(DEMO_TRAINING, steps=12, epoch_steps=4, batch=4)
KILLED_RUNS = """
import os, random, signal, sys
from dataclasses import replace
from pathlib import Path
import accelerate, timm, torch  # here, once for all children
from dfdc_lib.config import DEMO_TRAINING
from dfdc_lib.paths import WorkFolder
from dfdc_lib.train import train

torch.set_num_threads(1)  # without threads of its own a process may be forked: the children need load nothing
config = replace(DEMO_TRAINING, steps=12, epoch_steps=4, batch=4)

def run(name, last=0):
    "Train in a child that is killed before it touches the run's folder for the last time allowed; the steps it took."
    if (child := os.fork()) == 0:
        touched, steps = 0, []
        def watch(event, args):
            nonlocal touched
            if event in ("open", "os.rename", "os.remove") and f"runs/{name}/" in str(args[0]):
                touched += 1
                if touched == last:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        work = WorkFolder(Path(sys.argv[1]))
        train(work, config, name, save_every=2, progress=lambda step, *_: steps.append(step))
        os._exit(len(steps))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

assert run("undisturbed") == 12
draw = random.Random(1)
killed = [run("killed", draw.randint(6, 16)) for _ in range(4)]
assert killed == [-signal.SIGKILL] * 4, killed
assert 0 < run("killed") < 12, "it did not go on from its last save"
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_bit_for_bit_the_same(small_work):
    """kill -9 before it touches a file, so that nothing can be put in order; also while last.pt is being written."""
    subprocess.run([sys.executable, "-c", KILLED_RUNS, small_work.root], check=True)
    steps = []
    runs = [train(small_work, BRIEF, name, progress=lambda *_: steps.append(1)) for name in ("undisturbed", "killed")]
    assert not steps
    assert_same_run(*runs)


CURVE = replace(DEMO_TRAINING, steps=10, epoch_steps=5, batch=8, freeze_batchnorm=True)
TWO_PROCESSES = """
import os, sys
from dataclasses import replace
from pathlib import Path
from dfdc_lib.config import DEMO_TRAINING
from dfdc_lib.paths import WorkFolder
from dfdc_lib.train import train

for paired in (True, False):
    config = replace(DEMO_TRAINING, steps=10, epoch_steps=5, batch=4, freeze_batchnorm=True, paired=paired)
    run = train(WorkFolder(Path(sys.argv[1])), config, f"two_{paired}")
    Path(sys.argv[2], f"{paired}_{os.environ['RANK']}").write_text(repr(run.losses))
"""


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_whole_batch(small_work, tmp_path):
    """gloo on the CPU, BatchNorm frozen: the same loss curve, pairs or not, though each process sees other counts."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, script, small_work.root, tmp_path], check=True, cwd=Path(__file__).resolve().parent.parent)
    for paired in (True, False):
        alone = train(small_work, replace(CURVE, paired=paired), f"one_{paired}").losses
        for rank in (0, 1):
            assert eval((tmp_path / f"{paired}_{rank}").read_text()) == pytest.approx(alone, abs=1e-4)
        assert len(alone) == 10
