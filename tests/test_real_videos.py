"""Real DFDC clips: a named skip where DFDC_TEST_VIDEOS is not set."""

import pandas as pd
import pytest
import torch

from dfdc_lib.cli import main
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint
from dfdc_lib.paths import WorkFolder
from dfdc_lib.preprocess import preprocess

pytestmark = pytest.mark.slow


def test_each_real_clip_is_scored_with_a_face_in_every_frame(real_videos, tmp_path):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "tiny.pt", DeepfakeClassifier("tiny"))
    out = tmp_path / "submission.csv"
    assert main(["predict", str(real_videos), "--checkpoint", str(tmp_path / "tiny.pt"), "--out", str(out)]) == 0
    faces = pd.read_parquet(tmp_path / "predictions.parquet")
    assert len(pd.read_csv(out)) == 2
    assert (faces.groupby("video").frame_idx.nunique() == 32).all()
    assert (pd.read_csv(tmp_path / "status.csv").n_frames == 32).all()


def test_a_fake_without_its_original_is_a_status(real_videos, tmp_path):
    status = preprocess(real_videos, WorkFolder(tmp_path / "work")).status.set_index("video_id")
    assert status.status["brtujopkby"] == "missing_original"
    assert set(status.loc[["lynaeydofd"], "status"]) == {"ok"}
