import numpy as np
import pandas as pd
import pytest
import torch

from dfdc_lib import predict as p
from dfdc_lib.aggregate import confident_strategy
from dfdc_lib.augment import valid_transforms
from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint
from dfdc_lib.video import read_spread_frames, write_video


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
    numbers, frames = read_spread_frames(video, 4)
    frame = frames[numbers.index(row.frame_idx)]
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
    p.write_verdicts(verdicts, tmp_path / "out" / "submission.csv")
    submission = pd.read_csv(tmp_path / "out" / "submission.csv")
    status = pd.read_csv(tmp_path / "out" / "status.csv")
    faces = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert submission.filename.tolist() == [video.name]
    assert status.status.tolist() == ["ok", "unreadable"]
    assert set(faces.video) == {video.name}
    assert {"frame_idx", "face_idx", "x0", "score", "p_fake"} <= set(faces.columns)


def test_folders_are_searched_and_wrong_names_refused(small_sample, tmp_path):
    assert len(p.find_videos([small_sample])) == 12
    with pytest.raises(FileNotFoundError, match="no video"):
        p.find_videos([tmp_path])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        p.find_videos([tmp_path / "nowhere"])
