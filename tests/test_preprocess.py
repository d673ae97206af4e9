"""From videos to crops, masks and folds: what is made, what is kept, what each failure becomes."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import EVERY_6, done_with, files_of, strike, write_intra_video

from dfdc_lib.config import TRAIN_THRESHOLDS, Margin, PreprocessConfig
from dfdc_lib.faces import FaceDetector
from dfdc_lib.geometry import add_margin, detector_scale
from dfdc_lib.metadata import read_metadata
from dfdc_lib.ops.pipeline import append_lines, choose_originals, preprocess, read_status
from dfdc_lib.rehearsal.people import portrait
from dfdc_lib.store import WorkFolder, face_file, list_faces, read_mask, read_png, write_png
from dfdc_lib.video import iterate_frames


@pytest.fixture
def data_copy(small_sample, tmp_path) -> Path:
    """A copy of the small sample, to be changed."""
    return shutil.copytree(small_sample, tmp_path / small_sample.name)


def test_every_crop_is_the_place_in_its_frame_that_folds_names(small_sample, small_work):
    """Of a pair, crops and masks have one name and one shape; places are the box and its margin."""
    folds = pd.read_csv(small_work.folds)
    for video in read_metadata(small_sample).itertuples():
        rows, found = folds[folds.video_id == video.video_id], {}
        for frame in small_work.read_boxes(video.original_id)["frames"]:
            keys = [(frame["frame_idx"], face_idx) for face_idx in frame["face_idx"]]
            found |= dict(zip(keys, frame["boxes"], strict=True))
        faces = list(rows[["frame_idx", "face_idx"]].itertuples(index=False, name=None))
        assert list_faces(small_work.crops(video.video_id)) == sorted(found) == faces
        assert list_faces(small_work.masks(video.video_id)) == (faces if video.label else [])
        frames = dict(iterate_frames(small_sample / video.file, set(rows.frame_idx)))
        for row, face in zip(rows.itertuples(), faces, strict=True):
            frame, name = frames[row.frame_idx], face_file(*face)
            place = (row.x0, row.y0, row.x1, row.y1)
            assert place == add_margin(found[face], Margin(0.2), frame.shape[1], frame.shape[0])
            crop = read_png(small_work.crops(video.video_id) / name)
            assert np.array_equal(crop, frame[row.y0 : row.y1, row.x0 : row.x1])
            if video.label:
                mask = read_mask(small_work.masks(video.video_id) / name)
                assert mask.any()
                assert mask.shape == crop.shape[:2]


def test_stored_boxes_are_the_detectors_to_the_digit(small_sample, small_work):
    """Which is held against its peer elsewhere, as the frames are."""
    detector = FaceDetector(TRAIN_THRESHOLDS)
    for original in read_metadata(small_sample).query("label == 0").itertuples():
        stored = small_work.read_boxes(original.video_id)
        frames = dict(iterate_frames(small_sample / original.file, range(0, 99, 6)))
        assert [frame["frame_idx"] for frame in stored["frames"]] == list(frames)
        assert stored["scale"] == detector_scale(stored["width"], stored["height"])
        found = detector.detect_resized(list(frames.values()))
        for frame, faces in zip(stored["frames"], found, strict=True):
            for name in ("boxes", "landmarks"):
                expected = getattr(faces, name)
                assert np.reshape(frame[name], expected.shape) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("label", "stage", "pending"),
    [(0, "detect", {"crop": 3, "masks": 2}), (1, "crop", {"masks": 1})],
)
def test_what_is_done_again_takes_along_what_was_made_from_it(
    small_sample, small_work, work_copy, label, stage, pending
):
    video = read_metadata(small_sample).query("label == @label").video_id.iloc[0]
    strike(work_copy, video, stage)
    done = preprocess(small_sample, work_copy, EVERY_6, stages=[stage])
    assert done.actions[stage, "done"] == 1
    waiting = done.status[done.status.status == "pending"]
    assert waiting.stage.value_counts().to_dict() == pending
    left = [work_copy.artifact(row.stage, row.video_id).exists() for row in waiting.itertuples()]
    assert not any([*left, work_copy.folds.exists()])
    preprocess(small_sample, work_copy, EVERY_6)
    assert files_of(work_copy) == files_of(small_work)


@pytest.mark.slow
def test_processes_make_the_same_artifacts(small_sample, small_work, tmp_path):
    work = WorkFolder(tmp_path / "parallel")
    preprocess(small_sample, work, EVERY_6, workers=2)
    assert files_of(work) == files_of(small_work)


def test_stages_by_themselves_say_what_they_lack(small_sample, small_work, tmp_path):
    work = WorkFolder(tmp_path / "work")

    def actions(*stages):
        return preprocess(small_sample, work, EVERY_6, stages=stages).actions

    assert actions("masks") == {("masks", "not ready"): 8}
    assert actions("detect") == {("detect", "done"): 4}
    assert not (work.root / "crops").exists()
    assert actions("crop") == {("crop", "done"): 12}
    assert not work.folds.exists()
    told = preprocess(small_sample, work, EVERY_6, stages=["masks", "folds"]).folds
    assert "2 parts in 2 folds" in told
    assert files_of(work) == files_of(small_work)
    with pytest.raises(ValueError, match="stages must be some of detect"):
        actions("sing")


def test_one_folder_has_one_recipe(small_sample, small_work, work_copy, capsys):
    wider = PreprocessConfig(every=6, margin=Margin(0.5))
    with pytest.raises(ValueError, match=r"'0\.2'.*'0\.5'.*name another folder.*overw"):
        preprocess(small_sample, work_copy, wider)
    assert files_of(work_copy) == files_of(small_work)
    preprocess(small_sample, work_copy, wider, originals=1, overwrite=True)
    assert work_copy.read_recipe()["settings"]["margin"] == "0.5"
    assert pd.read_csv(work_copy.folds).original_id.nunique() == 1
    for action in ("done", "kept"):  # of the same recipe all is kept
        done = preprocess(small_sample, work_copy, EVERY_6, overwrite=True)
        assert {some for _, some in done.actions} == {action}
        assert files_of(work_copy) == files_of(small_work)
    recipe = work_copy.read_recipe()
    recipe["versions"]["torch"] = "1.0"
    work_copy.recipe.write_text(json.dumps(recipe))
    preprocess(small_sample, work_copy, EVERY_6)
    assert "libraries have changed: torch 1.0 → " in capsys.readouterr().err


def test_another_data_set_or_an_earlier_version_is_refused(data_copy, work_copy):
    renamed = data_copy.rename(data_copy.with_name("other"))
    (renamed / "sample.json").unlink()
    with pytest.raises(ValueError, match="was made with sample, but this run uses other"):
        preprocess(renamed, work_copy, EVERY_6)
    work_copy.recipe.unlink()
    with pytest.raises(ValueError, match="an earlier version of this project: .*--overwrite"):
        preprocess(renamed, work_copy, EVERY_6)


def test_a_second_run_keeps_all_also_where_videos_are_gone(data_copy, small_work, work_copy):
    table = read_metadata(data_copy)
    for file in table.file[table.label == 1]:
        (data_copy / file).unlink()
    done = preprocess(data_copy, work_copy, EVERY_6)
    assert done.actions == {("detect", "kept"): 4, ("crop", "kept"): 12, ("masks", "kept"): 8}
    assert files_of(work_copy) == files_of(small_work)


def test_the_last_line_of_a_stage_counts_and_a_reason_is_one_line(work_copy):
    lines = read_status(work_copy)
    key, line = next(iter(lines.items()))
    append_lines(work_copy, [line._replace(reason="one\nline, “quoted”")])
    assert read_status(work_copy) == lines | {key: line._replace(reason="one line, “quoted”")}


def test_what_goes_wrong_is_a_status_takes_the_family_along_and_may_be_fixed(
    data_copy, small_sample, small_work, work_copy, monkeypatch
):
    table = read_metadata(data_copy)
    missing, broken, failing, other = table[table.label == 0].itertuples()
    fake = next(table.query("original_id == @other.video_id and label == 1").itertuples())
    (data_copy / missing.file).unlink()
    for video in (broken, fake):
        (data_copy / video.file).write_text("not a video")
    for video in (missing, failing):  # a kept one would not be looked at
        strike(work_copy, video.video_id, "detect")

    def fail(path, picture):
        if path.parent.parent.name.startswith(failing.video_id):
            raise OSError("the network is gone")
        return write_png(path, picture)

    with monkeypatch.context() as patched:
        patched.setattr("dfdc_lib.preprocess.write_png", fail)
        status = done_with(data_copy, work_copy)
    ends = {missing: "missing_file", broken: "unreadable", failing: "error"}
    of_fakes = {"missing_file": "missing_original"}
    for original, ended in ends.items():
        assert status.status[original.video_id, "detect"] == ended
        for video in table.query("original_id == @original.video_id").itertuples():
            found = of_fakes.get(ended, "broken_original") if video.label else "pending"
            assert status.status[video.video_id, "crop"] == found
            assert not work_copy.crops(video.video_id).exists()
            assert not work_copy.masks(video.video_id).exists()
    assert status.status[fake.video_id, "crop"] == "unreadable"
    assert "FFmpeg" in status.reason[fake.video_id, "crop"]
    used = set(pd.read_csv(work_copy.folds).video_id)
    assert used == set(table.video_id[table.original_id == other.video_id]) - {fake.video_id}
    shutil.copytree(small_sample, data_copy, dirs_exist_ok=True)
    preprocess(data_copy, work_copy, EVERY_6)
    assert files_of(work_copy) == files_of(small_work)


def test_a_fake_whose_original_is_not_listed_is_a_status(tmp_path):
    (tmp_path / "metadata.json").write_text('{"a.mp4": {"label": "FAKE", "original": "b.mp4"}}')
    line = done_with(tmp_path, WorkFolder(tmp_path / "work")).loc["a", "crop"]
    assert (line.status, line.reason) == ("missing_original", "b is not listed")


def test_few_originals_are_those_that_are_there_evenly_over_parts(data_copy):
    table = read_metadata(data_copy)
    chosen = choose_originals(table, 2, data_copy)
    assert chosen.part.nunique() == chosen.original_id.nunique() == 2
    assert len(chosen) == 6
    originals = table[table.label == 0]
    for file in originals.file[:2]:
        (data_copy / file).unlink()
    assert set(choose_originals(table, 2, data_copy).original_id) == set(originals.video_id[2:])


def test_crops_and_masks_that_can_not_be_made_are_statuses(small_sample, work_copy):
    table = read_metadata(small_sample)
    fakes = table.query("label == 1").drop_duplicates("original_id")
    lonely, unlike, broken, outside = fakes.original_id
    pictures = [next(work_copy.crops(video).glob("*.png")) for video in (lonely, unlike, broken)]
    pictures[0].unlink()
    write_png(pictures[1], read_png(pictures[1])[:-1])
    pictures[2].write_text("no picture")
    for fake in fakes.video_id:
        strike(work_copy, fake, "masks")
    boxes = work_copy.read_boxes(outside)
    next(frame for frame in boxes["frames"] if frame["boxes"])["places"][0] = None
    work_copy.boxes(outside).write_text(json.dumps(boxes))
    for video in table.video_id[table.original_id == outside]:
        strike(work_copy, video, "crop")
    found = done_with(small_sample, work_copy)
    masks = found.loc[[(fake, "masks") for fake in fakes.video_id]]
    assert masks.status.tolist() == ["missing_partner", "shape_mismatch", "broken_crop", "ok"]
    assert pictures[1].name in masks.reason.iloc[1]
    line = found.loc[fakes.video_id.iloc[3], "crop"]
    assert (line.status, line["count"] > 0) == ("empty_crop", True)
    assert "1 boxes leave nothing inside" in line.reason
    assert fakes.video_id.iloc[3] in set(pd.read_csv(work_copy.folds).video_id)


def portraits(count: int) -> list[np.ndarray]:
    """Frames in which a face moves steadily to the right: where it is tells which frame it is."""
    picture = portrait("collins")[:320, 100:420]
    return [np.roll(picture, 3 * i - 40, axis=1) for i in range(count)]


def make_data(folder, drop=()):
    """A data set of one original and one fake; the original's packets `drop` are damaged."""
    part = folder / "dfdc_train_part_0"
    part.mkdir(parents=True)
    write_intra_video(part / "real.mp4", portraits(24), drop=drop)
    write_intra_video(part / "fake.mp4", portraits(24))
    entries = {"real.mp4": {"label": "REAL"}, "fake.mp4": {"label": "FAKE", "original": "real.mp4"}}
    (part / "metadata.json").write_text(json.dumps(entries))
    return folder


