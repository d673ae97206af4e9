"""Many videos to a submission: what was judged is kept, and a video that takes its process along costs a status."""

import os
import signal
from dataclasses import replace

import pandas as pd
import pytest
import torch
from waiting import hang

from dfdc_lib import submission
from dfdc_lib.cli import main
from dfdc_lib.config import PredictConfig
from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint
from dfdc_lib.submission import Judges, Judging, judge_videos
from dfdc_lib.tasks import watched


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    save_checkpoint(path, DeepfakeClassifier("tiny"))
    return path


@pytest.fixture(scope="module")
def videos(small_sample):
    return [small_sample / file for file in read_metadata(small_sample).file[:3]]


@pytest.fixture
def judged(monkeypatch):
    """The videos that were judged anew, in order."""
    seen, really = [], submission.predict_videos

    def note(paths, *rest):
        seen.extend(paths)
        return really(paths, *rest)

    monkeypatch.setattr(submission, "predict_videos", note)
    return seen


def judges_of(checkpoint, frames=2) -> Judges:
    return Judges((checkpoint,), PredictConfig(frames))


def test_a_stopped_run_goes_on_and_ends_as_if_undisturbed(videos, checkpoint, tmp_path, judged, monkeypatch, capsys):
    call = ["predict", *map(str, videos), "--checkpoint", str(checkpoint), "--frames", "2", "--workers", "0", "--out"]
    assert main([*call, str(tmp_path / "whole" / "s.csv")]) == 0
    judged.clear()
    really = submission.predict_videos

    def stop_at_third(paths, *rest):
        if paths == [videos[2]]:
            raise KeyboardInterrupt
        return really(paths, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(submission, "predict_videos", stop_at_third)
        assert main([*call, str(tmp_path / "stopped" / "s.csv")]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / "stopped" / "s.csv")) == 2  # what there was is written
    assert judged == videos[:2]
    judged.clear()
    assert main([*call, str(tmp_path / "stopped" / "s.csv")]) == 0
    assert judged == videos[2:]
    for name in ("s.csv", "status.csv", "predictions.parquet"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(list((tmp_path / "stopped").iterdir())) == 3


def test_verdicts_of_other_settings_or_of_another_file_are_made_again(videos, checkpoint, tmp_path, judged):
    out = tmp_path / "s.csv"

    def begin(judges, some=videos[:2]):
        """Take one verdict, and leave."""
        judged.clear()
        running = judge_videos(some, judges, out)
        next(running)
        running.close()
        return len(judged)

    assert begin(judges_of(checkpoint)) == 1
    assert begin(judges_of(checkpoint)) == 0
    assert begin(judges_of(checkpoint, frames=3)) == 1
    assert begin(judges_of(checkpoint)) == 0  # a run with a wrong setting in between costs nothing
    for kept in tmp_path.glob(".s.csv.verdicts/*.json"):
        kept.write_text("")  # power failed
    assert begin(judges_of(checkpoint)) == 1
    os.utime(checkpoint, (1, 1))
    assert begin(judges_of(checkpoint, frames=3)) == 1
    assert begin(judges_of(checkpoint, frames=3), videos[2:]) == 1


def test_a_checkpoint_that_was_trained_on_is_loaded_again(videos, tmp_path):
    path, scores = tmp_path / "m.pt", []
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_checkpoint(path, DeepfakeClassifier("tiny"))
        scores.append(next(judge_videos(videos[:1], judges_of(path)))[0].p_fake)
    assert scores[0] != scores[1]


def test_a_stopped_rerun_leaves_the_whole_submission(videos, checkpoint, tmp_path, monkeypatch, capsys):
    call = ["predict", *map(str, videos[:2]), "--checkpoint", str(checkpoint), "--frames", "2", "--workers", "0"]
    call += ["--out", str(tmp_path / "s.csv")]
    assert main(call) == 0
    whole = (tmp_path / "s.csv").read_bytes()
    really = submission.predict_videos

    def stop_at_second(paths, *rest):
        if paths == videos[1:2]:
            raise KeyboardInterrupt
        return really(paths, *rest)

    monkeypatch.setattr(submission, "predict_videos", stop_at_second)
    assert main(call) == 130
    assert "stays as it was" in capsys.readouterr().err
    assert (tmp_path / "s.csv").read_bytes() == whole
    assert len(list((tmp_path / ".s.csv.verdicts").glob("*.json"))) == 1


def test_results_that_can_not_be_written_lose_no_verdict(videos, checkpoint, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dfdc_lib.submission.write_verdicts", fail)
    call = ["predict", str(videos[0]), "--checkpoint", str(checkpoint), "--frames", "2", "--out"]
    assert main([*call, str(tmp_path / "s.csv")]) == 2
    assert len(list((tmp_path / ".s.csv.verdicts").glob("*.json"))) == 1


def test_a_video_that_memory_does_not_hold_costs_a_status(videos, checkpoint, monkeypatch):
    def run_out(paths, *rest):
        raise MemoryError

    monkeypatch.setattr(submission, "predict_videos", run_out)
    verdict, _ = next(judge_videos(videos[:1], judges_of(checkpoint)))
    assert (verdict.status, verdict.p_fake) == ("out_of_memory", None)


def test_what_may_pass_is_not_kept(videos, checkpoint, tmp_path, judged):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    for _ in range(2):
        running = judge_videos([broken], judges_of(checkpoint), tmp_path / "s.csv")
        assert next(running)[0].status == "unreadable"
        running.close()
    assert judged == [broken, broken]


class Sabotaged(Judging):
    """A video with a page crashes or hangs its process, as the page's name says."""

    def _watch(self, suffix):
        return watched(self.kept.with_suffix(suffix), self.run_id, 1 if self.page and self.page.name == "hang" else 600)

    def _judge(self):
        if self.page is None:
            return super()._judge()
        hang() if self.page.name == "hang" else os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.slow
def test_videos_that_take_their_process_along_cost_a_status_each(videos, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "Judging", Sabotaged)
    pages = {videos[0]: tmp_path / "crash", videos[1]: tmp_path / "hang"}
    done = {v.video: v for v, _ in judge_videos(videos, judges_of(checkpoint), None, pages, workers=1)}
    assert [done[video].status for video in videos[:2]] == ["crashed", "timeout"]
    assert [done[video].p_fake for video in videos[:2]] == [None, None]
    here = next(judge_videos(videos[2:], judges_of(checkpoint)))[0]
    assert done[videos[2]].status == here.status == "ok"
    assert done[videos[2]].p_fake == pytest.approx(here.p_fake, abs=1e-3)


def test_a_verdict_survives_the_disk(videos, checkpoint):
    verdict, _ = next(judge_videos(videos[:1], judges_of(checkpoint)))
    again = submission._unpack(verdict.video, submission._pack(verdict))
    pd.testing.assert_frame_equal(again.faces, verdict.faces)
    assert replace(again, faces=None) == replace(verdict, faces=None)
