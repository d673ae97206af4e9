"""The page about one video stands alone; strangers' names stay text; maps are Grad-CAM's."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_predict import make_model

from dfdc_lib.config import Margin
from dfdc_lib.metadata import read_metadata
from dfdc_lib.ops.pages import explain, explain_suspects, pick_suspects, write_page
from dfdc_lib.predict import Scorer, Verdict, load_models
from dfdc_lib.rehearsal.sample import credit


@pytest.fixture(scope="module")
def video(small_sample) -> Path:
    return small_sample / read_metadata(small_sample).file[0]


def make_scorer(trained_on: str = "mine", margin: float = 0.2) -> Scorer:
    model = make_model(trained_on=trained_on, margin=Margin(margin))
    return load_models([model])["model 0"]


def tabulate(*scores: float, checkpoint: str = "a") -> pd.DataFrame:
    """Scores of one face, a frame each, as a verdict holds them."""
    place = {"face_idx": 0, "x0": 90.0, "y0": 60.0, "x1": 150.0, "y1": 140.0, "certainty": 1.0}
    rows = [{"frame_idx": i, "seconds": i / 24, "p_fake": p} | place for i, p in enumerate(scores)]
    return pd.DataFrame(rows).assign(checkpoint=checkpoint)


def test_grad_cam_weighs_each_feature_by_its_mean_gradient():
    model, crop = make_scorer().model, torch.randn(3, 112, 112)
    heat = explain(model, crop)
    features = model.encoder.forward_features(crop[None]).detach().requires_grad_()
    model.fc(features.mean(dim=(2, 3))).sum().backward()
    weights = features.grad.mean(dim=(2, 3), keepdim=True)
    by_gradient = (weights * features).sum(1)[0].relu().detach().numpy()
    assert (heat.shape, heat.min(), heat.max()) == ((112, 112), 0, 1)
    middles = heat[14::28, 14::28]  # of the features' cells
    assert np.corrcoef(middles.ravel(), by_gradient.ravel())[0, 1] > 0.95


def test_suspects_have_the_highest_mean_scores_and_are_as_the_first_model_sees_them(video):
    faces = pd.concat([tabulate(0.1, 0.6, 0.9), tabulate(0.9, 0.6, 0.8, checkpoint="b")])
    assert pick_suspects(faces, 2).frame_idx.tolist() == [1, 2]
    verdict = Verdict(video, "ok", p_fake=0.5, faces=faces)
    one, wide = {"a": make_scorer()}, {"b": make_scorer(margin=0.5)}
    crops, maps, titles = explain_suspects(verdict, one, 1)
    assert titles == ["0:00.08, frame 2\nperson 0, p_fake 0.85"]
    assert crops[0].shape == maps[0].shape == (112, 112, 3)
    assert np.array_equal(explain_suspects(verdict, one | wide, 1)[1], maps)
    assert not np.array_equal(explain_suspects(verdict, wide | one, 1)[1], maps)


@pytest.mark.parametrize("name", ["<script>alert(1)<.mp4", os.fsdecode(b"<script>\xff.mp4")])
def test_strangers_names_stay_text(name, tmp_path):
    verdict = Verdict(tmp_path / name, "no_face", reason="no face in <b>32</b> frames")
    page = write_page(verdict, {"<i>": make_scorer()}, tmp_path / "page.html").read_text()
    assert "No score. Status <strong>no_face</strong>" in page
    assert "&lt;script&gt;" in page
    for tag in ("<script", "<b>", "<i>"):
        assert tag not in page


def test_a_page_stands_alone_and_says_what_a_score_means(video, tmp_path):
    verdict = Verdict(video, "short", 0.9, 2, tabulate(0.8, 1.0), reason="2 frames in all")
    page = write_page(verdict, {"a": make_scorer()}, tmp_path / "page.html").read_text()
    for alien in ("<script", 'src="http', "<link", "A rehearsal"):
        assert alien not in page
    assert page.count('src="data:image/png;base64,') == page.count("src=") == 2
    assert "Status <strong>short</strong>: 2 frames in all" in page
    assert "one in 100</td><td>8.3 %" in page  # 9 : 1 times 1 : 99
    assert credit(video) in page
    rehearsed = {"a": make_scorer("sample")}
    assert "A rehearsal" in write_page(verdict, rehearsed, tmp_path / "page.html").read_text()


def test_a_caption_knows_the_sample_from_other_pictures(small_sample, video, tmp_path):
    for synthetic in (small_sample, video):
        assert "NASA and US Navy, public domain" in credit(synthetic)
    other = shutil.copy(video, tmp_path / "clip.mp4")
    for path in (tmp_path, other):
        assert f"“{path.name}”: pass them on" in credit(path)
