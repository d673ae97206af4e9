"""Other data sets in DFDC's layout: labels, originals, splits and folds, and each one's traps."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from dfdc_lib.metadata import MetadataError, assign_folds, read_metadata
from dfdc_lib.ops.adopt import adopt, describe_adoption
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.ops.results import read_truth
from dfdc_lib.store import WorkFolder


def lay(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target.absolute())


METHODS = ("Deepfakes", "Face2Face")


def ffpp(root: Path, compression="c23", numbers=range(6)) -> Path:
    """Pairs 0 and 1, 2 and 3, … under two methods, and Google's DFD in the same folders."""
    names = [f"{n:03}" for n in numbers]
    pairs = [(f"{n:03}", f"{n ^ 1:03}") for n in numbers]
    lay(root, *(f"original_sequences/youtube/{compression}/videos/{n}.mp4" for n in names))
    for method in METHODS:
        folder = f"manipulated_sequences/{method}/{compression}/videos"
        lay(root, *(f"{folder}/{a}_{b}.mp4" for a, b in pairs))
    lay(root, f"original_sequences/actors/{compression}/videos/01__walk.mp4")
    google = f"manipulated_sequences/DeepFakeDetection/{compression}/videos"
    return lay(root, f"{google}/01_02__walk__YVGY8LOK.mp4", f"{google}/._x.mp4")


def split_lists(root: Path, **splits) -> None:
    for name, pairs in splits.items():
        (root / f"{name}.json").write_text(json.dumps(pairs))


def folds_of(out: Path) -> dict[str, int]:
    table = read_metadata(out)
    return dict(zip(table.video_id, assign_folds(table).tolist(), strict=True))


def test_faceforensics_keeps_methods_apart_and_names_the_target_as_original(tmp_path):
    table = adopt("ffpp", ffpp(tmp_path / "ff"), tmp_path / "out")
    found = read_metadata(tmp_path / "out").set_index("video_id")
    assert len(found) == 18  # without Google's
    assert found.label.sum() == 12
    for method in METHODS:
        assert found.original_id[f"{method}__000_001"] == "000"
    assert table.here.all()
    link = tmp_path / "out" / found.file["Deepfakes__000_001"]
    source = tmp_path / "ff/manipulated_sequences/Deepfakes/c23/videos/000_001.mp4"
    assert link.is_symlink()
    assert os.readlink(link) == str(source)
    truth = read_truth(tmp_path / "out").set_index("file")
    assert truth.method[found.file["Face2Face__002_003"]] == "Face2Face"
    assert truth.person[found.file["Face2Face__002_003"]] == "002"


def test_both_numbers_of_a_pair_share_a_fold_with_and_without_official_splits(tmp_path):
    source = ffpp(tmp_path / "ff", numbers=range(12))
    for _ in range(2):
        adopt("ffpp", source, tmp_path / "out")
        folds = folds_of(tmp_path / "out")
        assert len(set(folds.values())) > 2
        for n in range(0, 12, 2):
            a, b = f"{n:03}", f"{n + 1:03}"
            fakes = [f"{method}__{pair}" for method in METHODS for pair in (f"{a}_{b}", f"{b}_{a}")]
            assert len({folds[name] for name in (a, b, *fakes)}) == 1
        split_lists(source, train=[["000", "001"], ["002", "003"], ["004", "005"]])
        split_lists(source, val=[["006", "007"]], test=[["008", "009"], ["010", "011"]])
    assert {name: folds[name] for name in ("006", "010", "000")} == {"006": 0, "010": 1, "000": 2}
    table = adopt("ffpp", source, tmp_path / "out", splits=["train", "val"])
    assert set(table.split) == {"train", "val"}
    assert folds_of(tmp_path / "out")["Deepfakes__006_007"] == 0  # fold 0 is held out
    assert set(folds_of(tmp_path / "out").values()) == {0, 1}


