"""Real DFDC clips: a named skip where DFDC_TEST_VIDEOS is not set."""

import pandas as pd
import pytest
from test_predict import make_model

from dfdc_lib.model import save_checkpoint
from dfdc_lib.ops.cli import main
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.store import WorkFolder

pytestmark = pytest.mark.slow


def test_each_real_clip_is_scored_with_a_face_in_every_frame(real_videos, tmp_path):
    save_checkpoint(tmp_path / "m.pt", make_model())
    call = ["predict", str(real_videos), "--checkpoint", str(tmp_path / "m.pt")]
    assert main([*call, "--out", str(tmp_path / "submission.csv")]) == 0
    faces = pd.read_parquet(tmp_path / "predictions.parquet")
    assert faces.groupby("video").frame_idx.nunique().tolist() == [32, 32]
    scores = pd.read_csv(tmp_path / "submission.csv").label
    assert len(scores) == 2
    assert scores.between(0, 1).all()


def test_the_original_has_a_face_on_each_frame_and_the_fake_a_status(real_videos, tmp_path):
    work = WorkFolder(tmp_path / "work")
    status = preprocess(real_videos, work).status.set_index("video_id").status
    frames = work.read_boxes("lynaeydofd")["frames"]
    assert [frame["frame_idx"] for frame in frames] == list(range(0, 300, 10))
    assert all(frame["boxes"] for frame in frames)
    assert status["brtujopkby"] == "missing_original"
    assert set(status[["lynaeydofd"]]) == {"ok"}
