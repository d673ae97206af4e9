"""The experiment on margins, where another page runs it: on other data, with other folders."""

import numpy as np
import pandas as pd
import pytest

from dfdc_lib.config import MARGINS
from dfdc_lib.dataset import pair, read_folds
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.progress import NotEnough
from dfdc_lib.store import WorkFolder, read_png
from experiments import margins


def make_face(original_id: str, corner: int = 0) -> margins.Face:
    """A noisy face of 20 pixels in the middle of a wide crop of 60."""
    columns = {"file": "a.mp4", "frame_idx": 0, "face_idx": 0, "part": 3, "fold": 0}
    picture = np.random.default_rng(corner).integers(0, 256, (60, 60, 3), np.uint8)
    row = pd.Series(columns | {"original_id": original_id})
    return margins.Face(row, picture, np.array([20, 20, 40, 40]), np.zeros((5, 2)))


def test_it_works_beside_the_folder_that_is_named(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(margins, "gather_faces", lambda _, work, n: asked.append(work.root) or [])
    named = ["--data", "/data", "--work", str(tmp_path / "w"), "--out", "x.csv"]
    monkeypatch.setattr("sys.argv", ["margins", *named])
    with pytest.raises(NotEnough, match="no original shows a whole face"):
        margins.main()
    assert asked == [tmp_path / "w-wide"]


def test_a_part_with_one_original_has_nobody_to_blend_with():
    with pytest.raises(NotEnough, match="part 3 has only one"):
        margins.nearest_donor(make_face("a"), [make_face("a")])


def test_crops_of_a_margin_are_cut_with_what_training_reads(tmp_path):
    face, work = make_face("a"), WorkFolder(tmp_path / "w")
    pictures = [(face, "real", face.picture), (face, "warping", face.picture[::-1])]
    recipe = {"data": "mine", "settings": {"margin": "1"}, "versions": {}}
    margins.cut_crops(pictures, 0.2, work, recipe)
    assert work.read_recipe()["settings"] == {"margin": str(MARGINS["slides"])}
    assert len(pair(read_folds(work))) == 1
    assert np.array_equal(read_png(work.crops("a") / "0_0.png"), face.picture[16:44, 16:44])
    (work.root / "runs").mkdir()
    for margin, kept in ((0.2, True), (0.5, False)):  # runs on other crops go
        margins.cut_crops(pictures, margin, work, recipe)
        assert (work.root / "runs").exists() == kept


def test_a_whole_face_is_gathered_with_its_place_in_its_picture(small_sample, tmp_path):
    work = WorkFolder(tmp_path / "wide")
    stages = ("detect", "crop", "folds")
    preprocess(small_sample, work, margins.WIDE, originals=1, stages=stages)  # without processes
    faces = margins.gather_faces(small_sample, work, 1)
    assert faces
    for face in faces:
        low, high = face.box[:2], face.box[2:]
        assert (low >= 0).all()
        assert (high <= face.picture.shape[1::-1]).all()
        assert ((face.landmarks >= low) & (face.landmarks <= high)).all()
