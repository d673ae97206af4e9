import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfdc_lib.metadata import MetadataError, assign_folds, describe_folds, read_metadata
from dfdc_lib.ops.results import read_truth


def write_part(data, part: int, entries) -> None:
    folder = data / f"dfdc_train_part_{part}"
    folder.mkdir(parents=True)
    text = entries if isinstance(entries, str) else json.dumps(entries)
    (folder / "metadata.json").write_text(text)


def test_parts_become_one_sorted_table(tmp_path):
    """A label may be called is_fake, too."""
    fake = {"is_fake": 1, "original": "a.mp4"}
    write_part(tmp_path, 10, {"b.mp4": fake, "a.mp4": {"is_fake": 0}})
    write_part(tmp_path, 2, {"c.mp4": {"label": "REAL", "split": "train", "original": None}})
    table = read_metadata(tmp_path)
    assert table.video_id.tolist() == ["c", "a", "b"]
    assert table.label.tolist() == [0, 0, 1]
    assert table.original_id.tolist() == ["c", "a", "a"]
    assert table.file.tolist()[0] == "dfdc_train_part_2/c.mp4"


def test_a_fake_whose_original_nobody_tells_is_its_own(tmp_path):
    """As DFDC's test set has them: is_fake of 0 or 1, and no original."""
    fakes = {"a.mp4": {"is_fake": 1}, "c.mp4": {"label": "FAKE", "original": None}}
    write_part(tmp_path, 0, fakes | {"b.mp4": {"is_fake": 0}})
    write_part(tmp_path, 1, {"d.mp4": {"label": "FAKE", "original": "b.mp4"}})
    table = read_metadata(tmp_path)
    assert table.label.tolist() == [1, 0, 1, 1]
    assert table.original_id.tolist() == ["a", "b", "c", "b"]


def test_the_truth_about_a_folder_tells_equal_names_apart(tmp_path):
    write_part(tmp_path, 0, {"a.mp4": {"is_fake": 1}, "b.mp4": {"is_fake": 0}})
    write_part(tmp_path, 1, {"a.mp4": {"label": "REAL"}})
    truth = read_truth(tmp_path)
    files = truth.file.str.removeprefix("dfdc_train_part_")
    labels = {"0/a.mp4": 1, "0/b.mp4": 0, "1/a.mp4": 0}
    assert dict(zip(files, truth.label, strict=True)) == labels


def test_a_wrong_folder_and_a_video_of_two_parts_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_metadata(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="dfdc_train_part_0"):
        read_metadata(tmp_path)
    for part in (0, 1):
        write_part(tmp_path, part, {"a.mp4": {"label": "REAL"}})
    with pytest.raises(MetadataError, match="'a' is listed twice"):
        read_metadata(tmp_path)


def originals_in(parts) -> pd.DataFrame:
    names = [f"v{i}" for i in range(len(parts))]
    return pd.DataFrame({"video_id": names, "part": parts, "original_id": names})


@pytest.mark.parametrize("n_parts", [2, 3, 15, 16, 17, 31, 49])
def test_a_partial_download_gives_even_folds_without_gaps(n_parts):
    parts = [7 * part for part in range(n_parts)]  # with gaps
    folds = assign_folds(originals_in(parts))
    sizes = pd.Series(folds).value_counts()
    assert sorted(sizes.index) == list(range(min(16, n_parts)))
    assert sizes.max() - sizes.min() <= 1
    told = describe_folds(originals_in(parts), folds)
    assert f"{n_parts} parts in {min(16, n_parts)} folds" in told


def test_folds_by_hand():
    """Upstream's sixteen; a single part, by original; a fake that is listed in another part."""
    folds = assign_folds(originals_in(list(range(50))))
    assert folds.tolist() == [min(part // 3, 15) for part in range(50)]
    table = originals_in([3] * 12)
    assert set(assign_folds(table)) == {0, 1, 2, 3, 4}
    assert "one part only" in describe_folds(table, assign_folds(table))
    table = originals_in([0, 1, 1]).assign(original_id=["v0", "v1", "v0"])
    assert assign_folds(table).tolist() == [0, 1, 0]


@given(
    st.lists(st.tuples(st.integers(0, 49), st.integers(0, 30)), min_size=1, max_size=60),
    st.booleans(),
)
def test_no_family_is_ever_split(fakes, listed):
    """Whatever the parts, and whether the originals are listed or not."""
    rows = [(f"f{i}", part, f"o{original}") for i, (part, original) in enumerate(fakes)]
    if listed:
        rows += [(f"o{original}", original, f"o{original}") for original in {o for _, o in fakes}]
    table = pd.DataFrame(rows, columns=["video_id", "part", "original_id"])
    folds = assign_folds(table)
    assert pd.Series(folds).groupby(table.original_id).nunique().max() == 1
    assert (folds >= 0).all()
    assert ("not listed" in describe_folds(table, folds)) != listed
