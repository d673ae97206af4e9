"""Each kind of damage of a work folder is found and named, and the advice makes all well again."""

import numpy as np
import pandas as pd
import pytest
from conftest import EVERY_6, edit, files_of

from dfdc_lib.metadata import read_metadata
from dfdc_lib.ops import integrity
from dfdc_lib.ops.doctor import Finding
from dfdc_lib.ops.integrity import check_work
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.store import WorkFolder, remove, write_png


def list_bad(work, **options) -> dict[str, Finding]:
    """What is wrong, by name; no finding may be empty."""
    first, *findings = check_work(work, **options)
    assert first.ok == (not findings)
    assert all(finding.found and finding.advice and not finding.ok for finding in findings)
    return {finding.what: finding for finding in findings}


def test_a_healthy_folder_is_one_good_line_and_is_not_touched(small_sample, small_work):
    before = {path: path.stat().st_mtime_ns for path in small_work.root.rglob("*")}
    (finding,) = check_work(small_work, pictures=True, strike=True)
    n_crops = len(pd.read_csv(small_work.folds))
    assert finding.ok
    assert finding.found == f"12 videos of sample, {n_crops} crops"
    assert {path: path.stat().st_mtime_ns for path in small_work.root.rglob("*")} == before


def write_picture(path):
    write_png(path, np.zeros((9, 9), np.uint8))


def edit_rows(change):
    """A damage of folds.csv."""
    return lambda path: change(pd.read_csv(path)).to_csv(path, index=False)


OTHER = "folds.csv does not name the crops of"
LEAK = "a leak: folds.csv splits an original from its fakes"
DAMAGES = [  # what is done to which path, and the finding
    (remove, "crops/{fake}/0_0.png", "incomplete"),
    (remove, "masks/{fake}", "incomplete"),
    (remove, "boxes/{real}.json", "incomplete"),
    (edit(lambda data: b'{"frames": [7]}'), "boxes/{real}.json", "incomplete"),
    (write_picture, "crops/{real}/999_0.png", "incomplete"),
    (write_picture, "masks/{fake}/thumb.png", "incomplete"),
    (edit(lambda data: data[:-9]), "masks/{fake}/6_0.png", "damaged pictures"),
    (remove, "folds.csv", "folds"),
    (edit_rows(lambda rows: rows[1:]), "folds.csv", OTHER),
    (edit_rows(lambda rows: pd.concat([rows, rows[:1]])), "folds.csv", OTHER),
    (edit_rows(lambda rows: rows.assign(fold=range(len(rows)))), "folds.csv", LEAK),
]


@pytest.mark.parametrize(("damage", "path", "what"), DAMAGES)
def test_damage_is_named_struck_out_and_made_again(
    small_sample, small_work, work_copy, damage, path, what, monkeypatch
):
    fakes = read_metadata(small_sample).query("label == 1")
    names = {"fake": fakes.video_id.iloc[0], "real": fakes.original_id.iloc[0]}
    path = path.format(**names)
    damage(work_copy.root / path)
    damaged = files_of(work_copy)
    monkeypatch.setattr(integrity, "SHOWN", 99)
    found = list_bad(work_copy, pictures=True)[what].found
    assert all(video in found for video in names.values() if f"/{video}" in path)
    assert files_of(work_copy) == damaged
    check_work(work_copy, pictures=True, strike=True)
    preprocess(small_sample, work_copy, EVERY_6)
    assert files_of(work_copy) == files_of(small_work)  # of which another test finds nothing bad


@pytest.mark.parametrize("name", ["recipe.json", "status.csv"])
def test_without_a_recipe_or_a_journal_there_is_one_finding(work_copy, name):
    (work_copy.root / name).write_text("a,b\nc\n")
    (finding,) = check_work(work_copy)
    assert (finding.ok, name in finding.found) == (False, True)
    (finding,) = check_work(WorkFolder(work_copy.root / "gone"))
    assert not finding.ok
