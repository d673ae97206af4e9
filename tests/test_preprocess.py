import json
import os
import platform
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import files_of, set_matrix, write_intra_video
from facenet_pytorch import MTCNN

from dfdc_lib.config import MARGINS, TRAIN_THRESHOLDS, PreprocessConfig
from dfdc_lib.dataset import read_places
from dfdc_lib.metadata import read_metadata
from dfdc_lib.paths import WorkFolder, appear_whole, read_png, sweep_leftovers, write_png
from dfdc_lib.preprocess import choose_originals, preprocess, read_manifest
from dfdc_lib.sample import portrait
from dfdc_lib.video import iterate_frames

EVERY_6 = PreprocessConfig(every=6)


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

    video = read_metadata(small_sample).query("label == 0").iloc[0]
    found = next(f for f in json.loads(small_work.boxes(video.video_id).read_text())["frames"] if f["boxes"])
    _, frame = next(iterate_frames(small_sample / video.file, [found["frame_idx"]]))
    x0, y0, x1, y1 = add_margin(found["boxes"][0], 0.2, frame.shape[1], frame.shape[0])
    crop = read_png(small_work.crops(video.video_id) / f"{found['frame_idx']}_{found['face_idx'][0]}.png")
    assert np.array_equal(crop, frame[y0:y1, x0:x1])