def test_a_frame_that_can_not_be_decoded_leaves_every_other_box_on_its_frame(tmp_path):
    config = PreprocessConfig(every=4)
    whole, damaged = WorkFolder(tmp_path / "whole"), WorkFolder(tmp_path / "damaged")
    preprocess(make_data(tmp_path / "a"), whole, config)
    status = done_with(make_data(tmp_path / "b", drop=[7, 8]), damaged, config)
    expected = whole.read_boxes("real")["frames"]
    assert [len(frame["boxes"]) for frame in expected] == [1] * 6
    del expected[2]
    assert damaged.read_boxes("real")["frames"] == expected
    assert status.status["real", "detect"] == "decode_error"
    assert "1 of 6 frames can't be decoded: 8" in status.reason["real", "detect"]
    assert status["count"]["fake", "masks"] == 5
    assert set(pd.read_csv(damaged.folds).frame_idx) == {0, 4, 12, 16, 20}


def test_a_size_that_changes_midway_leaves_no_frame_out(tmp_path):
    """Each frame has its own size, and a fake's must be as large."""
    data, work = make_data(tmp_path), WorkFolder(tmp_path / "work")
    part = data / "dfdc_train_part_0"
    grows = b""
    for width in (160, 320):
        frames = [cv2.resize(frame, (width, width)) for frame in portraits(12)]
        write_intra_video(part / "half.mp4", frames, form="mpegts")
        grows += (part / "half.mp4").read_bytes()
    (part / "real.mp4").write_bytes(grows)
    status = done_with(data, work, PreprocessConfig(every=4))
    assert status.status["real", "crop"] == "ok"
    assert list_faces(work.crops("real")) == [(frame_idx, 0) for frame_idx in range(0, 24, 4)]
    heights = [len(read_png(work.crops("real") / f"{i}_0.png")) for i in (0, 12)]
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.1)
    line = status.loc["fake", "crop"]
    assert (line.status, line["count"]) == ("shape_mismatch", 3)
    assert "3 of 6 frames are not as large as the original's: 0 (320 x 320, its" in line.reason


def test_an_original_without_a_face_leaves_no_folder_and_nothing_to_do(tmp_path):
    data, work = make_data(tmp_path), WorkFolder(tmp_path / "work")
    grey = [np.full((128, 128, 3), 99, np.uint8)] * 5
    write_intra_video(data / "dfdc_train_part_0" / "real.mp4", grey)
    status = done_with(data, work).status.to_dict()
    assert status == {("real", "detect"): "no_face", ("fake", "crop"): "no_face"}
    assert not list(work.root.glob("crops/*"))
    assert {action for _, action in preprocess(data, work, EVERY_6).actions} == {"kept"}
