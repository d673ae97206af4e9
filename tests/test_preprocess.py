"""From videos to crops, masks and folds: what is made, what is kept, what each failure becomes."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import files_of, set_matrix, strike, write_intra_video
from facenet_pytorch import MTCNN

from dfdc_lib.config import TRAIN_THRESHOLDS, Margin, PreprocessConfig
from dfdc_lib.geometry import add_margin
from dfdc_lib.metadata import read_metadata
from dfdc_lib.ops.pipeline import append_lines, choose_originals, preprocess, read_status
from dfdc_lib.rehearsal.sample import portrait
from dfdc_lib.store import WorkFolder, face_file, list_faces, read_mask, read_png, write_png
from dfdc_lib.video import iterate_frames

EVERY_6 = PreprocessConfig(every=6)


@pytest.fixture
def data_copy(small_sample, tmp_path) -> Path:
    """A copy of the small sample, to be changed."""
    return shutil.copytree(small_sample, tmp_path / small_sample.name)


def done_with(data, work: WorkFolder, config=EVERY_6, **amount) -> pd.DataFrame:
    """Preprocess: (video_id, stage) → status, count, reason."""
    return preprocess(data, work, config, **amount).status.set_index(["video_id", "stage"])


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


def test_stored_boxes_are_the_peers_on_frames_decoded_by_another_library(small_sample, small_work):
    """PyAV decodes, the peer detects, and the boxes are put back by hand."""
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
            if scale != 1:
                size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
                picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            boxes, _, landmarks = peer.detect(picture, landmarks=True)
            assert len(frame["boxes"]) == (0 if boxes is None else len(boxes))
            for box, points in zip(frame["boxes"], frame["landmarks"], strict=True):
                nearest = np.abs(boxes / scale - box).max(axis=1).argmin()
                # Both convert colours with FFmpeg: what is left is rounding.
                assert np.abs(boxes[nearest] / scale - box).max() < 0.01
                assert np.abs(landmarks[nearest] / scale - points).max() < 0.01
    assert {0.33, 1} <= seen


def test_a_second_run_keeps_all_and_makes_what_was_struck_out(small_sample, small_work, work_copy):
    before = {p: p.stat().st_mtime_ns for p in work_copy.root.rglob("*.png")}
    done = preprocess(small_sample, work_copy, EVERY_6)
    assert done.actions == {("detect", "kept"): 4, ("crop", "kept"): 12, ("masks", "kept"): 8}
    assert {p: p.stat().st_mtime_ns for p in work_copy.root.rglob("*.png")} == before
    video = read_metadata(small_sample).query("label == 1").iloc[0]
    shutil.rmtree(work_copy.crops(video.video_id))
    strike(work_copy, video.video_id, "crop")
    done = preprocess(small_sample, work_copy, EVERY_6)
    assert done.actions["crop", "done"] == done.actions["masks", "done"] == 1
    assert files_of(work_copy) == files_of(small_work)


def test_an_original_that_is_done_again_takes_its_family_along(small_sample, small_work, work_copy):
    original = read_metadata(small_sample).query("label == 0").video_id.iloc[0]
    strike(work_copy, original, "detect")
    done = preprocess(small_sample, work_copy, EVERY_6, stages=["detect"])
    assert done.actions["detect", "done"] == 1
    waiting = done.status[done.status.status == "pending"]
    assert waiting.stage.value_counts().to_dict() == {"crop": 3, "masks": 2}
    assert not work_copy.crops(original).exists()
    assert not work_copy.folds.exists()
    preprocess(small_sample, work_copy, EVERY_6)
    assert files_of(work_copy) == files_of(small_work)


def test_each_video_is_decoded_once(small_sample, tmp_path, monkeypatch):
    opened = []

    def watch(path, *rest):
        opened.append(Path(path).name)
        return iterate_frames(path, *rest)

    monkeypatch.setattr("dfdc_lib.video.iterate_frames", watch)
    preprocess(small_sample, WorkFolder(tmp_path), EVERY_6)
    assert sorted(opened) == sorted(path.name for path in small_sample.rglob("*.mp4"))


@pytest.mark.slow
def test_processes_make_the_same_artifacts(small_sample, small_work, tmp_path):
    work = WorkFolder(tmp_path / "parallel")
    preprocess(small_sample, work, EVERY_6, workers=2)
    assert files_of(work) == files_of(small_work)


def test_stages_by_themselves_make_the_same_and_say_what_they_lack(
    small_sample, small_work, tmp_path
):
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
    preprocess(small_sample, work_copy, wider, folds=3, originals=1, overwrite=True)
    assert work_copy.read_recipe()["settings"]["margin"] == "0.5"
    assert pd.read_csv(work_copy.folds).original_id.nunique() == 1
    preprocess(small_sample, work_copy, EVERY_6, overwrite=True)
    assert files_of(work_copy) == files_of(small_work)
    done = preprocess(
        small_sample, work_copy, EVERY_6, overwrite=True
    )  # the same recipe: all is kept
    assert {action for _, action in done.actions} == {"kept"}
    recipe = work_copy.read_recipe()
    recipe["versions"]["torch"] = "1.0"
    work_copy.recipe.write_text(json.dumps(recipe))
    preprocess(small_sample, work_copy, EVERY_6)
    assert "libraries changed: torch 1.0 → " in capsys.readouterr().err


def test_another_data_set_or_an_earlier_version_is_refused(data_copy, work_copy):
    renamed = data_copy.rename(data_copy.with_name("other"))
    (renamed / "sample.json").unlink()
    with pytest.raises(ValueError, match="was made with sample, but this run uses other"):
        preprocess(renamed, work_copy, EVERY_6)
    work_copy.recipe.unlink()
    with pytest.raises(ValueError, match="an earlier version of this project: .*--overwrite"):
        preprocess(renamed, work_copy, EVERY_6)


def test_a_file_of_another_size_is_done_again_and_one_that_is_gone_is_not(
    data_copy, small_work, work_copy
):
    table = read_metadata(data_copy)
    for file in table.file[table.label == 1]:
        (data_copy / file).unlink()
    done = preprocess(data_copy, work_copy, EVERY_6)
    assert {action for _, action in done.actions} == {"kept"}
    assert files_of(work_copy) == files_of(small_work)
    video = data_copy / table.file[table.label == 0].iloc[0]
    video.write_bytes(video.read_bytes() + b"x")
    status = done_with(data_copy, work_copy).status
    fakes = table.video_id[(table.original_id == video.stem) & (table.label == 1)]
    assert (status[[(fake, "crop") for fake in fakes]] == "missing_file").all()


def test_the_last_line_of_a_stage_counts_and_a_reason_is_one_line(work_copy):
    lines = read_status(work_copy)
    key, line = next(iter(lines.items()))
    append_lines(work_copy, [line._replace(reason="one\nline, “quoted”")])
    assert read_status(work_copy) == lines | {key: line._replace(reason="one line, “quoted”")}


def test_a_failure_in_the_original_does_not_stick_to_its_fakes(
    small_sample, small_work, tmp_path, monkeypatch
):
    work, real = WorkFolder(tmp_path), set(read_metadata(small_sample).query("label == 0").video_id)

    def fail(path, picture):
        if path.parent.parent.name.split(".")[0] in real:
            raise OSError("the network is gone")
        return write_png(path, picture)

    with monkeypatch.context() as patched:
        patched.setattr("dfdc_lib.preprocess.write_png", fail)
        status = done_with(small_sample, work).status
    assert set(status.xs("detect", level=1)) == {"error"}
    assert set(status.xs("crop", level=1)) == {"broken_original"}
    preprocess(small_sample, work, EVERY_6)
    assert files_of(work) == files_of(small_work)


def test_missing_and_broken_videos_are_statuses_and_may_be_fixed(
    data_copy, small_sample, small_work, tmp_path
):
    table = read_metadata(data_copy)
    missing, broken, *_ = table[table.label == 0].itertuples()
    spared = (table.label == 1) & ~table.original_id.isin([missing.video_id, broken.video_id])
    fake = next(table[spared].itertuples())
    (data_copy / missing.file).unlink()
    for video in (broken, fake):
        (data_copy / video.file).write_text("not a video")
    work = WorkFolder(tmp_path / "work")
    found = done_with(data_copy, work).status.groupby("video_id").agg(set)
    assert set(found.index) == set(table.video_id)
    of_fakes = {missing.video_id: "missing_original", broken.video_id: "broken_original"}
    for video in table[table.original_id.isin(of_fakes)].itertuples():
        own = "missing_file" if video.video_id == missing.video_id else "unreadable"
        assert found[video.video_id] == {of_fakes[video.original_id] if video.label else own}
    assert found[fake.video_id] == {"unreadable"}
    assert "FFmpeg" in read_status(work)[fake.video_id, "crop"].reason
    assert not {fake.video_id, broken.video_id} & set(pd.read_csv(work.folds).video_id)
    for video in (missing, broken, fake):
        shutil.copy(small_sample / video.file, data_copy / video.file)
    preprocess(data_copy, work, EVERY_6)
    assert files_of(work) == files_of(small_work)


def test_an_original_that_breaks_takes_its_fakes_artifacts_along(data_copy, work_copy):
    original = read_metadata(data_copy).query("label == 0").iloc[0]
    (data_copy / original.file).write_text("not a video")
    found = set(done_with(data_copy, work_copy).status)
    assert found == {"ok", "unreadable", "broken_original", "pending"}
    family = read_metadata(data_copy).query("original_id == @original.video_id").video_id
    assert not [v for v in family if work_copy.crops(v).exists() or work_copy.masks(v).exists()]
    assert not set(family) & set(pd.read_csv(work_copy.folds).video_id)


def test_a_fake_whose_original_is_not_listed_is_a_status(data_copy, tmp_path):
    path = data_copy / "dfdc_train_part_0" / "metadata.json"
    entries = json.loads(path.read_text())
    fake, original = next((n, e["original"]) for n, e in entries.items() if e["original"])
    del entries[original]
    path.write_text(json.dumps(entries))
    line = done_with(data_copy, WorkFolder(tmp_path / "work")).loc[Path(fake).stem, "crop"]
    told = f"{Path(original).stem} is not listed"
    assert (line.status, line.reason) == ("missing_original", told)


def test_few_originals_are_those_that_are_there_evenly_over_parts(data_copy):
    table = read_metadata(data_copy)
    chosen = choose_originals(table, 2, data_copy)
    assert chosen.part.nunique() == chosen.original_id.nunique() == 2
    assert len(chosen) == 6
    assert len(choose_originals(table, 0, data_copy)) == len(table)
    originals = table[table.label == 0]
    for file in originals.file[:2]:
        (data_copy / file).unlink()
    assert set(choose_originals(table, 2, data_copy).original_id) == set(originals.video_id[2:])


def test_a_box_outside_the_frame_is_a_status_and_the_other_crops_are_used(small_sample, work_copy):
    video = read_metadata(small_sample).query("label == 1").iloc[0]
    boxes = work_copy.read_boxes(video.original_id)
    next(frame for frame in boxes["frames"] if frame["boxes"])["places"][0] = None
    work_copy.boxes(video.original_id).write_text(json.dumps(boxes))
    for video_id in read_metadata(small_sample).query("original_id == @video.original_id").video_id:
        strike(work_copy, video_id, "crop")
    line = done_with(small_sample, work_copy).loc[video.video_id, "crop"]
    assert line.status == "empty_crop"
    assert "1 boxes leave nothing inside" in line.reason
    assert line["count"] >= 1
    assert video.video_id in set(pd.read_csv(work_copy.folds).video_id)


def test_pairs_that_can_not_be_compared_are_statuses(small_sample, work_copy):
    fakes = read_metadata(small_sample).query("label == 1").drop_duplicates("original_id")[:3]
    lonely, unlike, broken = (next(work_copy.crops(v).glob("*.png")) for v in fakes.original_id)
    lonely.unlink()
    write_png(unlike, read_png(unlike)[:-1])
    broken.write_text("no picture")
    for fake in fakes.video_id:
        strike(work_copy, fake, "masks")
    found = done_with(small_sample, work_copy, stages=["masks"]).loc[
        [(v, "masks") for v in fakes.video_id]
    ]
    assert found.status.tolist() == ["missing_partner", "shape_mismatch", "broken_crop"]
    assert unlike.name in found.reason.iloc[1]


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
    return {frame["frame_idx"]: frame["boxes"] for frame in work.read_boxes("real")["frames"]}


def test_a_frame_that_can_not_be_decoded_leaves_every_other_box_on_its_frame(tmp_path):
    config = PreprocessConfig(every=4)
    whole, damaged = WorkFolder(tmp_path / "whole"), WorkFolder(tmp_path / "damaged")
    preprocess(make_data(tmp_path / "a"), whole, config)
    status = done_with(make_data(tmp_path / "b", drop=[7, 8]), damaged, config)
    expected = boxes_by_frame(whole)
    assert [len(boxes) for boxes in expected.values()] == [1] * 6
    del expected[8]
    assert boxes_by_frame(damaged) == expected
    assert status.status["real", "detect"] == "decode_error"
    assert "1 of 6 frames can't be decoded: 8" in status.reason["real", "detect"]
    assert status["count"]["fake", "masks"] == 5
    assert set(pd.read_csv(damaged.folds).frame_idx) == {0, 4, 12, 16, 20}


def test_a_fake_that_is_shorter_or_of_another_size_is_a_status(tmp_path):
    short = make_data(tmp_path / "a", fake_frames=portraits(10))
    assert done_with(short, WorkFolder(tmp_path / "1")).status["fake", "crop"] == "short"
    small = make_data(tmp_path / "b", fake_frames=portraits(24, 160, 160))
    line = done_with(small, WorkFolder(tmp_path / "2")).loc["fake", "crop"]
    assert line.status == "shape_mismatch"
    assert "160 x 160, its original 320 x 320" in line.reason


def test_boxes_are_in_the_pixels_that_a_player_shows(tmp_path):
    """Pixels twice as wide as high, and a mirroring matrix, against the picture stored plainly."""
    plain, odd = make_data(tmp_path / "plain"), make_data(tmp_path / "odd")
    narrow = [cv2.resize(frame, (160, 320))[:, ::-1].copy() for frame in portraits(24)]
    path = odd / "dfdc_train_part_0" / "real.mp4"
    write_intra_video(path, narrow, aspect=Fraction(2, 1))
    set_matrix(path, -1, 0, 0, 1)
    works = [WorkFolder(tmp_path / "work" / data.name) for data in (plain, odd)]
    for data, work in zip((plain, odd), works, strict=True):
        preprocess(data, work, PreprocessConfig(every=8), stages=["detect"])
    expected, found = map(boxes_by_frame, works)
    assert found.keys() == expected.keys()
    for frame_idx, boxes in expected.items():  # half of the pixels were lost by squeezing
        assert np.allclose(found[frame_idx], boxes, atol=8)


def test_a_size_that_changes_midway_leaves_no_frame_out(tmp_path):
    """Each frame has its own size, the face in it keeps its number, and a fake's must be as
    large."""
    data = make_data(tmp_path)
    part = data / "dfdc_train_part_0"
    grows = b""
    for width in (160, 320):
        frames = [cv2.resize(frame, (width, width)) for frame in portraits(12)]
        write_intra_video(part / "half.mp4", frames, form="mpegts")
        grows += (part / "half.mp4").read_bytes()
    (part / "real.mp4").write_bytes(grows)
    work = WorkFolder(tmp_path / "work")
    status = preprocess(data, work, PreprocessConfig(every=4)).status.set_index(
        ["video_id", "stage"]
    )
    assert status.status["real", "crop"] == "ok"
    assert list_faces(work.crops("real")) == [(frame_idx, 0) for frame_idx in range(0, 24, 4)]
    heights = [len(read_png(work.crops("real") / f"{i}_0.png")) for i in (0, 12)]
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.1)
    assert status.status["fake", "crop"] == "shape_mismatch"
    assert "3 of 6 frames are not as large" in status.reason["fake", "crop"]
    assert status["count"]["fake", "crop"] == 3


def test_an_original_without_a_face_leaves_no_folder(tmp_path):
    """An empty one would be an orphan to the doctor."""
    data, work = make_data(tmp_path), WorkFolder(tmp_path / "work")
    grey = [np.full((128, 128, 3), 99, np.uint8)] * 5
    write_intra_video(data / "dfdc_train_part_0" / "real.mp4", grey)
    status = preprocess(data, work).status
    assert dict(zip(status.video_id, status.status, strict=True)) == {
        "real": "no_face",
        "fake": "no_face",
    }
    assert not list(work.root.glob("crops/*"))
