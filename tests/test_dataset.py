import multiprocessing
import os
import signal

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from dfdc_lib import dataset as d
from dfdc_lib.augment import valid_transforms
from dfdc_lib.config import TrainConfig
from dfdc_lib.faces import FaceDetector
from dfdc_lib.store import DamagedFile


@pytest.fixture
def rows(small_work):
    return d.read_folds(small_work)


def crops_of(rows) -> list[d.Crop]:
    return [d.Crop(*row) for row in rows[list(d.Crop._fields)].to_numpy()]


def test_folds_share_no_original_and_too_few_crops_are_an_error(rows):
    training, held_out = d.split_fold(rows, 1)
    assert len(training) + len(held_out) == len(rows)
    assert not set(training.original_id) & set(held_out.original_id)
    reals, fakes = rows[rows.label == 0], rows[rows.label == 1]
    with pytest.raises(ValueError, match="fold 9 can't be held out"):
        d.split_fold(rows, 9)
    with pytest.raises(ValueError, match="only 1 fakes for"):
        d.balance(pd.concat([reals, fakes[:1]]), seed=0)
    with pytest.raises(ValueError, match="real partner"):
        d.pair(fakes)


def test_folds_that_cannot_be_used_are_named(work_copy, rows):
    lacking, wrong = rows.drop(columns="y0"), rows.assign(x1=0.5)
    for table, why in ((lacking, "lacks y0"), (wrong, "can't be used")):
        table.to_csv(work_copy.folds, index=False)
        with pytest.raises(DamagedFile, match=f"folds.csv .*{why}.*run `dfdc preprocess`"):
            d.read_folds(work_copy)
    work_copy.folds.unlink()
    with pytest.raises(FileNotFoundError, match="dfdc preprocess"):
        d.read_folds(work_copy)


def test_an_epoch_holds_every_real_and_as_many_fakes(rows):
    config, reals = TrainConfig(encoder="tiny"), rows[rows.label == 0]
    order = d.epoch_order(rows, config, 0, 2 * len(reals))
    assert set(reals.index) <= set(order.index)
    assert (order.label == 1).sum() == len(reals)
    again, other = (d.epoch_order(rows, config, epoch, 2 * len(reals)) for epoch in (0, 1))
    assert order.index.tolist() == again.index.tolist() != other.index.tolist()
    assert len(d.epoch_order(rows, config, 0, 5 * len(reals))) == 5 * len(reals)


def test_of_pairs_each_original_is_equally_likely_to_be_drawn():
    pairs = pd.DataFrame({"original_id": ["a"] * 90 + ["b"] * 10})
    drawn = d.epoch_order(pairs, TrainConfig(encoder="tiny", paired=True), 0, 2000).original_id
    assert (drawn == "a").mean() == pytest.approx(0.5, abs=0.05)


def read_pairs(work, rows, keep=False, self_blend=0.0) -> torch.Tensor:
    """The pictures of all pairs, (n, 2, 3, 64, 64)."""
    reader, pairs = d.CropReader(work, 64, keep), d.pair(rows)
    data = d.PairDataset(pairs, reader, valid_transforms(64), seed=7, self_blend=self_blend)
    assert all(data[i][1].tolist() == [0, 1] for i in range(len(data)))
    return torch.stack([data[i][0] for i in range(len(data))])


@pytest.mark.parametrize("keep", [False, True])
def test_landmarks_lie_on_the_face_of_their_crop(rows, small_work, keep):
    """The detector, run on the crop itself, finds them in the same places."""
    reader, detector = d.CropReader(small_work, 100, keep), FaceDetector((0.6, 0.6, 0.6))
    for crop in crops_of(rows[rows.original_id == rows.original_id[0]]):
        picture = reader(crop)
        (found,) = detector.detect_resized([picture])
        landmarks = reader.landmarks(crop, picture)
        assert np.abs(found.landmarks[0] - landmarks).max() < 0.1 * picture.shape[1]
        box, _ = d.read_faces(small_work, crop.original_id)[crop.frame_idx, crop.face_idx]
        box = box - np.tile([crop.x0, crop.y0], 2)
        box *= max(picture.shape) / max(crop.x1 - crop.x0, crop.y1 - crop.y0)
        assert np.abs(found.boxes[0] - box).max() < 0.15 * picture.shape[1]


@pytest.mark.parametrize("keep", [False, True])
def test_a_real_crop_becomes_its_own_fake(rows, small_work, keep):
    blended, again, plain = (read_pairs(small_work, rows, keep, p) for p in (1.0, 1.0, 0.0))
    assert torch.equal(blended, again)
    assert torch.equal(blended[:, 0], plain[:, 0]), "a real picture itself changed"
    assert (blended[:, 1] != plain[:, 1]).flatten(1).any(1).float().mean() > 0.8  # those are whole


def test_real_crops_blend_in_their_share_and_bring_the_mask_and_fakes_do_not(rows, small_work):
    seen, labels = {}, []

    def transform(**given):
        seen.update(given)
        return {"image": torch.zeros(3)}

    transform.set_random_seed = lambda seed: None
    many = pd.concat([rows[rows.label == 0]] * 8 + [rows[rows.label == 1]])
    reader = d.CropReader(small_work, 64)
    data = d.CropDataset(many, reader, transform, hard=True, self_blend=0.5)
    for crop, (_, label) in zip(crops_of(many), data, strict=True):
        assert seen["label"] == label
        assert seen["mask"].any() == bool(label)
        assert seen["mask"].shape == seen["image"].shape[:2]
        if crop.label:
            assert np.array_equal(seen["image"], reader(crop))
        else:
            labels.append(float(label))
    assert 0.3 < np.mean(labels) < 0.7


def test_a_face_that_leaves_the_frame_stays_what_it_is(rows, small_work):
    reader, crop = d.CropReader(small_work, 64), crops_of(rows[rows.label == 0])[0]
    away = crop._replace(x0=crop.x0 + 1000, x1=crop.x1 + 1000)
    picture, mask = reader.blend_with_itself(away, reader(crop), np.random.default_rng(0))
    assert mask is None
    assert np.array_equal(picture, reader(crop))


IN_THIS_PROCESS = []  # what happens here while tests run


class Reader(list):
    """Its one picture tells of the process that reads it: does it know this one's doings, cores?"""

    def __getitem__(self, index: int):
        told = torch.tensor([len(IN_THIS_PROCESS), cv2.getNumThreads(), 0.0])
        return told.reshape(3, 1, 1), torch.tensor(0.0)


def test_a_process_that_reads_is_a_new_one_with_one_core_and_outlives_ctrl_c(monkeypatch):
    monkeypatch.setattr(f"{__name__}.IN_THIS_PROCESS", ["a library has started threads"])
    batches = d.read_batches(Reader([0]), workers=1)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGINT)
    ((pictures, _, _),) = batches
    assert pictures.flatten().tolist() == [0, 1, 0]
