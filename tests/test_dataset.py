import json
import multiprocessing
import os
import signal

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import Dataset

from dfdc_lib import dataset as d
from dfdc_lib.augment import demo_transforms, train_transforms, valid_transforms
from dfdc_lib.paths import WorkFolder, write_json


@pytest.fixture
def rows(small_work):
    return d.read_folds(small_work)


def test_folds_share_no_original(rows):
    training, held_out = d.split_fold(rows, 1)
    assert len(training) + len(held_out) == len(rows)
    assert not set(training.original_id) & set(held_out.original_id)


def test_a_fold_that_does_not_exist_is_named(rows):
    with pytest.raises(ValueError, match="fold 9 can't be held out"):
        d.split_fold(rows, 9)


def test_missing_folds_say_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="dfdc preprocess"):
        d.read_folds(WorkFolder(tmp_path))


def test_balancing_keeps_every_real_and_draws_as_many_fakes(rows):
    drawn = d.balance(rows, seed=3)
    assert (drawn.label == 0).sum() == (drawn.label == 1).sum() == (rows.label == 0).sum()
    expected = rows[rows.label == 1].sample(n=(rows.label == 0).sum(), replace=False, random_state=3)
    assert drawn[drawn.label == 1].index.tolist() == expected.index.tolist()
    with pytest.raises(ValueError, match="fakes for"):
        d.balance(rows[(rows.label == 0) | (rows.index == rows.index[rows.label == 1][0])], seed=0)


def test_pairs_match_original_frame_and_face(rows):
    pairs = d.pair(rows)
    assert len(pairs) == (rows.label == 1).sum()
    assert (pairs.real_id == pairs.original_id).all()
    with pytest.raises(ValueError, match="real partner"):
        d.pair(rows[rows.label == 1])


