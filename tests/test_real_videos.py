"""Real DFDC clips: a named skip where DFDC_TEST_VIDEOS is not set."""

import pandas as pd
import pytest
import timm
import torch

from dfdc_lib.model import DeepfakeClassifier, save_checkpoint
from dfdc_lib.ops.cli import main
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.store import WorkFolder

pytestmark = pytest.mark.slow


def save_tiny(path) -> None:
    save_checkpoint(path, DeepfakeClassifier("tiny"))


def save_b7(path) -> None:
    """A B7 with upstream's names, and weights that every machine makes alike."""
    encoder = timm.create_model("tf_efficientnet_b7.ns_jft_in1k", pretrained=False)
    weights = {f"module.encoder.{name}": value for name, value in encoder.state_dict().items()}
    weights["module.fc.weight"] = torch.sin(torch.arange(2560.0))[None] / 5
    torch.save({"epoch": 36, "state_dict": weights | {"module.fc.bias": torch.zeros(1)}}, path)


@pytest.mark.parametrize(("save", "n_frames"), [(save_tiny, 32), (save_b7, 3)])
def test_each_real_clip_is_scored_with_a_face_in_every_frame(real_videos, tmp_path, save, n_frames):
    torch.manual_seed(0)
    path = tmp_path / "final_111_DeepFakeClassifier_tf_efficientnet_b7_ns_0_36"
    save(path)
    call = ["predict", str(real_videos), "--checkpoint", str(path), "--frames", str(n_frames)]
    assert main([*call, "--out", str(tmp_path / "submission.csv")]) == 0
    faces = pd.read_parquet(tmp_path / "predictions.parquet")
    assert faces.groupby("video").frame_idx.nunique().tolist() == [n_frames] * 2
    assert save != save_b7 or faces.p_fake.nunique() == len(faces)
    scores = pd.read_csv(tmp_path / "submission.csv").label
    assert len(scores) == 2
    assert scores.between(0, 1).all()


def test_the_original_has_a_face_on_each_frame_and_the_fake_without_it_a_status(
    real_videos, tmp_path
):
    work = WorkFolder(tmp_path / "work")
    status = preprocess(real_videos, work).status.set_index("video_id").status
    frames = work.read_boxes("lynaeydofd")["frames"]
    assert [frame["frame_idx"] for frame in frames] == list(range(0, 300, 10))
    assert all(frame["boxes"] for frame in frames)
    assert status["brtujopkby"] == "missing_original"
    assert set(status[["lynaeydofd"]]) == {"ok"}
