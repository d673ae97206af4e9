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
from dfdc_lib.store import DamagedFile, WorkFolder


@pytest.fixture
def rows(small_work):
    return d.read_folds(small_work)


def crops_of(rows) -> list[d.Crop]:
    return [d.Crop(*row) for row in rows[list(d.Crop._fields)].to_numpy()]


def test_folds_share_no_original_and_wrong_ones_are_named(rows, tmp_path):
    training, held_out = d.split_fold(rows, 1)
    assert len(training) + len(held_out) == len(rows)
    assert not set(training.original_id) & set(held_out.original_id)
    with pytest.raises(ValueError, match="fold 9 can't be held out"):
        d.split_fold(rows, 9)
    with pytest.raises(FileNotFoundError, match="dfdc preprocess"):
        d.read_folds(WorkFolder(tmp_path))


def test_damaged_folds_are_named(work_copy, rows):
    lacking, wrong = rows.drop(columns="y0"), rows.assign(x1=0.5)
    for table, why in ((lacking, "lacks y0"), (wrong, "can't be used")):
        table.to_csv(work_copy.folds, index=False)
        with pytest.raises(DamagedFile, match=f"folds.csv .*{why}.*run `dfdc preprocess`"):
            d.read_folds(work_copy)


def test_balancing_keeps_every_real_and_draws_as_many_fakes(rows):
    reals, fakes = rows[rows.label == 0], rows[rows.label == 1]
    drawn = d.balance(rows, seed=3)
    expected = fakes.sample(n=len(reals), replace=False, random_state=3)
    assert drawn.index.tolist() == [*reals.index, *expected.index]
    with pytest.raises(ValueError, match="fakes for"):
        d.balance(pd.concat([reals, fakes[:1]]), seed=0)


def test_pairs_match_original_frame_and_face(rows):
    assert d.pair(rows).equals(rows[rows.label == 1].reset_index(drop=True))
    some = rows.drop(rows.index[rows.label == 0][0])
    assert len(d.pair(some)) < len(d.pair(rows))
    with pytest.raises(ValueError, match="real partner"):
        d.pair(rows[rows.label == 1])


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


def test_items_have_the_promised_shapes(small_work, rows):
    reader = d.CropReader(small_work, 48, keep=True)
    picture, label = d.CropDataset(rows, reader, valid_transforms(48))[0]
    assert picture.shape == (3, 48, 48)
    assert label == rows.label.iloc[0]
    pictures, labels = d.PairDataset(d.pair(rows), reader, valid_transforms(48))[0]
    assert pictures.shape == (2, 3, 48, 48)
    assert labels.tolist() == [0, 1]
    assert not np.array_equal(pictures[0], pictures[1])


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


def read_pairs(small_work, rows, self_blend, keep=False):
    reader, pairs = d.CropReader(small_work, 64, keep), d.pair(rows)
    data = d.PairDataset(pairs, reader, valid_transforms(64), seed=7, self_blend=self_blend)
    return [data[i][0] for i in range(len(pairs))]


@pytest.mark.parametrize("keep", [False, True])
def test_a_real_crop_becomes_its_own_fake(rows, small_work, keep):
    blended, again, plain = (read_pairs(small_work, rows, p, keep) for p in (1.0, 1.0, 0.0))
    whole = [i for i in range(len(plain)) if not torch.equal(blended[i][1], plain[i][1])]
    assert len(whole) > 0.8 * len(plain)
    for i in whole:
        assert torch.equal(blended[i], again[i])
        assert torch.equal(blended[i][0], plain[i][0]), "the real picture itself changed"


def test_kept_crops_are_blended_at_the_face_too(rows, small_work):
    """Crops in memory are smaller than on disk; the landmarks must shrink along."""
    crop, middles = crops_of(rows[rows.label == 0])[0], []
    for keep in (False, True):
        reader = d.CropReader(small_work, 64, keep)
        before = reader(crop)
        picture, mask = reader.blend_with_itself(crop, before, np.random.default_rng(0))
        assert np.array_equal(picture[mask == 0], before[mask == 0])
        y, x = np.nonzero(mask > 127)
        middles.append((x.mean() / mask.shape[1], y.mean() / mask.shape[0]))
    assert middles[0] == pytest.approx(middles[1], abs=0.03)


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
    pictures, _, broken = next(batches)
    assert pictures.flatten().tolist() == [0, 1, 0]
    assert not broken
    assert not list(batches)
