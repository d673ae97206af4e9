"""The page about one video."""

import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch

from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import DeepfakeClassifier
from dfdc_lib.predict import Verdict, load_models, predict_video
from dfdc_lib.report import explain, overlay, pick_suspects, write_page
from dfdc_lib.sample import credit


def test_grad_cam_of_this_network_is_its_class_activation_map():
    """After an average and one linear layer, it is the features weighted by that layer, without what is negative."""
    torch.manual_seed(0)
    model, crop = DeepfakeClassifier("tiny").eval(), torch.randn(3, 112, 112)
    heat = explain(model, crop)
    with torch.no_grad():
        features = model.encoder.forward_features(crop[None])[0]
        by_hand = torch.relu(torch.einsum("c,chw->hw", model.fc.weight[0], features)).numpy()
    assert heat.shape == (112, 112)
    assert 0 <= heat.min() <= heat.max() <= 1
    centres = heat[14::28, 14::28]
    assert np.corrcoef(centres.ravel(), by_hand.ravel())[0, 1] > 0.95


def test_an_overlay_keeps_the_pictures_form():
    picture = np.full((4, 4, 3), 200, np.uint8)
    assert overlay(picture, np.zeros((4, 4), np.float32)).shape == (4, 4, 3)
    assert (overlay(picture, np.ones((4, 4))) > overlay(picture, np.zeros((4, 4)))).any()


def test_suspects_are_the_highest_scores_over_models():
    box = {"x0": 0, "y0": 0, "x1": 1, "y1": 1}
    scores = {"a": (0.1, 0.6, 0.9), "b": (0.9, 0.6, 0.8)}
    rows = [
        {"frame_idx": i, "face_idx": 0, "checkpoint": c, "p_fake": p} | box
        for c in "ab"
        for i, p in enumerate(scores[c])
    ]
    assert pick_suspects(pd.DataFrame(rows), 2).frame_idx.tolist() == [1, 2]


def test_a_video_without_a_score_has_a_page_that_says_why_and_hostile_names_stay_text(tmp_path):
    verdict = Verdict(tmp_path / "<script>alert(1)<", "no_face", reason="no face in <b>32</b> frames")
    page = write_page(verdict, {"<i>": DeepfakeClassifier("tiny")}, tmp_path / "page.html").read_text()
    assert "No score" in page
    assert "no_face" in page
    for tag in ("<script", "<b>", "<i>"):
        assert tag not in page


def test_a_caption_knows_the_sample_from_other_pictures(small_sample, tmp_path):
    video = small_sample / read_metadata(small_sample).file[0]
    for synthetic in (small_sample, video):
        assert credit(synthetic) == "Synthetic pictures; portraits: NASA and US Navy, public domain."
    other = shutil.copy(video, tmp_path / "clip.mp4")
    for path in (tmp_path, other):
        assert f"“{path.name}”: pass them on" in credit(path)
        assert "Synthetic" not in credit(path)


def test_a_page_says_whose_faces_it_shows(small_sample, tmp_path):
    models = load_models([DeepfakeClassifier("tiny")])
    video = shutil.copy(small_sample / read_metadata(small_sample).file[0], tmp_path / "clip.mp4")
    page = write_page(predict_video(video, models, 1), models, tmp_path / "page.html").read_text()
    assert "The most suspicious faces" in page
    assert credit(video) in page.replace("&#x27;", "'")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_the_page_opens_in_a_browser_without_errors(small_sample, tmp_path):
    models = load_models([DeepfakeClassifier("tiny")])
    video = small_sample / read_metadata(small_sample).file[0]
    page = write_page(predict_video(video, models, 3), models, tmp_path / "page.html")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    result = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=600)
    assert "p_fake" in result.stdout
    assert "CONSOLE" not in result.stderr
