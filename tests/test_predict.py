import os
import time
import weakref
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import set_matrix, write_intra_video

from dfdc_lib import predict as p
from dfdc_lib import submission
from dfdc_lib.aggregate import confident_strategy
from dfdc_lib.augment import valid_transforms
from dfdc_lib.cli import main
from dfdc_lib.geometry import spread_indices
from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint
from dfdc_lib.sample import portrait
from dfdc_lib.video import iterate_frames, probe, write_video


@pytest.fixture(scope="module")
def models():
    result = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        result.append(DeepfakeClassifier("tiny").eval())
    return result


@pytest.fixture(scope="module")
def video(small_sample):
    table = read_metadata(small_sample)
    return small_sample / table.file[table.label == 0].iloc[0]


def test_a_verdict_by_hand(video, models):
    """One frame, followed by hand through every step, gives the score that the verdict records."""
    verdict = p.predict_video(video, models[:1], n_frames=4)
    row = verdict.faces.iloc[0]
    wanted = spread_indices(probe(video).n_frames, 4)
    assert row.frame_idx in wanted
    ((_, frame),) = iterate_frames(video, [row.frame_idx])
    width, height = row.x1 - row.x0, row.y1 - row.y0
    x0, x1 = round(row.x0 - 0.2 * width), round(row.x1 + 0.2 * width)
    y0, y1 = round(row.y0 - 0.2 * height), round(row.y1 + 0.2 * height)
    crop = frame[max(y0, 0) : y1, max(x0, 0) : x1]
    tensor = valid_transforms(112)(image=crop)["image"][None]
    assert models[0].predict(tensor).item() == pytest.approx(row.p_fake, abs=1e-5)
    assert verdict.p_fake == pytest.approx(confident_strategy(verdict.faces.p_fake))


def test_an_ensemble_averages_its_models(video, models):
    alone = [p.predict_video(video, [model], n_frames=3).p_fake for model in models]
    together = p.predict_video(video, models, n_frames=3)
    assert together.p_fake == pytest.approx(np.mean(alone))
    assert together.faces.checkpoint.nunique() == 2


def test_videos_that_can_not_be_judged_have_a_status_and_no_score(tmp_path, models):
    write_video(tmp_path / "grey.mp4", [np.full((120, 160, 3), 127, np.uint8)] * 5)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name, status in (("grey", "no_face"), ("text", "unreadable"), ("empty", "unreadable")):
        verdict = p.predict_video(tmp_path / f"{name}.mp4", models)
        assert (verdict.status, verdict.p_fake) == (status, None)
        assert verdict.reason
    with pytest.raises(FileNotFoundError):
        p.predict_video(tmp_path / "gone.mp4", models)


def test_wrong_calls_name_the_choices(video, models):
    with pytest.raises(ValueError, match="mean, confident"):
        p.predict_video(video, models, strategy="best")
    with pytest.raises(ValueError, match="at least one checkpoint"):
        p.predict_video(video, [])


def test_checkpoints_can_be_given_as_paths(video, models, tmp_path):
    save_checkpoint(tmp_path / "m.pt", models[0])
    from_path = p.predict_video(video, [tmp_path / "m.pt"], n_frames=2)
    assert from_path.p_fake == p.predict_video(video, models[:1], n_frames=2).p_fake


def test_the_submission_lists_scored_videos_and_the_status_all(tmp_path, video, models):
    (tmp_path / "text.mp4").write_text("no video")
    verdicts = [p.predict_video(path, models[:1], n_frames=2) for path in (video, tmp_path / "text.mp4")]
    submission.write_verdicts(verdicts, tmp_path / "out" / "submission.csv")
    listed = pd.read_csv(tmp_path / "out" / "submission.csv")
    status = pd.read_csv(tmp_path / "out" / "status.csv")
    faces = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert listed.filename.tolist() == [video.name]
    assert status.status.tolist() == ["ok", "unreadable"]
    assert set(faces.video) == {video.name}
    assert {"frame_idx", "face_idx", "x0", "score", "p_fake"} <= set(faces.columns)


