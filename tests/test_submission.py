"""Many videos to a submission: what is done is kept, and a crash costs one video its score."""

import os
import signal
from pathlib import Path

import pandas as pd
import pytest
from test_predict import make_model

from dfdc_lib import predict
from dfdc_lib.config import PredictConfig
from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import save_checkpoint
from dfdc_lib.ops import submission
from dfdc_lib.predict import Verdict, load_models
from dfdc_lib.store import DamagedFile

TWO_FRAMES = PredictConfig(frames=2)
RESULTS = ["s.csv", "status.csv", "predictions.parquet", "s.settings.json"]
cut_video = predict.cut_video


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    save_checkpoint(path, make_model())
    return load_models([path])


@pytest.fixture(scope="module")
def videos(small_sample):
    return [small_sample / file for file in read_metadata(small_sample).file[:3]]


@pytest.fixture
def cut(monkeypatch):
    """The videos that are looked at, in order."""
    seen = []

    def note(path, *rest):
        seen.append(path)
        return cut_video(path, *rest)

    monkeypatch.setattr(submission, "cut_video", note)
    return seen


def finish(videos, models, out) -> list[Verdict]:
    verdicts = list(submission.score_files(videos, models, TWO_FRAMES, out))
    submission.write_results(sorted(verdicts, key=lambda verdict: verdict.video), out)
    return verdicts


def begin(videos, models, out, count=1, config=TWO_FRAMES) -> None:
    """Take some verdicts, and leave."""
    scoring = submission.score_files(videos, models, config, out)
    for _ in range(count):
        next(scoring)
    scoring.close()


def test_a_stopped_call_goes_on_and_ends_as_if_undisturbed(videos, models, tmp_path, cut):
    finish(videos, models, tmp_path / "whole" / "s.csv")
    out = tmp_path / "stopped" / "s.csv"
    begin(videos, models, out, count=2)
    with open(submission.journal_of(out), "a") as file:
        file.write('{"video": "torn')  # the power failed
    cut.clear()
    finish(videos, models, out)
    assert cut == videos[2:]
    for name in RESULTS:
        assert (out.parent / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not submission.journal_of(out).exists()


def test_a_call_of_other_settings_is_refused_with_what_has_changed(videos, models, tmp_path):
    out, path = tmp_path / "s.csv", tmp_path / "m.pt"
    begin(videos, models, out)
    with pytest.raises(ValueError, match=r"other settings \(config\)"):
        begin(videos, models, out, config=PredictConfig(frames=3))
    save_checkpoint(path, make_model(1))
    with pytest.raises(ValueError, match=r"other settings \(checkpoints\)"):
        begin(videos, load_models([path]), out)
    submission.journal_of(out).write_text("{\n")
    with pytest.raises(DamagedFile, match=r"s\.csv\.verdicts is damaged: delete it"):
        begin(videos, models, out)


def test_what_may_pass_and_what_has_changed_is_tried_again(videos, models, tmp_path, cut):
    broken = tmp_path / "broken.mp4"
    contents = [b"no video", b"no video", b"no", b""]
    contents += [video.read_bytes() for video in (videos[0], videos[0], videos[1])]
    for content in contents:
        broken.write_bytes(content)
        begin([broken], models, tmp_path / "s.csv")
    assert len(cut) == len(contents) - 1  # a good one that is as it was


def cut_and_crash(path, *rest):
    """What workers do in place of `cut_video`."""
    if path.stem == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return cut_video(path, *rest)


@pytest.mark.slow
def test_a_video_that_takes_its_process_along_costs_a_status(videos, models, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "cut_video", cut_and_crash)
    paths = [tmp_path / "crash.mp4", videos[0]]
    done = {v.video: v for v in submission.score_files(paths, models, TWO_FRAMES, workers=1)}
    crashed, scored = (done[path] for path in paths)
    assert (crashed.status, crashed.p_fake, scored.status) == ("crashed", None, "ok")
    here = next(predict.predict_videos(videos[:1], models, TWO_FRAMES))
    assert scored.p_fake == pytest.approx(here.p_fake, abs=1e-3)


def test_the_submission_lists_scored_videos_and_the_status_all(tmp_path, videos, models):
    broken, out = tmp_path / "text.mp4", tmp_path / "out" / "s.csv"
    broken.write_text("no video")
    verdicts = finish([broken, videos[0]], models, out)
    status = pd.read_csv(out.parent / "status.csv").set_index("filename").status.to_dict()
    assert status == {"text.mp4": "unreadable", videos[0].name: "ok"}
    assert pd.read_csv(out).filename.tolist() == [videos[0].name]
    faces = pd.read_parquet(out.parent / "predictions.parquet")
    assert set(faces.video) == {videos[0].name}
    submission.write_results(verdicts, out, 0.25)
    assert pd.read_csv(out).set_index("filename").label["text.mp4"] == 0.25


@pytest.mark.parametrize("name", RESULTS)
def test_results_never_take_the_place_of_other_files(name, tmp_path):
    submission.check_results(tmp_path / "s.csv")
    (tmp_path / name).write_text("filename,label\n")
    with pytest.raises(ValueError, match=f"{name} belongs to something else"):
        submission.check_results(tmp_path / "s.csv")
    submission.journal_of(tmp_path / "s.csv").touch()  # of a call that was stopped as it wrote
    submission.check_results(tmp_path / "s.csv")
    submission.journal_of(tmp_path / "s.csv").unlink()
    for each in RESULTS:  # as an earlier call left them
        (tmp_path / each).touch()
    submission.check_results(tmp_path / "s.csv")
    with pytest.raises(ValueError, match="name of another result"):
        submission.check_results(tmp_path / "new" / "status.csv")


def test_videos_are_found_by_their_names_each_once_and_the_rest_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, message in ((tmp_path, "no video"), ("nowhere", "no such file or folder: nowhere")):
        with pytest.raises(FileNotFoundError, match=message):
            submission.find_videos([given])
    names, others = ["a.MTS", "b.mp4", "c.webm"], ["._b.mp4", "metadata.json", "notes.txt"]
    (tmp_path / "sub").mkdir()
    for name in [*names, *others]:
        (tmp_path / "sub" / name).touch()
    (tmp_path / "sub" / "d.mp4").symlink_to("nowhere")
    videos, passed_over = submission.find_videos(["sub/b.mp4", tmp_path / "sub" / "b.mp4", "."])
    assert list(map(str, videos)) == ["sub/a.MTS", "sub/b.mp4", "sub/c.webm", "sub/d.mp4"]
    assert [path.name for path in passed_over] == others


def test_where_names_repeat_videos_keep_apart():
    videos = [Path("d/a/x.mp4"), Path("d/b/x.mp4"), Path("d/b/y.mp4")]
    names = submission.name_videos([*videos, Path(os.fsdecode(b"caf\xe9.mp4"))])
    assert list(names.values()) == ["d/a/x.mp4", "d/b/x.mp4", "y.mp4", "caf\ufffd.mp4"]
