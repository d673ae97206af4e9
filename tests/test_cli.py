import errno
from pathlib import Path

import pandas as pd
import pytest
import torch

from dfdc_lib.cli import main
from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from dataclasses import replace

    torch.manual_seed(0)
    model = DeepfakeClassifier("tiny")
    model.card = replace(model.card, trained_on="sample")
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    save_checkpoint(path, model)
    return path


def test_predict_scores_a_video_and_warns_of_the_rehearsal_stage(small_sample, checkpoint, tmp_path, capsys):
    video = small_sample / read_metadata(small_sample).file[0]
    out = tmp_path / "submission.csv"
    code = main(["predict", str(video), "--checkpoint", str(checkpoint), "--frames", "2", "--out", str(out)])
    printed = capsys.readouterr()
    assert code == 0
    assert "p_fake" in printed.out
    assert "rehearsal stage" in printed.err
    assert pd.read_csv(out).label.between(0, 1).all()


def test_what_could_not_be_judged_shows_in_the_exit_code(checkpoint, tmp_path, capsys):
    (tmp_path / "text.mp4").write_text("no video")
    assert main(["predict", str(tmp_path), "--checkpoint", str(checkpoint)]) == 1
    assert "unreadable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["predict", __file__, "--checkpoint", "gone.pt"], "no such checkpoint: gone.pt"),
        (["predict", "gone.mp4", "--checkpoint", "gone.pt"], "no such file or folder: gone.mp4"),
        (["preprocess", "gone"], "no such folder: gone"),
        (["train", "--work", "gone", "--run", "x"], "dfdc preprocess"),
    ],
)
def test_a_wrong_call_is_one_line(call, message, capsys):
    assert main(call) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_preprocess_and_train_work_from_the_command_line(small_sample, tmp_path, capsys):
    work = tmp_path / "work"
    assert main(["preprocess", str(small_sample), "--work", str(work), "--every", "6", "--workers", "1"]) == 0
    call = ["train", "--work", str(work), "--run", "r", "--demo", "--steps", "2", "--batch", "4"]
    assert main(call) == 0
    assert (work / "runs" / "r" / "last.pt").exists()
    assert "2/2" in capsys.readouterr().err


def test_doctor_tells_good_from_bad(small_sample, tmp_path, capsys):
    assert main(["doctor", "--data", str(small_sample)]) == 0
    assert "12 of 12 videos" in capsys.readouterr().out
    assert main(["doctor", "--data", str(tmp_path)]) == 1
    assert "BAD data" in capsys.readouterr().out


def test_doctor_reports_the_rest_where_the_data_are_no_data(small_work, tmp_path, capsys):
    assert main(["doctor", "--data", str(tmp_path), "--work", str(small_work.root)]) == 1
    printed = capsys.readouterr().out
    assert "BAD data" in printed
    assert "ok  missing: nothing" in printed


def test_labels_that_can_not_serve_are_refused_before_anything_is_judged(small_sample, checkpoint, tmp_path, capsys):
    labels = tmp_path / "labels.csv"
    labels.write_text("filename,label\nother.mp4,1\n")
    video = small_sample / read_metadata(small_sample).file[0]
    assert main(["predict", str(video), "--checkpoint", str(checkpoint), "--labels", str(labels)]) == 2
    printed = capsys.readouterr()
    assert "no label for " in printed.err
    assert "p_fake" not in printed.out


def test_predict_writes_a_page_and_tells_what_the_labels_say(small_sample, checkpoint, tmp_path, capsys):
    video = small_sample / read_metadata(small_sample).file[0]
    call = ["predict", str(video), "--checkpoint", str(checkpoint), "--frames", "3"]
    assert main([*call, "--report", str(tmp_path), "--labels", str(small_sample)]) == 0
    printed = capsys.readouterr().out
    assert "log loss" in printed
    assert "11 videos have a label and were not among those given" in printed
    page = (tmp_path / f"{video.name}.html").read_text()
    assert "no proof" in page
    assert 'src="data:image/png' in page
    assert "http" not in page
    assert "<script" not in page


def test_a_data_folder_that_may_not_be_written_to_names_the_way_out(small_sample, monkeypatch, capsys):
    def refuse(path, **_):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["preprocess", str(small_sample)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Read-only file system" in said
    assert "--work" in said
