"""The experiment on margins, where another page runs it: on other data, with other folders."""

import numpy as np
import pandas as pd
import pytest

from dfdc_lib.progress import NotEnough
from experiments import margins


def test_it_works_beside_the_folder_that_is_named(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(margins, "read_faces", lambda data, work, originals: asked.append(work.root) or [])
    monkeypatch.setattr("sys.argv", ["margins", "--data", "/data", "--work", str(tmp_path / "w"), "--out", "x.csv"])
    with pytest.raises(NotEnough, match="no original shows a whole face"):
        margins.main()
    assert asked == [tmp_path / "w-wide"]


def test_a_part_with_one_original_has_nobody_to_blend_with():
    face = margins.Face(pd.Series({"part": 3, "original_id": "a"}), np.zeros((4, 4, 3)), np.zeros(4), np.zeros((5, 2)))
    with pytest.raises(NotEnough, match="part 3 has but one"):
        margins.nearest_donor(face, [face])