def test_a_partial_download_is_counted(tmp_path):
    source = ffpp(tmp_path / "ff", numbers=range(2))
    split_lists(source, train=[["000", "001"], ["900", "901"]])
    (source / "original_sequences/youtube/c23/videos/000.mp4").unlink()
    table = adopt("ffpp", source, tmp_path / "out")
    assert (table.here.sum(), (~table.here).sum()) == (5, 7)
    told = describe_adoption(table)
    assert "2 fakes lack their original" in told
    assert "Deepfakes     2        2" in told


def test_names_that_lead_elsewhere_or_are_none_are_refused_or_made_plain(tmp_path):
    source = ffpp(tmp_path / "ff", numbers=range(2))
    for pairs in ([["../../../../pwn", "000"]], [["000"]], [[0, 1]], 5, {"a": 1}):
        split_lists(source, train=pairs)
        with pytest.raises(MetadataError, match=r"train.json must be a list of pairs of names"):
            adopt("ffpp", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    names = ["a\u00a0b.mp4", "v1.0.mp4", "v1.5.mp4", "UPPER.MP4", "caf\u00e9 1.mp4", ".hidden.mp4"]
    plain = lay(tmp_path / "plain", "fake/x.mp4", *(f"real/{name}" for name in names))
    (tmp_path / "elsewhere" / "fake").mkdir(parents=True)
    (tmp_path / "elsewhere" / "fake" / "linked.mp4").touch()
    (plain / "more").symlink_to(tmp_path / "elsewhere")
    adopt("folders", plain, tmp_path / "out")
    assert len(read_metadata(tmp_path / "out")) == len(names) + 2


def test_an_unknown_split_names_those_that_are_there(tmp_path):
    source = ffpp(tmp_path / "ff", numbers=range(4))
    split_lists(source, train=[["000", "001"]], test=[["002", "003"]])
    with pytest.raises(ValueError, match=r"no split trian in .*; there are: test, train"):
        adopt("ffpp", source, tmp_path / "out", splits=["trian"])


def test_several_compressions_need_a_choice(tmp_path):
    ffpp(tmp_path / "ff", "c40")
    source = ffpp(tmp_path / "ff", "raw", range(2))
    for given in ("", "c23"):
        with pytest.raises(ValueError, match=r"choose a --compression; .* there are c40, raw"):
            adopt("ffpp", source, tmp_path / "out", given)
    assert len(adopt("ffpp", source, tmp_path / "out", "raw")) == 6
    with pytest.raises(ValueError, match="original_sequences/youtube/c23/videos"):
        adopt("ffpp", lay(tmp_path / "other", "x.mp4"), tmp_path / "out")


def test_googles_set_lies_in_faceforensics_and_is_all_test(tmp_path):
    table = adopt("dfd", ffpp(tmp_path / "ff"), tmp_path / "out")
    found = read_metadata(tmp_path / "out").set_index("video_id")
    assert set(found.index) == {"01__walk", "01_02__walk__YVGY8LOK"}
    assert set(found.original_id) == {"01__walk"}
    assert set(table.split) == {"test"}


CELEB = ["Celeb-real/id0_0000.mp4", "Celeb-real/id0_0001.mp4", "Celeb-real/id1_0000.mp4"]
CELEB += ["YouTube-real/00170.mp4", "Celeb-synthesis/id0_id1_0000.mp4"]
CELEB += ["Celeb-synthesis/id1_id0_0000.mp4"]


def test_in_celeb_dfs_list_1_means_real(tmp_path):
    source = lay(tmp_path / "celeb", *CELEB)
    listed = ["1 YouTube-real/00170.mp4", "1 Celeb-real/id0_0000.mp4"]
    listed += ["0 Celeb-synthesis/id0_id1_0000.mp4", "1 Celeb-real/id9_0000.mp4"]
    (source / "List_of_testing_videos.txt").write_text("\n".join(listed))
    table = adopt("celebdf", source, tmp_path / "out").set_index("name")
    found = read_metadata(tmp_path / "out").set_index("video_id")
    assert found.label["00170"] == 0
    assert found.label["id0_id1_0000"] == 1
    assert found.original_id["id0_id1_0000"] == "id0_0000"
    assert table.split[["00170", "id0_0000", "id1_0000"]].tolist() == ["test", "test", "train"]
    assert not table.here["id9_0000"]
    folds = folds_of(tmp_path / "out")
    assert folds["id0_id1_0000"] == folds["id0_0000"] == folds["00170"] == 0  # held out
    assert folds["id1_id0_0000"] == folds["id1_0000"] == folds["id0_0001"] == 1
    adopt("celebdf", source, tmp_path / "train", splits=["train"])
    folds = folds_of(tmp_path / "train")
    assert folds["id1_id0_0000"] == folds["id1_0000"] != folds["id0_0001"]
    (source / "List_of_testing_videos.txt").unlink()
    adopt("celebdf", source, tmp_path / "out")
    folds = folds_of(tmp_path / "out")
    assert folds["id0_0000"] == folds["id0_0001"] == folds["id0_id1_0000"]  # one person, one fold
    (source / "List_of_testing_videos.txt").write_text("\ufeff0 Celeb-real/id0_0000.mp4\n\n")
    with pytest.raises(MetadataError, match=r"'Celeb-real/id0_0000.mp4' the label '0'"):
        adopt("celebdf", source, tmp_path / "out")


def test_dfdcs_preview_has_labels_and_sets_in_one_file(tmp_path):
    source = lay(tmp_path / "dfdcp", "method_A/1/1_A_001.mp4", "original_videos/1/1_A_001.mp4")
    entries = {
        "method_A/1/1_A_001.mp4": {"label": "fake", "set": "test", "target_id": 1, "swapped_id": 2},
        "original_videos/1/1_A_001.mp4": {"label": "real", "set": "train", "target_id": None},
        "method_B/7/7.mp4": {"label": "fake", "set": "train"},
    }
    (source / "dataset.json").write_text(json.dumps(entries))
    table = adopt("dfdcp", source, tmp_path / "out").set_index("file")
    assert table.label.tolist() == [1, 0, 1]
    assert table.here.tolist() == [True, True, False]
    assert table.method.tolist() == ["method_A", "", "method_B"]
    assert read_metadata(tmp_path / "out").video_id.nunique() == 2  # of one name
    real = {"label": "real", "set": "test"}
    for bad in ({"../x.mp4": real}, {"": real}, {"a.mp4": {"label": "?"}}, {"a.mp4": 3}, [1]):
        (source / "dataset.json").write_text(json.dumps(bad))
        with pytest.raises(MetadataError, match=r"lies outside| has "):
            adopt("dfdcp", source, tmp_path / "out")


def test_dfdcs_test_set_by_its_table_or_its_json(tmp_path):
    source = lay(tmp_path / "test", "test_videos/a.mp4", "test_videos/b.mp4")
    (source / "labels.csv").write_text("filename,label\na.mp4,1\nb.mp4,0\nc.mp4,1\n")
    lay(tmp_path / "twice", "a/x.mp4", "b/x.mp4")
    (tmp_path / "twice" / "labels.csv").write_text("filename,label\na/x.mp4,1\nb/x.mp4,0\n")
    table = adopt("dfdc-test", tmp_path / "twice", tmp_path / "out")
    assert table.file.tolist() == ["a/x.mp4", "b/x.mp4"]
    for _ in range(2):
        table = adopt("dfdc-test", source, tmp_path / "out")
        assert (~table.here).sum() == 1
        found = read_metadata(tmp_path / "out").set_index("video_id")
        assert found.label.to_dict() == {"a": 1, "b": 0}
        assert found.original_id.tolist() == ["a", "b"]
        (source / "labels.csv").unlink(missing_ok=True)
        entries = {"a.mp4": {"is_fake": 1}, "b.mp4": {"is_fake": 0}, "c.mp4": {"is_fake": 1}}
        (source / "metadata.json").write_text(json.dumps(entries))


def test_folders_real_and_fake_by_their_usual_names(tmp_path):
    files = ["train/0_real/x.mp4", "train/0_real/x.avi", "test/1_fake/FaceSwap/x.mp4"]
    files += ["valid/1_fake/x.mp4", "loose.mp4", "real/fake/both.mp4", "train/0_real/notes.txt"]
    files += [f"train/0_real/{'long' * 50}.mp4"]
    table = adopt("folders", lay(tmp_path / "plain", *files), tmp_path / "out").set_index("file")
    assert len(table) == 7
    assert table[table.label.isna()].index.tolist() == ["loose.mp4", "real/fake/both.mp4"]
    assert table.label["train/0_real/x.avi"] == 0
    assert table.label[files[2]] == 1
    assert (table.split[files[2]], table.method[files[2]]) == ("test", "FaceSwap")
    assert table.split["valid/1_fake/x.mp4"] == "val"
    assert len(read_metadata(tmp_path / "out")) == 5
    told = describe_adoption(table.reset_index())
    assert "2 are left out: their folders give no label, or two, e.g. loose.mp4" in told


def test_a_folder_of_something_else_is_kept_and_an_earlier_adoption_is_replaced(tmp_path):
    source = lay(tmp_path / "plain", "real/a.mp4", "fake/b.mp4")
    lay(tmp_path / "mine", "thesis.txt")
    with pytest.raises(FileExistsError, match="holds something else"):
        adopt("folders", source, tmp_path / "mine")
    for out in (source, source / "out"):
        with pytest.raises(ValueError, match="only read"):
            adopt("folders", source, out)
    adopt("folders", source, tmp_path / "out")
    lay(tmp_path / "out", "work/folds.csv")
    with pytest.raises(FileExistsError, match="holds something else"):
        adopt("folders", source, tmp_path / "out")
    (tmp_path / "out" / "work" / "folds.csv").unlink()
    lay(source, "real/c.mp4")
    adopt("folders", source, tmp_path / "out")
    assert len(read_metadata(tmp_path / "out")) == 3
    assert sorted(p.name for p in source.rglob("*.mp4")) == ["a.mp4", "b.mp4", "c.mp4"]
    (source / "labels.csv").write_text("filename,label\nx.mp4,1\n")
    with pytest.raises(ValueError, match="no video of the layout dfdc"):
        adopt("dfdc-test", source, tmp_path / "out")


def test_adopted_videos_go_through_the_stages(small_sample, tmp_path):
    """Masks are made where an original is named: of FaceForensics++'s pairs, not of folders."""
    table = read_metadata(small_sample)
    fakes = table[table.label == 1].drop_duplicates("original_id")[:2]
    pairs, plain = tmp_path / "pairs", tmp_path / "plain"
    originals = table.set_index("video_id").file
    for number, fake in enumerate(fakes.itertuples()):
        real, made = small_sample / originals[fake.original_id], small_sample / fake.file
        name, swapped = f"00{number}.mp4", f"00{number}_00{1 - number}.mp4"
        link(pairs / "original_sequences/youtube/c23/videos" / name, real)
        link(pairs / "manipulated_sequences/FaceSwap/c23/videos" / swapped, made)
        link(plain / "real" / name, real)
        link(plain / "fake" / name, made)
    for layout, source, n_masks in (("ffpp", pairs, 2), ("folders", plain, 0)):
        out, work = tmp_path / layout, WorkFolder(tmp_path / "work" / layout)
        adopt(layout, source, out)
        done = preprocess(out, work)
        assert (done.status.status == "ok").all()
        crops = pd.read_csv(work.folds)
        assert crops.video_id.nunique() == 4
        assert crops.label.nunique() == 2
        assert len(list(work.root.glob("masks/*"))) == n_masks
        assert not preprocess(out, work).actions.get(("crop", "done"))  # all is kept
