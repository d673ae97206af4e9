"""Real DFDC clips: a named skip where DFDC_TEST_VIDEOS is not set."""

import json

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


def test_a_face_on_each_frame_of_the_original_and_a_status_for_the_fake_without_one(real_videos, tmp_path):
    work = WorkFolder(tmp_path / "work")
    status = preprocess(real_videos, work).status.set_index("video_id")
    frames = json.loads(work.boxes("lynaeydofd").read_text())["frames"]
    assert [frame["frame_idx"] for frame in frames] == list(range(0, 300, 10))
    assert all(frame["boxes"] for frame in frames)
    assert status.status["brtujopkby"] == "missing_original"
    assert set(status.loc[["lynaeydofd"], "status"]) == {"ok"}


def test_a_b7_with_upstreams_names_scores_the_real_clips(real_videos, tmp_path, capsys):
    """Weights that every machine makes alike; halved frames, and a third of the box as margin."""
    import timm

    torch.manual_seed(0)
    encoder = timm.create_model("tf_efficientnet_b7.ns_jft_in1k", pretrained=False)
    weights = {f"module.encoder.{name}": value for name, value in encoder.state_dict().items()}
    weights |= {"module.fc.weight": torch.sin(torch.arange(2560.0))[None] / 5, "module.fc.bias": torch.zeros(1)}
    path = tmp_path / "final_111_DeepFakeClassifier_tf_efficientnet_b7_ns_0_36"
    torch.save({"epoch": 36, "state_dict": weights}, path)
    call = ["predict", str(real_videos), "--checkpoint", str(path), "--frames", "3"]
    assert main([*call, "--out", str(tmp_path / "submission.csv")]) == 0
    assert "2 of 2 videos have a score" in capsys.readouterr().out
    faces = pd.read_parquet(tmp_path / "predictions.parquet")
    assert faces.groupby("video").frame_idx.nunique().tolist() == [3, 3]
    assert faces.p_fake.nunique() == len(faces)
    assert pd.read_csv(tmp_path / "submission.csv").label.between(0, 1).all()