def test_each_original_is_equally_likely_to_be_drawn():
    pairs = pd.DataFrame({"original_id": ["a"] * 90 + ["b"] * 10})
    drawn = d.draw_pairs(pairs, 2000, seed=0).original_id.value_counts(normalize=True)
    assert drawn["a"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("make", [train_transforms, demo_transforms])
def test_augmentation_treats_both_pictures_of_a_pair_alike(make):
    picture = np.random.default_rng(0).integers(0, 256, (80, 60, 3), np.uint8)
    transform = make(64, seed=0)
    for _ in range(10):
        both = transform(image=picture, fake=picture)
        assert np.array_equal(both["image"], both["fake"])
        assert both["image"].shape == (3, 64, 64)


@pytest.mark.parametrize("make", [train_transforms, demo_transforms])
def test_augmentation_follows_its_seed(make):
    picture = np.random.default_rng(0).integers(0, 256, (80, 60, 3), np.uint8)
    first, second, other = (make(64, seed=seed)(image=picture)["image"] for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_validation_only_resizes_centres_and_normalises():
    picture = np.full((50, 100, 3), 255, np.uint8)
    tensor = valid_transforms(64)(image=picture)["image"]
    assert tensor.shape == (3, 64, 64)
    assert tensor[0, 32, 32] == pytest.approx((1 - 0.485) / 0.229)
    assert tensor[0, 2, 32] == pytest.approx(-0.485 / 0.229)


def test_items_have_the_promised_shapes(small_work, rows):
    reader = d.CropReader(small_work, 48, keep=True)
    crops = d.CropDataset(rows, reader, valid_transforms(48))
    picture, label = crops[0]
    assert picture.shape == (3, 48, 48)
    assert label == rows.label.iloc[0]
    pictures, labels = d.PairDataset(d.pair(rows), reader, valid_transforms(48))[0]
    assert pictures.shape == (2, 3, 48, 48)
    assert labels.tolist() == [0, 1]
    assert not np.array_equal(pictures[0], pictures[1])


def test_landmarks_lie_on_the_face_of_their_crop(rows, small_work):
    """The detector, run on the crop itself, puts its landmarks in the same places."""
    from dfdc_lib.faces import FaceDetector
    from dfdc_lib.paths import read_png

    original_id = rows.original_id.iloc[0]
    places = d.read_places(small_work, original_id)
    assert list(places) == small_work.crop_names(original_id)
    for name, (box, points) in places.items():
        crop = read_png(small_work.crops(original_id) / name)
        found = FaceDetector((0.6, 0.6, 0.6)).detect_resized([crop])[0]
        assert np.abs(found.landmarks[0] - points).max() < 0.1 * crop.shape[1]
        assert np.abs(found.boxes[0] - box).max() < 0.15 * crop.shape[1]


def read_pairs(small_work, rows, self_blend, keep=False, seed=7):
    reader, pairs = d.CropReader(small_work, 64, keep), d.pair(rows)
    data = d.PairDataset(pairs, reader, valid_transforms(64), seed, self_blend)
    return [data[i][0] for i in range(len(pairs))]


@pytest.mark.parametrize("keep", [False, True])
def test_a_real_crop_becomes_its_own_fake(rows, small_work, keep):
    blended = read_pairs(small_work, rows, 1.0, keep)
    again = read_pairs(small_work, rows, 1.0, keep)
    plain = read_pairs(small_work, rows, 0.0, keep)
    whole = [i for i in range(len(plain)) if not torch.equal(blended[i][1], plain[i][1])]
    assert len(whole) > 0.8 * len(plain)
    for i in whole:
        assert torch.equal(blended[i], again[i])
        assert torch.equal(blended[i][0], plain[i][0]), "the real picture itself changed"


def test_kept_crops_are_blended_at_the_face_too(rows, small_work):
    """Crops in memory are smaller than on disk; the landmarks must shrink along."""
    first = d.pair(rows).iloc[0]
    masks = []
    for keep in (False, True):
        reader = d.CropReader(small_work, 64, keep)
        place = (first.real_id, first.frame_idx, first.face_idx)
        crop = reader(*place)
        picture, mask = reader.blend_with_itself(crop, place, np.random.default_rng(0))
        assert np.array_equal(picture[mask == 0], crop[mask == 0])
        y, x = np.nonzero(mask > 127)
        masks.append(np.array([x.mean() / mask.shape[1], y.mean() / mask.shape[0]]))
    assert masks[0] == pytest.approx(masks[1], abs=0.03)


def test_single_crops_blend_in_their_share_and_bring_the_mask(rows, small_work):
    reals = rows[rows.label == 0]
    many = pd.concat([reals] * 8)
    seen = {}

    def transform(**given):
        seen.update(given)
        return {"image": torch.zeros(3)}

    transform.set_random_seed = lambda seed: None
    data = d.CropDataset(many, d.CropReader(small_work, 64), transform, seed=0, hard=True, self_blend=0.5)
    labels = []
    for i in range(len(many)):
        _, label = data[i]
        labels.append(float(label))
        assert seen["label"] == label
        assert seen["mask"].any() == bool(label)
        assert seen["mask"].shape == seen["image"].shape[:2]
    assert 0.3 < np.mean(labels) < 0.7
    fakes = rows[rows.label == 1]
    untouched = d.CropDataset(fakes, d.CropReader(small_work, 64), valid_transforms(64), seed=0, self_blend=0.9)
    plain = d.CropDataset(fakes, d.CropReader(small_work, 64), valid_transforms(64), seed=0)
    assert all(torch.equal(untouched[i][0], plain[i][0]) for i in range(len(fakes)))


def test_a_face_that_leaves_the_frame_stays_what_it_is(rows, small_work, monkeypatch):
    reader, real = d.CropReader(small_work, 64), rows[rows.label == 0].iloc[0]
    place = (real.video_id, real.frame_idx, real.face_idx)
    landmarks = reader.landmarks(*place)
    monkeypatch.setattr(reader, "landmarks", lambda *key: landmarks + np.array([1000, 0]))
    assert reader.blend_with_itself(reader(*place), place, np.random.default_rng(0)) is None


def test_a_box_outside_the_frame_has_no_place_and_spoils_no_other(small_work, rows, tmp_path):
    original_id = rows.original_id.iloc[0]
    work = WorkFolder(tmp_path / "work")
    stored = json.loads(small_work.boxes(original_id).read_text())
    first = stored["frames"][0]
    for name, value in (("face_idx", 9), ("boxes", [-90, 10, -40, 60]), ("landmarks", first["landmarks"][0])):
        first[name].append(value)
    write_json(work.boxes(original_id), stored)
    write_json(work.source, small_work.read_source())
    places, before = d.read_places(work, original_id), d.read_places(small_work, original_id)
    assert list(places) == list(before)


IN_THIS_PROCESS = []  # what happens here while tests run


class Reader(Dataset):
    """Its one picture says what the process that reads it is like: what it knows of the parent's doings, its cores."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        return torch.tensor([len(IN_THIS_PROCESS), cv2.getNumThreads(), 0.0]).reshape(3, 1, 1), torch.tensor(0.0)


def test_a_process_that_reads_is_a_new_one_with_one_core_and_outlives_ctrl_c(monkeypatch):
    monkeypatch.setattr(f"{__name__}.IN_THIS_PROCESS", ["a library has started threads"])
    batches = d.read_batches(Reader(), workers=1)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGINT)
    pictures, _, broken = next(batches)
    assert pictures.flatten().tolist() == [0, 1, 0]
    assert not broken
    assert not list(batches)
