import json

import pandas as pd
import pytest

from dfdc_lib.metadata import MetadataError, assign_folds, read_metadata


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
    ],
)
def test_strange_metadata_is_one_clear_error(tmp_path, entries, message):
    write_part(tmp_path, 0, entries)
    with pytest.raises(MetadataError, match=message):
        read_metadata(tmp_path)


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


def test_folds_follow_parts_without_gaps():
    table = pd.DataFrame({"video_id": list("abcdef"), "part": [0, 0, 7, 7, 30, 49]}).assign(original_id=list("abcdef"))
    assert assign_folds(table).tolist() == [0, 0, 1, 1, 2, 3]
    assert assign_folds(table, parts_per_fold=2).tolist() == [0, 0, 0, 0, 1, 1]


def test_a_fake_listed_in_another_part_stays_with_its_original():
    table = pd.DataFrame({"video_id": ["a", "b", "x"], "part": [0, 1, 1], "original_id": ["a", "b", "a"]})
    assert assign_folds(table).tolist() == [0, 1, 0]