def test_stored_boxes_are_the_peers_on_frames_decoded_by_another_library(small_sample, small_work):
    """Coordinates, frame numbers and scale: PyAV decodes, the peer detects, and the boxes are put back by hand."""
    peer, seen = MTCNN(keep_all=True, thresholds=list(TRAIN_THRESHOLDS)), set()
    for original in read_metadata(small_sample).query("label == 0").itertuples():
        with av.open(str(small_sample / original.file)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        stored = json.loads(small_work.boxes(original.video_id).read_text())
        assert [frame["frame_idx"] for frame in stored["frames"]] == list(range(0, len(frames), 6))
        scale = stored["scale"]
        seen.add(scale)
        for frame in stored["frames"]:
            picture = frames[frame["frame_idx"]]
            size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
            resized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if scale != 1 else picture
            boxes, _, landmarks = peer.detect(resized, landmarks=True)
            assert len(frame["boxes"]) == (0 if boxes is None else len(boxes))
            for box, points in zip(frame["boxes"], frame["landmarks"], strict=True):
                nearest = np.abs(boxes / scale - box).max(axis=1).argmin()
                # Both convert colours with FFmpeg: what is left is rounding.
                assert np.abs(boxes[nearest] / scale - box).max() < 0.01
                assert np.abs(landmarks[nearest] / scale - points).max() < 0.01
    assert {0.33, 1} <= seen


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


def test_each_video_is_decoded_once(small_sample, tmp_path, monkeypatch):
    opened = []

    def watch(path, *rest):
        opened.append(Path(path).name)
        return iterate_frames(path, *rest)

    monkeypatch.setattr("dfdc_lib.preprocess.iterate_frames", watch)
    preprocess(small_sample, WorkFolder(tmp_path), EVERY_6)
    assert sorted(opened) == sorted(path.name for path in small_sample.rglob("*.mp4"))


def test_what_can_not_be_made_ahead_is_made_when_its_turn_comes(small_sample, small_work, tmp_path, monkeypatch):
    """Crops fail while faces are found, masks while a fake is cropped: nothing is lost, and nothing is left over."""

    def fail(*_):
        raise OSError("not now")

    work = WorkFolder(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("dfdc_lib.preprocess.Ahead.attempt", lambda ahead, *_: setattr(ahead, "broken", True))
        preprocess(small_sample, work, EVERY_6)
    assert files_of(work) == files_of(small_work)
    assert not list(work.root.rglob("*.part"))
    shutil.rmtree(work.root)
    monkeypatch.setattr("dfdc_lib.preprocess.hidden_beside", fail)
    preprocess(small_sample, work, EVERY_6)
    assert files_of(work) == files_of(small_work)


@pytest.mark.slow
def test_processes_make_the_same_artifacts(small_sample, small_work, tmp_path):
    work = WorkFolder(tmp_path / "parallel")
    preprocess(small_sample, work, EVERY_6, workers=2)
    assert files_of(work) == files_of(small_work)


def test_other_settings_make_a_stage_stale_and_only_that_one(small_sample, small_work, work_copy):
    done = preprocess(small_sample, work_copy, PreprocessConfig(every=6, margin=0.5))
    assert done.actions.to_dict() == {("detect", "kept"): 4, ("crop", "made again"): 12, ("masks", "made again"): 8}
    video = read_metadata(small_sample).video_id[0]
    name = next(small_work.crops(video).glob("*.png")).name
    assert read_png(work_copy.crops(video) / name).size > read_png(small_work.crops(video) / name).size
    assert work_copy.read_source()["margin"] == 0.5
    preprocess(small_sample, work_copy, EVERY_6)
    assert files_of(work_copy) == files_of(small_work)


def test_the_margin_of_the_released_weights_is_a_preset(small_sample, work_copy):
    preprocess(small_sample, work_copy, PreprocessConfig(every=6, margin=MARGINS["upstream"]))
    video = read_metadata(small_sample).query("label == 0").iloc[0]
    boxes = json.loads(work_copy.boxes(video.video_id).read_text())
    found = next(frame for frame in boxes["frames"] if frame["boxes"])
    x0, y0, x1, y1 = (int(value) for value in found["boxes"][0])
    rows = slice(max(y0 - (y1 - y0) // 3, 0), y1 + (y1 - y0) // 3)
    columns = slice(max(x0 - (x1 - x0) // 3, 0), x1 + (x1 - x0) // 3)
    _, frame = next(iterate_frames(small_sample / video.file, [found["frame_idx"]]))
    crop = read_png(work_copy.crops(video.video_id) / f"{found['frame_idx']}_{found['face_idx'][0]}.png")
    assert np.array_equal(crop, frame[rows, columns])


def test_stages_run_by_themselves_and_say_what_they_lack(small_sample, small_work, tmp_path):
    work = WorkFolder(tmp_path / "work")
    assert preprocess(small_sample, work, EVERY_6, stages=["masks"]).actions.to_dict() == {("masks", "not ready"): 8}
    assert preprocess(small_sample, work, EVERY_6, stages=["detect"]).actions.to_dict() == {("detect", "made"): 4}
    assert not (work.root / "crops").exists()
    preprocess(small_sample, work, EVERY_6, stages=["crop"])
    assert not work.folds.exists()
    assert "2 parts in 2 folds" in preprocess(small_sample, work, EVERY_6, stages=["masks", "folds"]).folds
    assert files_of(work) == files_of(small_work)
    with pytest.raises(ValueError, match="stages must be some of detect"):
        preprocess(small_sample, work, EVERY_6, stages=["sing"])


def test_folds_never_stand_beside_a_source_of_other_settings(small_sample, work_copy):
    """Else training would believe the margin in source.json, of crops that have another one."""
    wider = PreprocessConfig(every=3, margin=0.5)
    done = preprocess(small_sample, work_copy, wider, stages=["crop"])
    assert done.actions.to_dict() == {("crop", "not ready"): 12}
    assert work_copy.read_source()["margin"] == 0.5
    assert not work_copy.folds.exists()


def test_a_rerun_in_which_nothing_changes_leaves_the_folds_alone(small_sample, tmp_path):
    data, work = tmp_path / "data", WorkFolder(tmp_path / "work")
    shutil.copytree(small_sample, data)
    (data / read_metadata(data).query("label == 0").file.iloc[0]).write_text("not a video")
    preprocess(data, work, EVERY_6)
    before = work.folds.stat().st_mtime_ns
    preprocess(data, work, EVERY_6, stages=["crop"])
    assert work.folds.stat().st_mtime_ns == before


def test_an_artifact_that_was_deleted_by_hand_is_made_again(small_sample, small_work, work_copy):
    video = read_metadata(small_sample).query("label == 1").iloc[0]
    next(work_copy.crops(video.video_id).glob("*.png")).unlink()
    work_copy.boxes(video.original_id).unlink()
    preprocess(small_sample, work_copy, EVERY_6)
    assert files_of(work_copy) == files_of(small_work)


def test_videos_deleted_after_preprocessing_change_nothing(small_sample, small_work, work_copy, tmp_path):
    data = tmp_path / "small"
    shutil.copytree(small_sample, data, copy_function=shutil.copy2)
    for video in data.glob("*/*.mp4"):
        video.unlink()
    done = preprocess(data, work_copy, EVERY_6)
    assert set(done.actions.index.get_level_values("action")) == {"kept"}
    assert files_of(work_copy) == files_of(small_work)


def test_another_video_under_the_same_name_is_processed_again(small_sample, work_copy, tmp_path):
    data = tmp_path / "small"
    shutil.copytree(small_sample, data)
    video = read_metadata(data).query("label == 1").iloc[0]
    (data / video.file).write_bytes((data / video.file).read_bytes() + b"x")
    done = preprocess(data, work_copy, EVERY_6)
    assert done.actions["crop", "made again"] == 1


def test_folds_alone_can_be_made_again(small_sample, small_work, work_copy):
    work_copy.folds.unlink()
    preprocess(small_sample, work_copy, EVERY_6, stages=["folds"])
    assert files_of(work_copy) == files_of(small_work)


def test_what_was_made_with_other_settings_is_called_stale(small_sample, work_copy):
    """After a new detection alone nothing may claim that the old crops belong to it."""
    done = preprocess(small_sample, work_copy, PreprocessConfig(every=4), stages=["detect", "folds"])
    status = done.status.groupby("stage").status.agg(set)
    assert status["detect"] == {"ok"}
    assert status["crop"] == {"stale"}
    assert len(pd.read_csv(work_copy.folds)) == 0


def test_folds_do_not_outlive_the_crops_that_they_name(small_sample, work_copy):
    preprocess(small_sample, work_copy, PreprocessConfig(every=6, margin=0.4), stages=["crop"])
    assert not work_copy.folds.exists()


def test_videos_that_are_gone_are_not_forgotten_for_new_settings(small_sample, small_work, work_copy, tmp_path):
    data = tmp_path / "small"
    shutil.copytree(small_sample, data)
    for video in data.glob("*/*.mp4"):
        video.unlink()
    done = preprocess(data, work_copy, PreprocessConfig(every=6, margin=0.5))
    assert done.actions["crop", "stale (the video is gone)"] == 12
    assert set(done.status[done.status.stage == "crop"].status) == {"stale"}
    assert len(list(work_copy.root.glob("crops/*/*.png"))) == len(list(small_work.root.glob("crops/*/*.png")))


def test_videos_that_are_gone_leave_artifacts_whose_record_is_lost(small_sample, work_copy, tmp_path):
    """What can't be made again is never deleted, though nothing says any more how it was made."""
    data = tmp_path / "data"
    shutil.copytree(small_sample, data)
    before = {path: data for path, data in files_of(work_copy).items() if path.suffix == ".png"}
    for video in data.rglob("*.mp4"):
        video.unlink()
    work_copy.manifest(read_metadata(data).query("label == 0").video_id.iloc[0]).write_text("{")
    done = preprocess(data, work_copy, EVERY_6)
    assert done.actions["detect", "stale (the video is gone)"] == 1
    assert {path: data for path, data in files_of(work_copy).items() if path.suffix == ".png"} == before


def test_a_failure_in_the_original_does_not_stick_to_its_fakes(small_sample, small_work, tmp_path, monkeypatch):
    """A full disk while the original is cropped: the next run mends the masks too."""
    work, real = WorkFolder(tmp_path / "work"), set(read_metadata(small_sample).query("label == 0").video_id)

    def fail(path, picture):
        if path.parent.name.split(".")[1] in real:
            raise OSError("No space left on device")
        return write_png(path, picture)

    with monkeypatch.context() as patched:
        patched.setattr("dfdc_lib.preprocess.write_png", fail)
        status = preprocess(small_sample, work, EVERY_6).status
    assert set(status[status.stage == "masks"].status) == {"missing_partner"}
    preprocess(small_sample, work, EVERY_6)
    assert files_of(work) == files_of(small_work)


def test_an_original_that_becomes_unreadable_takes_its_fakes_artifacts_along(small_sample, work_copy, tmp_path):
    data = tmp_path / "small"
    shutil.copytree(small_sample, data)
    original = read_metadata(data).query("label == 0").iloc[0]
    (data / original.file).write_text("not a video")
    done = preprocess(data, work_copy, EVERY_6)
    fakes = read_metadata(data).query("label == 1 and original_id == @original.video_id").video_id
    assert not [fake for fake in fakes if work_copy.crops(fake).exists() or work_copy.masks(fake).exists()]
    assert not set(fakes) & set(pd.read_csv(work_copy.folds).video_id)
    assert set(done.status[done.status.video_id.isin(fakes)].status) == {"broken_original"}


def test_damaged_records_are_made_again(small_sample, small_work, work_copy):
    video = read_metadata(small_sample).query("label == 0").iloc[0]
    work_copy.manifest(video.video_id).write_text("")
    work_copy.boxes(video.video_id).write_text("{")
    preprocess(small_sample, work_copy, EVERY_6)
    assert files_of(work_copy) == files_of(small_work)


def test_few_originals_are_those_that_are_there(small_sample, tmp_path):
    data = tmp_path / "small"
    shutil.copytree(small_sample, data)
    originals = read_metadata(data).query("label == 0")
    for file in originals.file[:2]:
        (data / file).unlink()
    assert set(choose_originals(read_metadata(data), 2, data).original_id) == set(originals.video_id[2:])


def replace_boxes(work: WorkFolder, original_id: str, change) -> None:
    boxes = json.loads(work.boxes(original_id).read_text())
    change(boxes)
    work.boxes(original_id).write_text(json.dumps(boxes))


def forget_crops(work: WorkFolder, video_id: str) -> None:
    manifest = json.loads(work.manifest(video_id).read_text())
    del manifest["crop"]
    work.manifest(video_id).write_text(json.dumps(manifest))


def test_a_box_outside_the_frame_is_a_status_and_the_other_crops_are_used(small_sample, work_copy):
    video = read_metadata(small_sample).query("label == 1").iloc[0]

    def push_out(boxes):
        first = next(frame for frame in boxes["frames"] if frame["boxes"])
        first["boxes"][0] = [-50, 5, -10, 40]

    replace_boxes(work_copy, video.original_id, push_out)
    forget_crops(work_copy, video.video_id)
    status = preprocess(small_sample, work_copy, EVERY_6).status.set_index(["video_id", "stage"])
    assert status.status[video.video_id, "crop"] == "empty_crop"
    assert "1 boxes leave nothing inside" in status.reason[video.video_id, "crop"]
    assert status["count"][video.video_id, "crop"] >= 1
    assert video.video_id in set(pd.read_csv(work_copy.folds).video_id)


def test_pairs_that_can_not_be_compared_are_statuses(small_sample, work_copy):
    fakes = read_metadata(small_sample).query("label == 1").drop_duplicates("original_id")
    lonely, unlike = fakes.iloc[0], fakes.iloc[1]
    for fake in (lonely, unlike):
        manifest = json.loads(work_copy.manifest(fake.video_id).read_text())
        del manifest["masks"]
        work_copy.manifest(fake.video_id).write_text(json.dumps(manifest))
    next(work_copy.crops(lonely.original_id).glob("*.png")).rename(work_copy.crops(lonely.original_id) / "999_0.png")
    crop = next(work_copy.crops(unlike.original_id).glob("*.png"))
    write_png(crop, read_png(crop)[:-1])
    status = preprocess(small_sample, work_copy, EVERY_6, stages=["masks"]).status.set_index(["video_id", "stage"])
    assert status.status[lonely.video_id, "masks"] == "missing_partner"
    assert status.status[unlike.video_id, "masks"] == "shape_mismatch"
    assert crop.name in status.reason[unlike.video_id, "masks"]


def portraits(count: int, width: int = 320, height: int = 320) -> list[np.ndarray]:
    """Frames in which a face moves steadily to the right: where it is tells which frame it is."""
    picture = cv2.resize(portrait("collins")[:320, 100:420], (width, height))
    return [np.roll(picture, 3 * i - 40, axis=1) for i in range(count)]


def make_data(folder, drop=(), fake_frames=None):
    """A data set of one original and one fake; the original's packets `drop` are damaged."""
    part = folder / "dfdc_train_part_0"
    part.mkdir(parents=True)
    write_intra_video(part / "real.mp4", portraits(24), drop=drop)
    write_intra_video(part / "fake.mp4", fake_frames or portraits(24))
    entries = {"real.mp4": {"label": "REAL"}, "fake.mp4": {"label": "FAKE", "original": "real.mp4"}}
    (part / "metadata.json").write_text(json.dumps(entries))
    return folder


def boxes_by_frame(work: WorkFolder) -> dict[int, list]:
    return {frame["frame_idx"]: frame["boxes"] for frame in json.loads(work.boxes("real").read_text())["frames"]}


def test_a_frame_that_can_not_be_decoded_leaves_every_other_box_on_its_frame(tmp_path):
    config = PreprocessConfig(every=4)
    whole, damaged = WorkFolder(tmp_path / "whole"), WorkFolder(tmp_path / "damaged")
    preprocess(make_data(tmp_path / "a"), whole, config)
    done = preprocess(make_data(tmp_path / "b", drop=[7, 8]), damaged, config)
    expected = boxes_by_frame(whole)
    assert len(expected) == 6
    assert all(len(boxes) == 1 for boxes in expected.values())
    del expected[8]
    assert boxes_by_frame(damaged) == expected
    status = done.status.set_index(["video_id", "stage"])
    assert status.status["real", "detect"] == "decode_error"
    assert "1 of 6 frames can't be decoded: 8" in status.reason["real", "detect"]
    assert status["count"]["fake", "masks"] == 5
    assert set(pd.read_csv(damaged.folds).frame_idx) == {0, 4, 12, 16, 20}


def test_a_fake_that_is_shorter_or_of_another_size_is_a_status(tmp_path):
    short = preprocess(make_data(tmp_path / "a", fake_frames=portraits(10)), WorkFolder(tmp_path / "1")).status
    assert short.set_index(["video_id", "stage"]).status["fake", "crop"] == "short"
    small = make_data(tmp_path / "b", fake_frames=portraits(24, 160, 160))
    status = preprocess(small, WorkFolder(tmp_path / "2")).status.set_index(["video_id", "stage"])
    assert status.status["fake", "crop"] == "shape_mismatch"
    assert "160 x 160, its original 320 x 320" in status.reason["fake", "crop"]


def test_boxes_and_crops_are_in_the_pixels_that_a_player_shows(tmp_path):
    """Pixels twice as wide as high, and a mirroring matrix: the same boxes as of the picture stored plainly."""
    plain, odd = make_data(tmp_path / "plain"), make_data(tmp_path / "odd")
    narrow = [np.ascontiguousarray(cv2.resize(frame, (160, 320))[:, ::-1]) for frame in portraits(24)]
    for name in ("real", "fake"):
        path = odd / "dfdc_train_part_0" / f"{name}.mp4"
        write_intra_video(path, narrow, aspect=Fraction(2, 1))
        set_matrix(path, -1, 0, 0, 1)
    works = {data: WorkFolder(tmp_path / "work" / data.name) for data in (plain, odd)}
    statuses = {data: preprocess(data, work, PreprocessConfig(every=8)).status for data, work in works.items()}
    assert (statuses[odd].status == "ok").all()
    expected, got = (boxes_by_frame(works[data]) for data in (plain, odd))
    assert got.keys() == expected.keys()
    for frame_idx, boxes in expected.items():
        assert np.allclose(got[frame_idx], boxes, atol=8)  # half of the pixels were lost when it was squeezed
        crops = [read_png(works[data].crops("fake") / f"{frame_idx}_0.png") for data in (plain, odd)]
        assert np.allclose(crops[0].shape, crops[1].shape, atol=12)


def test_a_size_that_changes_midway_leaves_no_frame_out(tmp_path):
    """Each frame has its own size, and the face in it keeps its number; a fake must be as large as its original."""
    data = make_data(tmp_path)
    part = data / "dfdc_train_part_0"
    for name, width in (("small", 160), ("large", 320)):
        frames = [cv2.resize(frame, (width, width)) for frame in portraits(12)]
        write_intra_video(part / f"{name}.mp4", frames, form="mpegts")
    grows = (part / "small.mp4").read_bytes() + (part / "large.mp4").read_bytes()
    for name in ("real", "fake"):
        (part / f"{name}.mp4").write_bytes(grows)
    entries = json.loads((part / "metadata.json").read_text())
    write_intra_video(part / "other.mp4", portraits(24))
    entries["other.mp4"] = {"label": "FAKE", "original": "real.mp4"}
    (part / "metadata.json").write_text(json.dumps(entries))
    work = WorkFolder(tmp_path / "work")
    status = preprocess(data, work, PreprocessConfig(every=4)).status.set_index(["video_id", "stage"])
    assert (status.status[["real", "fake"]] == "ok").all()
    shapes = {name: read_png(work.crops("fake") / name).shape for name in work.crop_names("fake")}
    assert list(shapes) == [f"{frame_idx}_0.png" for frame_idx in range(0, 24, 4)]
    assert shapes["12_0.png"][0] == pytest.approx(2 * shapes["0_0.png"][0], rel=0.1)
    places = read_places(work, "real")
    assert all((box[2:] <= shapes[name][1::-1]).all() for name, (box, _) in places.items())
    assert status.status["other", "crop"] == "shape_mismatch"
    assert "3 of 6 frames are 320 x 320, its original 160 x 160" in status.reason["other", "crop"]
    assert status["count"]["other", "crop"] == 3


def test_leftovers_of_dead_processes_are_swept_and_those_of_the_living_are_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".a.json.{platform.node()}-{dead.pid}.part"
    left.write_text("half")
    (tmp_path / f".b.{platform.node()}-{dead.pid}.part").mkdir()
    kept = [
        tmp_path / f".a.json.{platform.node()}-{os.getppid()}.part",
        tmp_path / f".a.json.elsewhere-{dead.pid}.part",
    ]
    for path in kept:
        path.write_text("at work")
    sweep_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_artifacts_lie_beside_the_data_never_in_them(tmp_path):
    assert WorkFolder.beside(tmp_path / "dfdc").root == tmp_path / "work" / "dfdc"
    one_part = WorkFolder.beside(tmp_path / "dfdc" / "dfdc_train_part_3").root
    assert one_part == tmp_path / "work" / "dfdc_train_part_3"


def test_missing_and_broken_videos_are_statuses(small_sample, tmp_path):
    data = tmp_path / "broken"
    shutil.copytree(small_sample, data)
    videos = read_metadata(data)
    originals = videos[videos.label == 0]
    fake = videos[(videos.label == 1) & (videos.original_id == originals.video_id.iloc[1])].iloc[0]
    (data / originals.file.iloc[0]).unlink()
    (data / fake.file).write_text("not a video")
    work = WorkFolder(tmp_path / "work")
    status = preprocess(data, work, EVERY_6).status.groupby("video_id").status.agg(set)
    family = videos[videos.original_id == originals.video_id.iloc[0]].video_id
    missing = originals.video_id.iloc[0]
    assert all(status[v] == ({"missing_file"} if v == missing else {"missing_original"}) for v in family)
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
    status = preprocess(data, WorkFolder(tmp_path / "work"), EVERY_6).status.groupby("video_id").status.agg(set)
    fakes = videos[(videos.original_id == original.video_id) & (videos.label == 1)].video_id
    assert status[original.video_id] == {"unreadable"}
    assert all(status[fake] == {"broken_original"} for fake in fakes)  # the fakes' own files are fine
    assert set(status.index) == set(videos.video_id)


def test_originals_are_chosen_evenly_over_parts(small_sample):
    table = read_metadata(small_sample)
    chosen = choose_originals(table, 2, small_sample)
    assert chosen.part.nunique() == 2
    assert chosen.original_id.nunique() == 2
    assert len(chosen) == 6
    assert len(choose_originals(table, 0, small_sample)) == len(table)


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
