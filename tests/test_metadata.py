import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfdc_lib.metadata import MetadataError, assign_folds, describe_folds, read_labels, read_metadata


def write_part(data, part: int, entries) -> None:
    folder = data / f"dfdc_train_part_{part}"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))


def test_parts_become_one_sorted_table(tmp_path):
    write_part(
        tmp_path, 10, {"b.mp4": {"label": "FAKE", "split": "train", "original": "a.mp4"}, "a.mp4": {"label": "REAL"}}
    )
    write_part(tmp_path, 2, {"c.mp4": {"label": "REAL", "split": "train", "original": None}})
    table = read_metadata(tmp_path)
    assert table.video_id.tolist() == ["c", "a", "b"]
    assert table.label.tolist() == [0, 0, 1]
    assert table.original_id.tolist() == ["c", "a", "a"]
    assert table.file.tolist()[0] == "dfdc_train_part_2/c.mp4"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{", "is not JSON"),
        ([1], "one object"),
        ({"../up.mp4": {"label": "REAL"}}, "plain file name"),
        ({"/etc/x.mp4": {"label": "REAL"}}, "plain file name"),
        ({"..": {"label": "REAL"}}, "plain file name"),
        ({"a.mp4": {"label": "MAYBE"}}, "REAL or FAKE"),
        ({"a.mp4": 7}, "REAL or FAKE"),
        ({"a.mp4": {"label": "FAKE"}}, "original of a.mp4"),
        ({"a.mp4": {"label": "FAKE", "original": "../b.mp4"}}, "plain file name"),
        ({"a.mp4": {"label": "FAKE", "original": ["b.mp4"]}}, "plain file name"),
        ({"a\0.mp4": {"label": "REAL"}}, "plain file name"),
        ({"a" * 300 + ".mp4": {"label": "REAL"}}, "plain file name"),
        ('{"a\\ud800.mp4": {"label": "REAL"}}', "plain file name"),
        ("[" * 100_000, "is not JSON"),
        ('{"a.mp4": {"label": "REAL"}, "a.mp4": {"label": "REAL"}}', "listed twice"),
    ],
)
def test_strange_metadata_is_one_clear_error(tmp_path, entries, message):
    write_part(tmp_path, 0, entries)
    with pytest.raises(MetadataError, match=message):
        read_metadata(tmp_path)


def test_the_labels_of_a_folder_need_no_originals_and_tell_equal_names_apart(tmp_path):
    """As DFDC's test set has them: is_fake of 0 or 1, and no original."""
    write_part(tmp_path, 0, {"a.mp4": {"is_fake": 1}, "b.mp4": {"is_fake": 0}, "c.mp4": {"label": "FAKE"}})
    write_part(tmp_path, 1, {"a.mp4": {"label": "REAL"}})
    parts = "dfdc_train_part_0/", "dfdc_train_part_1/"
    expected = {f"{parts[0]}a.mp4": 1, f"{parts[0]}b.mp4": 0, f"{parts[0]}c.mp4": 1, f"{parts[1]}a.mp4": 0}
    assert read_labels(tmp_path) == expected


def test_is_fake_is_a_label_of_training_too(tmp_path):
    write_part(tmp_path, 0, {"a.mp4": {"is_fake": 0}, "b.mp4": {"is_fake": 1, "original": "a.mp4"}})
    assert read_metadata(tmp_path).label.tolist() == [0, 1]
    write_part(tmp_path / "other", 0, {"a.mp4": {"is_fake": 2}})
    with pytest.raises(MetadataError, match="is_fake of 0 or 1, got 2"):
        read_metadata(tmp_path / "other")


def test_a_video_listed_twice_is_an_error(tmp_path):
    for part in (0, 1):
        write_part(tmp_path, part, {"a.mp4": {"label": "REAL"}})
    with pytest.raises(MetadataError, match="'a' is listed twice"):
        read_metadata(tmp_path)


def test_a_wrong_folder_says_what_is_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_metadata(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="dfdc_train_part_0"):
        read_metadata(tmp_path)


def originals_in(parts) -> pd.DataFrame:
    names = [f"v{i}" for i in range(len(parts))]
    return pd.DataFrame({"video_id": names, "part": parts, "original_id": names})


def test_all_fifty_parts_give_upstreams_sixteen_folds():
    folds = assign_folds(originals_in(list(range(50))))
    assert folds.tolist() == [min(part // 3, 15) for part in range(50)]


@pytest.mark.parametrize("n_parts", [2, 3, 15, 16, 17, 31, 49])
def test_a_partial_download_gives_even_folds_without_gaps(n_parts):
    parts = [7 * part for part in range(n_parts)]  # with gaps
    folds = assign_folds(originals_in(parts))
    sizes = pd.Series(folds).value_counts()
    assert sorted(sizes.index) == list(range(min(16, n_parts)))
    assert sizes.max() - sizes.min() <= 1
    assert f"{n_parts} parts in {min(16, n_parts)} folds" in describe_folds(originals_in(parts), folds)


def test_a_single_part_is_cut_by_original():
    table = originals_in([3] * 12)
    folds = assign_folds(table)
    assert set(folds) == {0, 1, 2, 3, 4}
    assert "one part only" in describe_folds(table, folds)


def test_a_fake_listed_in_another_part_stays_with_its_original():
    table = pd.DataFrame({"video_id": ["a", "b", "x"], "part": [0, 1, 1], "original_id": ["a", "b", "a"]})
    assert assign_folds(table).tolist() == [0, 1, 0]


@given(st.lists(st.tuples(st.integers(0, 49), st.integers(0, 30)), min_size=1, max_size=60), st.booleans())
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


def test_a_fake_of_a_fake_is_an_error(tmp_path):
    entries = {"a.mp4": {"label": "FAKE", "original": "b.mp4"}, "b.mp4": {"label": "FAKE", "original": "a.mp4"}}
    write_part(tmp_path, 0, entries)
    with pytest.raises(MetadataError, match="listed as a fake"):
        read_metadata(tmp_path)