def test_folders_are_searched_and_wrong_names_refused(small_sample, tmp_path):
    assert len(submission.find_videos([small_sample])[0]) == 12
    with pytest.raises(FileNotFoundError, match="no video"):
        submission.find_videos([tmp_path])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        submission.find_videos([tmp_path / "nowhere"])


def write_audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """One folder with every kind of video that people bring."""
    folder = tmp_path_factory.mktemp("zoo")
    face = cv2.resize(portrait("collins")[:260, 90:350], (256, 256))
    moving = [np.roll(face, 2 * (i % 5), axis=1) for i in range(33)]
    for count in (1, 2, 10, 31, 32, 33):
        write_video(folder / f"{count:02d}_frames.mp4", moving[:count])
    write_video(folder / "no_face.mp4", [np.full((120, 160, 3), 127, np.uint8)] * 40)
    hopper = cv2.resize(portrait("hopper")[90:390, 110:410], (256, 256))
    write_video(folder / "two_people.mp4", [np.hstack([picture, hopper]) for picture in moving])
    write_intra_video(folder / "variable_rate.mp4", moving, times=[20 * i + 7 * (i % 3) for i in range(33)])
    write_intra_video(folder / "damaged.mp4", moving, drop=[4, 20])
    whole = (folder / "33_frames.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    write_audio(folder / "audio_only.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video")
    latin = whole.replace(b"Lavf", b"La\xe9f")  # a tag that is not UTF-8, as old cameras write
    (folder / "latin_tag.mp4").write_bytes(latin)
    with open(os.fsencode(folder) + b"/caf\xe9.mp4", "wb") as file:
        file.write(whole)
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    return folder


ZOO = {
    "01_frames": ("short", 1), "02_frames": ("short", 2), "10_frames": ("short", 10), "31_frames": ("short", 31),
    "32_frames": ("ok", 32), "33_frames": ("ok", 32), "no_face": ("no_face", 32), "two_people": ("ok", 32),
    "variable_rate": ("ok", 32), "damaged": ("decode_error", 30), "truncated": ("unreadable", 0),
    "audio_only": ("no_video_stream", 0), "empty": ("unreadable", 0), "text": ("unreadable", 0),
    "dangling": ("missing_file", 0), "latin_tag": ("ok", 32), "caf\ufffd": ("ok", 32),
}  # fmt: skip


@pytest.mark.slow
def test_one_run_over_every_kind_of_video(zoo, models, tmp_path, capsys):
    """Each its right status, a score for those with a face, and exit code and summary that agree."""
    save_checkpoint(tmp_path / "m.pt", models[0])
    out = tmp_path / "out" / "submission.csv"
    code = main(["predict", str(zoo), "--checkpoint", str(tmp_path / "m.pt"), "--out", str(out), "--fallback", "0.5"])
    status = pd.read_csv(out.parent / "status.csv").set_index("filename")
    for name, expected in ZOO.items():
        row = status.loc[f"{name}.mp4"]
        assert (row.status, row.n_frames) == expected, name
    faces = pd.read_parquet(out.parent / "predictions.parquet").groupby("video")
    assert faces.frame_idx.nunique()["10_frames.mp4"] == 10
    assert faces.face_idx.nunique()["two_people.mp4"] == 2
    assert faces.face_idx.nunique()["01_frames.mp4"] == 1
    submission = pd.read_csv(out)
    assert set(submission.filename) == set(status.index)
    printed = capsys.readouterr().out
    n_scored = faces.ngroups
    assert code == 1
    assert f"{n_scored} of {len(status)} videos have a score" in printed
    assert (submission.label[~submission.filename.isin(faces.groups)] == 0.5).all()


def test_a_video_that_is_turned_by_its_metadata_is_seen_upright(tmp_path, models):
    face = cv2.resize(portrait("collins")[:260, 90:350], (256, 256))
    write_video(tmp_path / "turned.mp4", [np.ascontiguousarray(np.rot90(face))] * 3)
    set_matrix(tmp_path / "turned.mp4", 0, 1, -1, 0)  # as phones do
    write_video(tmp_path / "plain.mp4", [face] * 3)
    turned, plain = (p.predict_video(tmp_path / f"{name}.mp4", models) for name in ("turned", "plain"))
    assert turned.n_faces == plain.n_faces == 3
    assert turned.p_fake == pytest.approx(plain.p_fake, abs=0.02)


def test_each_person_has_a_score(zoo, models):
    verdict = p.predict_video(zoo / "two_people.mp4", models)
    assert verdict.people.n_faces.tolist() == [32, 32]
    one = verdict.faces[(verdict.faces.face_idx == 1) & (verdict.faces.checkpoint == "model 0")]
    other = verdict.faces[(verdict.faces.face_idx == 1) & (verdict.faces.checkpoint == "model 1")]
    assert verdict.people.p_fake[1] == pytest.approx(
        (confident_strategy(one.p_fake) + confident_strategy(other.p_fake)) / 2
    )


def test_the_strategy_runs_over_all_faces_for_each_model_and_then_comes_the_mean(zoo, models):
    verdict = p.predict_video(zoo / "two_people.mp4", models, strategy="max")
    assert len(verdict.faces) == 2 * 64
    expected = verdict.faces.groupby("checkpoint").p_fake.max().mean()
    assert verdict.p_fake == pytest.approx(expected)


def test_coverage_and_log_loss_with_and_without_the_fallback():
    verdicts = [p.Verdict(Path("a.mp4"), "ok", 0.8), p.Verdict(Path("b.mp4"), "no_face")]
    judged = submission.judge_verdicts(verdicts, {"a.mp4": 1, "b.mp4": 0})
    assert judged["coverage"] == 0.5
    assert judged["log_loss_scored"] == pytest.approx(-np.log(0.8))
    assert judged["log_loss_all"] == pytest.approx(-(np.log(0.8) + np.log(0.5)) / 2)
    with pytest.raises(ValueError, match="no label for b.mp4$"):
        submission.judge_verdicts(verdicts, {"a.mp4": 1})


def test_labels_are_found_by_the_end_of_a_path_where_names_repeat(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    videos = [Path("a/x.mp4"), Path("b/x.mp4"), Path("b/y.mp4")]
    by_path = {"a/x.mp4": 1, "b/x.mp4": 0, "y.mp4": 1}
    assert submission.match_labels(videos, by_path) == [1, 0, 1]
    assert submission.match_labels([path.absolute() for path in videos], by_path) == [1, 0, 1]
    named = {name: number % 2 for number, name in enumerate(submission.name_videos(videos).values())}
    assert submission.match_labels(videos, named) == [0, 1, 0]  # as our own submission names them
    outside = [Path("..") / tmp_path.name / video for video in videos]
    assert submission.match_labels(videos, dict(zip(map(str, outside), (1, 1, 0), strict=True))) == [1, 1, 0]
    with pytest.raises(ValueError, match="a/x.mp4 and b/x.mp4 have one label, x.mp4"):
        submission.match_labels(videos, {"x.mp4": 1, "y.mp4": 1})
    with pytest.raises(ValueError, match="no label for a/x.mp4 and 1 more"):
        submission.match_labels(videos, {"c/x.mp4": 1, "y.mp4": 1})


def test_every_usual_name_of_a_video_is_looked_at_and_the_rest_is_told(tmp_path):
    suffixes = (
        "ts",
        "MTS",
        "m2ts",
        "flv",
        "m4v",
        "mpg",
        "mpeg",
        "3gp",
        "wmv",
        "ogv",
        "mxf",
        "mp4",
        "mov",
        "avi",
        "webm",
    )
    names = [f"a.{suffix}" for suffix in suffixes]
    for name in [*names, "._a.mp4", "metadata.json", "notes.txt"]:
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "sub" / name).write_text("")
    videos, passed_over = submission.find_videos([tmp_path])
    assert sorted(path.name for path in videos) == sorted(names)
    assert [path.name for path in passed_over] == ["._a.mp4", "metadata.json", "notes.txt"]


def test_the_command_tells_what_it_passes_over_in_a_folder(tmp_path, video, models, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(video.read_bytes())
    (tmp_path / "videos" / "metadata.json").write_text("{}")
    save_checkpoint(tmp_path / "m.pt", models[0])
    main(["predict", str(tmp_path / "videos"), "--checkpoint", str(tmp_path / "m.pt"), "--frames", "1"])
    assert "not videos by their names, and passed over: 1 (1 .json)" in capsys.readouterr().err


def test_a_video_that_is_named_twice_is_judged_once(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_text("")
    monkeypatch.chdir(tmp_path)
    assert submission.find_videos(["a.mp4", tmp_path / "a.mp4", tmp_path]) == ([Path("a.mp4")], [])


def test_two_videos_of_the_same_name_keep_apart(tmp_path, video, models):
    paths = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "same.mp4")
        paths[-1].write_bytes(video.read_bytes())
    submission.write_verdicts(list(p.predict_videos(paths, models, p.PredictConfig(frames=2))), tmp_path / "s.csv")
    assert pd.read_csv(tmp_path / "s.csv").filename.tolist() == [str(path) for path in paths]


def test_results_never_take_the_place_of_other_files(tmp_path):
    (tmp_path / "status.csv").write_text("my,own,table\n")
    with pytest.raises(ValueError, match="choose another folder"):
        submission.check_results(tmp_path / "submission.csv")

    (tmp_path / "one").mkdir()
    submission.write_verdicts([p.Verdict(Path("a.mp4"), "ok", 0.5)], tmp_path / "one" / "first.csv")
    submission.check_results(tmp_path / "one" / "first.csv")
    with pytest.raises(ValueError, match="another submission"):
        submission.check_results(tmp_path / "one" / "second.csv")
    with pytest.raises(ValueError, match="holds the labels"):
        submission.check_results(tmp_path / "truth.csv", tmp_path / "truth.csv")


def test_a_detector_that_fails_on_a_frame_costs_that_frame_alone(zoo, models, monkeypatch):
    detector = p.shared_detector(p.INFERENCE_THRESHOLDS, 0)
    whole = detector.detect_resized
    third = next(
        frame.picture for number, frame in enumerate(p.decode_videos([zoo / "33_frames.mp4"], 8)) if number == 2
    )

    def fail_at_third(frames, resize):
        if any(np.array_equal(frame, third) for frame in frames):
            raise RuntimeError("out of luck")
        return whole(frames, resize)

    monkeypatch.setattr(detector, "detect_resized", fail_at_third)
    verdict = p.predict_video(zoo / "33_frames.mp4", models, 8)
    assert (verdict.status, verdict.n_faces) == ("detect_error", 7)
    assert "out of luck" in verdict.reason


def test_a_checkpoint_given_twice_is_an_error(tmp_path, models):
    save_checkpoint(tmp_path / "m.pt", models[0])
    with pytest.raises(ValueError, match="given twice"):
        p.load_models([tmp_path / "m.pt"] * 2)


def test_run_ahead_keeps_order_errors_and_its_distance():
    made = []

    def numbers():
        for number in range(10):
            made.append(number)
            yield number
        raise KeyError("last")

    ahead = p.run_ahead(numbers(), 3)
    assert next(ahead) == 0
    time.sleep(0.1)
    assert len(made) <= 5
    with pytest.raises(KeyError, match="last"):
        assert list(ahead) == list(range(1, 10))
    assert made == list(range(10))


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path, models):
    """At no time are more than a few decoded frames alive, however many are looked at."""
    config = p.PredictConfig(frames=120, procedure="slides")
    write_video(tmp_path / "long.mp4", [np.full((240, 320, 3), 99, np.uint8)] * 120)
    alive, most = weakref.WeakSet(), 0

    def watch(items):
        nonlocal most
        for item in items:
            if isinstance(item, p.Frame):
                holder = type("Holder", (), {})()
                alive.add(holder)
                weakref.finalize(item.picture, lambda holder=holder: None)
                most = max(most, sum(1 for _ in alive))
            yield item

    decoded = p.run_ahead(watch(p.decode_videos([tmp_path / "long.mp4"], 120)), 4)
    cuts = {p.Cut(0.2, 112)}
    list(p.score_videos_in(p.detect_in(decoded, config, cuts), p.load_models(models), config))
    assert most <= 24  # of 120: a group in the detector, one that waits for it, a few decoded ahead
