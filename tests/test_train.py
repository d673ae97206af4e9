import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from dfdc_lib.config import DEMO_TRAINING, MARGINS, TrainConfig
from dfdc_lib.dataset import CropReader, read_folds
from dfdc_lib.model import DeepfakeClassifier, ModelCard, load_checkpoint
from dfdc_lib.store import WorkFolder, face_file, hold, write_csv
from dfdc_lib.train import balanced_loss, make_optimizer, score_held_out, train

TINY = replace(DEMO_TRAINING, encoder="tiny", learning_rate=3e-3, size=0)
SHORT = replace(TINY, steps=6, epoch_steps=3, batch=4, size=64)
SLIDES = replace(SHORT, paired=False, augmentation="slides", optimizer="sgd", learning_rate=0.01)
TESTS = Path(__file__).parent


def test_loss_by_hand():
    logits, labels = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1.0, 0.0, 0.0])
    p = torch.sigmoid(logits).numpy()
    by_hand = (-np.log(p[0]) - np.log(1 - p[1:]).mean()) / 2
    assert balanced_loss(logits, labels, smoothing=0).item() == pytest.approx(by_hand, abs=1e-6)
    sure, label = torch.tensor([20.0]), torch.tensor([1.0])  # certainty costs where labels are soft
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
    with pytest.raises(ValueError, match="optimizer must be one of"):
        replace(config, optimizer="adam")


@pytest.fixture(scope="module")
def small_work(small_work, tmp_path_factory) -> WorkFolder:
    """The small sample's artifacts, for runs: others find theirs as they were."""
    folder = tmp_path_factory.mktemp("train") / "work"
    shutil.copytree(small_work.root, folder)
    return WorkFolder(folder)


@pytest.fixture(scope="module")
def run(small_work):
    return train(small_work, SHORT, "test")


def assert_same_run(one, other) -> None:
    assert one.losses == other.losses
    for name in ("metrics.csv", "held_out.csv"):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_a_run_leaves_its_artifacts_and_validates_as_upstream_and_by_video(run, small_work):
    assert run.folder == small_work.run("test")
    about = json.loads((run.folder / "config.json").read_text())
    assert about["settings"]["steps"] == len(run.losses) == 6
    assert about["card"]["margin"] == "0.2"
    card = load_checkpoint(run.checkpoint).card
    assert card == ModelCard("tiny", 64, MARGINS["slides"], "sample")
    assert load_checkpoint(run.folder / "best.pt").card == card
    metrics = pd.read_csv(run.folder / "metrics.csv")
    assert metrics.step.tolist() == [3, 6]
    assert {"valid_video_mean", "valid_video_confident", "broken"} <= set(metrics)
    assert set(run.held_out.fold) == {0}
    videos = run.held_out.groupby("video_id")[["p_fake", "label"]].mean()
    p, fake = videos.p_fake, videos.label == 1
    by_hand = (-np.log(1 - p[~fake]).mean() - np.log(p[fake]).mean()) / 2
    assert metrics.valid_loss.iloc[-1] == pytest.approx(by_hand, rel=1e-5)


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


@pytest.mark.slow
def test_processes_that_read_crops_change_no_number_and_are_not_forked(small_work, monkeypatch):
    def refuse():
        raise AssertionError("a process with many threads was forked")

    monkeypatch.setattr(os, "fork", refuse)
    config = replace(SHORT, steps=2, epoch_steps=2)
    alone, helped = (train(small_work, config, f"readers_{n}", workers=n) for n in (0, 1))
    assert_same_run(alone, helped)


def test_only_the_same_run_goes_on_and_another_one_needs_a_word(work_copy):
    done, steps = train(work_copy, SHORT, "kept"), []
    stored = torch.load(done.checkpoint, weights_only=True)
    del stored["training"]["made_from"]["settings"]["self_blend"]  # as before there was such a one
    torch.save(stored, done.checkpoint)
    again = train(work_copy, SHORT, "kept", progress=lambda step, *_: steps.append(step))
    assert not steps
    assert_same_run(done, again)
    for change in ({"seed": 5}, {"self_blend": 0.5}):
        with pytest.raises(ValueError, match="other settings or data"):
            train(work_copy, replace(SHORT, **change), "kept")
    (done.folder / "epoch_9.pt").write_bytes(b"of the old run")
    other = train(work_copy, replace(SHORT, seed=5), "kept", overwrite=True)
    assert other.losses != done.losses
    assert not (done.folder / "epoch_9.pt").exists()
    # Another margin moves a crop's corners, which stand in folds.csv.
    write_csv(work_copy.folds, read_folds(work_copy).assign(x1=lambda rows: rows.x1 + 1))
    with pytest.raises(ValueError, match="other settings or data"):
        train(work_copy, replace(SHORT, seed=5), "kept")
    other.checkpoint.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"last\.pt"):
        train(work_copy, SHORT, "kept")


def test_processes_that_would_overwrite_each_other_are_refused(small_work, monkeypatch):
    taken = small_work.run("taken") / "metrics.csv"
    with hold(taken), pytest.raises(ValueError, match="another process is writing .*taken"):
        train(small_work, SHORT, "taken")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="4 processes do not see each other"):
        train(small_work, SHORT, "strangers")


