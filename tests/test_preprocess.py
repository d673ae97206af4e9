import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from dfdc_lib.config import PreprocessConfig
from dfdc_lib.metadata import read_metadata
from dfdc_lib.paths import WorkFolder, appear_whole, read_png, write_png
from dfdc_lib.preprocess import choose_originals, preprocess, read_manifest

EVERY_6 = PreprocessConfig(every=6)


def files_of(work: WorkFolder) -> dict:
    return {p.relative_to(work.root): p.read_bytes() for p in sorted(work.root.rglob("*")) if p.is_file()}


def test_every_video_has_its_crops_and_every_fake_its_masks(small_sample, small_work):
    folds = pd.read_csv(small_work.folds)
    for video in read_metadata(small_sample).itertuples():
        crops = {p.name for p in small_work.crops(video.video_id).glob("*.png")}
        assert crops
        assert crops == {p.name for p in small_work.crops(video.original_id).glob("*.png")}
        assert len(folds[folds.video_id == video.video_id]) == len(crops)
        if video.label:
            assert crops == {p.name for p in small_work.masks(video.video_id).glob("*.png")}


def test_crops_and_masks_of_a_pair_have_one_shape(small_sample, small_work):
    fake = read_metadata(small_sample).query("label == 1").iloc[0]
    for path in small_work.crops(fake.video_id).glob("*.png"):
        crop, real = read_png(path), read_png(small_work.crops(fake.original_id) / path.name)
        mask = cv2.imread(str(small_work.masks(fake.video_id) / path.name), cv2.IMREAD_UNCHANGED)
        assert crop.shape == real.shape
        assert mask.shape == crop.shape[:2]
        assert mask.any()


def test_a_crop_holds_the_boxes_face(small_sample, small_work):
    """The crop's pixels are the frame's, at the box grown by 20 %."""
    from dfdc_lib.geometry import add_margin
    from dfdc_lib.video import iterate_frames

    video = read_metadata(small_sample).query("label == 0").iloc[0]
    found = next(f for f in json.loads(small_work.boxes(video.video_id).read_text())["frames"] if f["boxes"])
    _, frame = next(iterate_frames(small_sample / video.file, [found["frame_idx"]]))
    x0, y0, x1, y1 = add_margin(found["boxes"][0], 0.2, frame.shape[1], frame.shape[0])
    crop = read_png(small_work.crops(video.video_id) / f"{found['frame_idx']}_{found['face_idx'][0]}.png")
    assert np.array_equal(crop, frame[y0:y1, x0:x1])


def test_a_second_run_does_nothing_and_a_lost_piece_is_made_again(small_sample, small_work, tmp_path):
    work = WorkFolder(tmp_path / "copy")
    shutil.copytree(small_work.root, work.root)
    before = {p: p.stat().st_mtime_ns for p in work.root.rglob("*.png")}
    preprocess(small_sample, work, EVERY_6)
    assert {p: p.stat().st_mtime_ns for p in work.root.rglob("*.png")} == before

    fake = read_metadata(small_sample).query("label == 1").video_id.iloc[0]
    work.manifest(fake).unlink()
    shutil.rmtree(work.crops(fake))
    preprocess(small_sample, work, EVERY_6)
    assert files_of(work) == files_of(small_work)


def test_processes_make_the_same_artifacts(small_sample, small_work, tmp_path):
    work = WorkFolder(tmp_path / "parallel")
    preprocess(small_sample, work, EVERY_6, workers=2)
    assert files_of(work) == files_of(small_work)


def test_other_settings_make_a_stage_stale(small_sample, small_work, tmp_path):
    work = WorkFolder(tmp_path / "copy")
    shutil.copytree(small_work.root, work.root)
    preprocess(small_sample, work, PreprocessConfig(every=6, margin=0.5))
    video = read_metadata(small_sample).video_id[0]
    name = next(small_work.crops(video).glob("*.png")).name
    assert read_png(work.crops(video) / name).size > read_png(small_work.crops(video) / name).size


def test_missing_and_broken_videos_are_statuses(small_sample, tmp_path):
    data = tmp_path / "broken"
    shutil.copytree(small_sample, data)
    videos = read_metadata(data)
    originals = videos[videos.label == 0]
    fake = videos[(videos.label == 1) & (videos.original_id == originals.video_id.iloc[1])].iloc[0]
    (data / originals.file.iloc[0]).unlink()
    (data / fake.file).write_text("not a video")
    work = WorkFolder(tmp_path / "work")
    status = preprocess(data, work, EVERY_6).groupby("video_id").status.agg(set)
    family = videos[videos.original_id == originals.video_id.iloc[0]].video_id
    assert all(status[v] == {"missing_original"} for v in family)
    assert status[originals.video_id.iloc[1]] == {"ok"}
    assert status[fake.video_id] == {"unreadable"}
    assert fake.file in read_manifest(work, fake.video_id)["crop"]["reason"]
    assert fake.video_id not in set(pd.read_csv(work.folds).video_id)


def test_an_original_that_can_not_be_read_shows_in_each_of_its_fakes(small_sample, tmp_path):
    data = tmp_path / "broken"
    shutil.copytree(small_sample, data)
    videos = read_metadata(data)
    original = videos[videos.label == 0].iloc[0]
    (data / original.file).write_text("not a video")
    status = preprocess(data, WorkFolder(tmp_path / "work"), EVERY_6).groupby("video_id").status.agg(set)
    assert all(status[v] == {"unreadable"} for v in videos[videos.original_id == original.video_id].video_id)
    assert set(status.index) == set(videos.video_id)


def test_originals_are_chosen_evenly_over_parts(small_sample):
    table = read_metadata(small_sample)
    chosen = choose_originals(table, 2)
    assert chosen.part.nunique() == 2
    assert chosen.original_id.nunique() == 2
    assert len(chosen) == 6
    assert len(choose_originals(table, 0)) == len(table)


def test_a_failed_write_leaves_the_old_artifact(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), appear_whole(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_survive_the_disk(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    write_png(tmp_path / "p.png", picture)
    assert np.array_equal(read_png(tmp_path / "p.png"), picture)
    with pytest.raises(FileNotFoundError, match="q.png"):
        read_png(tmp_path / "q.png")
    (tmp_path / "r.png").write_text("no picture")
    with pytest.raises(ValueError, match="r.png"):
        read_png(tmp_path / "r.png")