def test_a_broken_picture_is_counted_and_left_out_and_a_missing_one_is_an_error(work_copy):
    rows = read_folds(work_copy)
    faces = rows[["video_id", "frame_idx", "face_idx"]].itertuples(index=False)
    crops = [work_copy.crops(video_id) / face_file(*face) for video_id, *face in faces]
    model, reader = DeepfakeClassifier("tiny"), CropReader(work_copy, 112)
    whole = score_held_out(model, rows, reader)
    for crop in crops[::4]:
        crop.write_text("no picture")
    left = score_held_out(model, rows, reader)
    pd.testing.assert_frame_equal(left, whole.drop(index=rows.index[::4]), atol=1e-6)
    run = train(work_copy, replace(SLIDES, epoch_steps=6), "broken")
    assert run.metrics.broken.iloc[-1] >= 1
    assert len(run.losses) == 6
    crops[1].unlink()
    with pytest.raises(FileNotFoundError, match="1 crops of folds.csv are missing"):
        train(work_copy, SLIDES, "missing")


LONG = {
    "paired": replace(SHORT, steps=9, self_blend=0.5),
    "slides": replace(SLIDES, steps=8),  # which ends within an epoch
    "hard": replace(SLIDES, augmentation="hard", self_blend=0.5),
}


@pytest.fixture(scope="module")
def undisturbed(small_work):
    """Runs that nothing interrupts, by their names in LONG."""
    return {kind: train(small_work, config, kind) for kind, config in LONG.items()}


@pytest.mark.parametrize("kind", LONG)
def test_a_run_that_crashed_goes_on_and_ends_bit_for_bit_the_same(small_work, undisturbed, kind):
    crashes, seen = [1, 4, 5], []

    def crash(step: int, *_) -> None:
        """Stands for a kill: nothing gets the chance to be saved."""
        seen.append(step)
        if step in crashes:
            crashes.remove(step)
            raise ZeroDivisionError

    go_on = partial(train, small_work, LONG[kind], f"{kind}_broken", save_every=2, progress=crash)
    while crashes:
        with pytest.raises(ZeroDivisionError):
            go_on()
    assert_same_run(undisturbed[kind], go_on())
    assert seen == [1, *range(1, 5), 4, 5, *range(5, LONG[kind].steps + 1)]  # from the last save


@pytest.mark.parametrize(("number", "last"), [(signal.SIGINT, 4), (signal.SIGTERM, 6)])
def test_ctrl_c_and_sigterm_save_and_end(small_work, undisturbed, number, last):
    """Within an epoch, or at its end: then it is validated first. The step at hand ends first."""
    config, name = LONG["paired"], f"stopped_{last}"

    def ask(step, *_):
        if step == last - 1:
            signal.raise_signal(number)

    stopped = train(small_work, config, name, progress=ask)
    assert len(stopped.metrics) == last // 3
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {last}"):
        stopped.require_finished()
    assert_same_run(undisturbed["paired"], train(small_work, config, name).require_finished())


GROUP = """
import os, signal, sys
from test_train import LONG, Path, WorkFolder, train

def stop(step, *_):
    if step == 1:
        os.killpg(0, signal.SIGTERM)  # as Slurm does: to the processes that read, too

if __name__ == "__main__":
    run = train(WorkFolder(Path(sys.argv[1])), LONG["slides"], "group", workers=1, progress=stop)
    sys.exit(run.finished or not run.checkpoint.exists())
"""


@pytest.mark.slow
def test_a_signal_to_all_processes_of_a_run_saves_it_too(small_work, tmp_path):
    (tmp_path / "group.py").write_text(GROUP)
    command = [sys.executable, tmp_path / "group.py", small_work.root]
    given = {"start_new_session": True, "env": os.environ | {"PYTHONPATH": "tests"}}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **given)
    assert done.returncode == 0, done.stderr


KILLED = """
import os, signal, sys
from test_train import LONG, Path, WorkFolder, train

left = int(sys.argv[2])
def watch(event, args):
    global left
    if event in ("open", "os.rename", "os.remove") and "runs/killed/" in str(args[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
train(WorkFolder(Path(sys.argv[1])), LONG["paired"], "killed", save_every=2)
"""


@pytest.mark.slow
def test_killed_when_it_touches_a_file_it_ends_bit_for_bit_the_same(small_work, undisturbed):
    for last in (16, 7, 13, 10):
        command = [sys.executable, "-c", KILLED, small_work.root, str(last)]
        assert subprocess.run(command, cwd=TESTS).returncode == -signal.SIGKILL
    seen = []
    killed = train(
        small_work, LONG["paired"], "killed", progress=lambda step, *_: seen.append(step)
    )
    assert 0 < len(seen) < 9  # it went on from its last save
    assert_same_run(undisturbed["paired"], killed)


CURVE = replace(TINY, steps=10, epoch_steps=5, batch=4, freeze_batchnorm=True)
TWO_PROCESSES = """
import os, sys
from test_train import CURVE, Path, WorkFolder, replace, train

for paired, parts in ((True, 2), (False, 1)):
    settings = replace(CURVE, paired=paired, accumulate=parts)
    run = train(WorkFolder(Path(sys.argv[1])), settings, f"two_{paired}")
    Path(sys.argv[2], f"{paired}_{os.environ['RANK']}").write_text(repr(run.losses))
"""


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_whole_batch(small_work, tmp_path):
    """gloo on the CPU, BatchNorm frozen: the same loss curve, though each sees other counts."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = ["--no-python", sys.executable, "-c", TWO_PROCESSES, small_work.root, tmp_path]
    subprocess.run([*launch, *script], check=True, cwd=TESTS)
    for paired in (True, False):
        alone = train(small_work, replace(CURVE, batch=8, paired=paired), f"one_{paired}")
        for rank in (0, 1):
            losses = json.loads((tmp_path / f"{paired}_{rank}").read_text())
            assert losses == pytest.approx(alone.losses, abs=1e-4)
        together = pd.read_csv(small_work.run(f"two_{paired}") / "held_out.csv")
        assert together.p_fake.to_numpy() == pytest.approx(alone.held_out.p_fake, abs=1e-3)
