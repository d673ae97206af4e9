"""For each kind of damage of a work folder: it is found and named, the advice mends it, and then all is well again."""

import json
import os
import platform
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from dfdc_lib.cli import main
from dfdc_lib.config import PreprocessConfig
from dfdc_lib.doctor import Finding
from dfdc_lib.integrity import check_work
from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint
from dfdc_lib.paths import WorkFolder, hold, write_png
from dfdc_lib.preprocess import preprocess

EVERY_6 = PreprocessConfig(every=6)


@pytest.fixture
def work(work_copy) -> WorkFolder:
    """To be damaged."""
    return work_copy


@pytest.fixture
def data(small_sample, tmp_path):
    """A copy of the small sample that its manifests still know: the files' times are kept."""
    return shutil.copytree(small_sample, tmp_path / "small", copy_function=shutil.copy2)


def bad(work, data=None, show=3) -> dict[str, Finding]:
    """What is wrong, by name; and no finding may be empty."""
    findings = [finding for finding in check_work(work, data, show) if not finding.ok]
    assert all(finding.found and finding.advice for finding in findings)
    return {finding.what: finding for finding in findings}


def videos(data, label: int) -> list[str]:
    return read_metadata(data).query("label == @label").video_id.tolist()


def run_again(data, work) -> None:
    preprocess(data, work, EVERY_6)


def test_a_healthy_folder_is_a_few_good_lines_and_is_not_touched(small_sample, small_work):
    before = {path: path.stat().st_mtime_ns for path in small_work.root.rglob("*")}
    findings = check_work(small_work, small_sample)
    assert [(finding.what, finding.found) for finding in findings[1:4]] == [
        (kind, "nothing") for kind in ("missing", "stale", "orphaned")
    ]
    assert all(finding.ok for finding in findings)
    n_crops = len(pd.read_csv(small_work.folds))
    n_masks = len(list(small_work.root.glob("masks/*/*.png")))
    assert findings[0].found == f"12 videos, {n_crops} crops, {n_masks} masks"
    assert findings[4].what == "damaged"
    assert f"every picture begins and ends as a PNG, {n_crops + n_masks} of them decode" in findings[4].found
    assert {path: path.stat().st_mtime_ns for path in small_work.root.rglob("*")} == before


def test_the_command_prints_it_and_its_exit_code_tells(small_sample, work, capsys):
    call = ["doctor", "--work", str(work.root), "--data", str(small_sample)]
    assert main(call) == 0
    assert "ok  missing: nothing" in capsys.readouterr().out
    work.folds.unlink()
    assert main(call) == 1
    command = f"dfdc preprocess {small_sample} --work {work.root} --every 6"
    assert f"BAD missing records: 1: folds.csv (run `{command}` again" in capsys.readouterr().out
    assert main([*command.split()[1:], "--workers", "0"]) == 0
    assert main(call) == 0
    assert main(["doctor", "--work", str(work.root / "gone")]) == 1


def count(work, kind: str, video: str) -> int:
    return len(list((work.root / kind / video).glob("*.png")))


def lose_a_crop(work, data):
    video = videos(data, 1)[0]
    next(work.crops(video).glob("*.png")).unlink()
    left = count(work, "crops", video)
    return "boxes, crops or masks", f"crops/{video} ({left} of {left + 1})"


def lose_a_folder_of_masks(work, data):
    video = videos(data, 1)[0]
    made = count(work, "masks", video)
    shutil.rmtree(work.masks(video))
    return "boxes, crops or masks", f"masks/{video} (0 of {made})"


def lose_boxes(work, data):
    video = videos(data, 0)[0]
    work.boxes(video).unlink()
    return "boxes, crops or masks", f"boxes/{video}.json (0 of {count(work, 'crops', video)})"


def lose_source(work, data):
    work.source.unlink()
    return "records", "source.json"


def lose_crops_of_folds(work, data):
    video = videos(data, 0)[0]
    shutil.rmtree(work.crops(video))
    return "crops that folds.csv names", f"crops/{video}/0_0.png"


@pytest.mark.parametrize("lose", [lose_a_crop, lose_a_folder_of_masks, lose_boxes, lose_source, lose_crops_of_folds])
def test_what_is_missing_is_named_and_made_again(work, data, lose):
    what, name = lose(work, data)
    found = bad(work)
    assert name in found[f"missing {what}"].found
    assert f"run `dfdc preprocess DATA --work {work.root} --every 6` again" in found[f"missing {what}"].advice
    assert not any(what.startswith(("stale", "damaged", "orphaned")) for what in found)
    run_again(data, work)
    assert not bad(work, data)


def test_artifacts_of_other_settings_are_stale(work, data):
    """As an interrupted run with another margin leaves it: one original's crops are of that, the others are not."""
    video = videos(data, 0)[0]
    manifest = json.loads(work.manifest(video).read_text())
    manifest["crop"]["settings"]["margin"] = 0.5
    work.manifest(video).write_text(json.dumps(manifest))
    found = bad(work)
    assert found["stale settings, other than source.json's or most others'"].found == f"1: crops/{video}"
    assert f"crops/{video}/0_0.png" in found["stale folds.csv, which names crops of other settings"].found
    work.source.unlink()
    assert f"1: crops/{video}" in [finding.found for finding in bad(work).values()]
    run_again(data, work)
    assert not bad(work, data)


def test_the_settings_of_the_folder_are_part_of_the_advice(work, data):
    config = PreprocessConfig(every=6, margin="upstream", thresholds=(0.7, 0.8, 0.8), folds=3)
    preprocess(data, work, config)
    assert not bad(work, data)
    next(work.crops(videos(data, 0)[0]).glob("*.png")).unlink()
    advice = bad(work, data)["missing boxes, crops or masks"].advice
    command = advice.split("`")[1]
    settings = "--every 6 --margin upstream --thresholds inference --folds 3"
    assert command == f"dfdc preprocess {data} --work {work.root} {settings}"
    assert main([*command.split()[1:], "--workers", "0"]) == 0
    assert not bad(work, data)


def test_the_advice_is_of_as_many_originals_as_were_taken(data, tmp_path):
    work = WorkFolder(tmp_path / "few")
    preprocess(data, work, EVERY_6, originals=2)
    next(work.masks(path.name) for path in (work.root / "masks").iterdir()).joinpath("0_0.png").unlink()
    command = bad(work, data)["missing boxes, crops or masks"].advice.split("`")[1]
    assert command.endswith("--every 6 --originals 2")
    assert main([*command.split()[1:], "--workers", "0"]) == 0
    assert not bad(work, data)
    preprocess(data, work, EVERY_6)
    preprocess(data, work, EVERY_6, originals=2)  # the others stand
    preprocess(data, work, PreprocessConfig(every=6, folds=5), stages=["crop"])  # so do the folds
    assert {name: work.read_source()[name] for name in ("originals", "folds")} == {"originals": 0, "folds": 16}


def test_a_video_that_has_changed_makes_its_artifacts_stale(work, data):
    original = read_metadata(data).query("label == 0").iloc[0]
    os.utime(data / original.file)
    finding = bad(work, data, show=99)["stale videos, changed since they were read"]
    family = read_metadata(data).query("original_id == @original.video_id")
    expected = {f"boxes/{original.video_id}.json"} | {f"crops/{video}" for video in family.video_id}
    expected |= {f"masks/{video}" for video in family.video_id if video != original.video_id}
    assert set(finding.found.split(": ")[1].split(", ")) == expected
    run_again(data, work)
    assert not bad(work, data)
    (data / original.file).unlink()
    assert not bad(work, data)


def test_folds_that_do_not_name_what_is_there_are_stale(work, data):
    rows = pd.read_csv(work.folds)
    rows[rows.video_id != videos(data, 1)[0]].to_csv(work.folds, index=False)
    finding = bad(work)["stale folds.csv, which does not name these crops"]
    names = [f"crops/{videos(data, 1)[0]}/{name}" for name in work.crop_names(videos(data, 1)[0])]
    assert finding.found == f"{len(names)}: {', '.join(names[:3])}" + ", …" * (len(names) > 3)
    run_again(data, work)
    assert not bad(work, data)


def test_what_has_no_entry_is_orphaned(work, data):
    """The advice: run again, and what is still named may be deleted."""
    known, picture = videos(data, 1)[0], np.zeros((9, 9), np.uint8)
    for kind in ("crops", "masks"):
        (work.root / kind / "ghost").mkdir()
        write_png(work.root / kind / "ghost" / "0_0.png", picture)
    shutil.copy(work.boxes(videos(data, 0)[0]), work.boxes("ghost"))
    manifest = json.loads(work.manifest(known).read_text())
    del manifest["masks"]
    work.manifest(known).write_text(json.dumps(manifest))
    what = "orphaned folders and files without an entry in a manifest"
    assert bad(work, show=9)[what].found == f"4: boxes/ghost.json, crops/ghost, masks/{known}, masks/ghost"
    run_again(data, work)
    assert bad(work, show=9)[what].found == "3: boxes/ghost.json, crops/ghost, masks/ghost"
    for path in (work.crops("ghost"), work.masks("ghost"), work.boxes("ghost")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not bad(work, data)


def test_pictures_that_fit_no_entry_are_orphaned(work, data):
    """More than were made; of a frame without a face; of another name altogether."""
    real, fake, other = videos(data, 0)[0], *videos(data, 1)[:2]
    shutil.copy(work.crops(real) / "0_0.png", work.crops(real) / "999_0.png")
    (work.crops(fake) / "0_0.png").rename(work.crops(fake) / "998_0.png")
    (work.masks(other) / "Thumbs.db").write_text("a file browser's")
    (work.root / "crops" / "notes.txt").write_text("mine")
    found = bad(work, show=9)
    alien = {f"crops/{real}/999_0.png", f"crops/{fake}/998_0.png", f"masks/{other}/Thumbs.db", "crops/notes.txt"}
    assert set(found["orphaned files that fit no entry"].found.split(": ")[1].split(", ")) == alien
    for name in alien:
        (work.root / name).unlink()
    run_again(data, work)
    assert not bad(work, data)


def test_a_number_that_no_frame_has_is_no_crop(work, data):
    video = videos(data, 0)[0]
    write_png(work.crops(video) / "12345678901_0.png", np.zeros((8, 8, 3), np.uint8))
    assert f"crops/{video}/12345678901_0.png" in bad(work, data)["orphaned files that fit no entry"].found


def test_videos_that_the_data_set_does_not_list_are_orphaned(work, data):
    fake = videos(data, 1)[0]
    path = data / os.path.dirname(read_metadata(data).set_index("video_id").file[fake]) / "metadata.json"
    entries = json.loads(path.read_text())
    del entries[f"{fake}.mp4"]
    path.write_text(json.dumps(entries))
    run_again(data, work)
    found = bad(work, data)
    assert found["orphaned videos that the data set does not list"].found == f"1: manifest/{fake}.json"
    for folder in (work.crops(fake), work.masks(fake)):
        shutil.rmtree(folder)
    work.manifest(fake).unlink()
    assert not bad(work, data)


def test_leftovers_of_killed_processes_are_orphaned_and_those_of_the_living_are_not(work, data):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here, run = platform.node(), work.run("r")
    run.mkdir(parents=True)
    swept = [f"crops/.a.{here}-{dead.pid}.part", f"boxes/.a.json.{here}-{dead.pid}.part"]
    theirs = ["manifest/.b.json.elsewhere-1.part", "runs/r/.last.pt.else.where-2.part", "runs/r/.running"]
    for name in swept + theirs:
        (work.root / name).write_text("elsewhere-3")
    (work.root / "masks" / f".c.{here}-{os.getppid()}.part").mkdir()
    what = "orphaned leftovers of killed processes"
    assert set(bad(work, show=9)[what].found.split(": ")[1].split(", ")) == {*swept, *theirs}
    run_again(data, work)
    assert set(bad(work, show=9)[what].found.split(": ")[1].split(", ")) == set(theirs)
    for name in theirs:
        (work.root / name).unlink()
    with hold(run):
        assert not bad(work, data)


NO_MANIFESTS = {
    "empty": "", "deep": "[" * 99_999, "list": "[]", "no text": "\udcff", "no keys": '{"crop": {}}',
    "no entry": '{"crop": 7}', "no stage": '{"sing": {}}',
}  # fmt: skip


@pytest.mark.parametrize("text", NO_MANIFESTS.values(), ids=NO_MANIFESTS)
def test_damaged_manifests_and_boxes_are_named_and_made_again(work, data, text):
    video = videos(data, 0)[0]
    for path in (work.manifest(video), work.boxes(video)):
        path.write_text(text, errors="surrogateescape")
    found = bad(work, data)
    assert found["damaged manifests"].found == f"1: manifest/{video}.json"
    assert found["damaged boxes"].found == f"1: boxes/{video}.json"
    assert not any(what.startswith("orphaned") for what in found)
    run_again(data, work)
    assert not bad(work, data)


def test_an_entry_that_lacks_a_key_is_damage(work, data):
    video = videos(data, 1)[0]
    for key in ("status", "count", "reason", "settings", "inputs"):
        manifest = json.loads(work.manifest(video).read_text())
        del manifest["crop"][key]
        work.manifest(video).write_text(json.dumps(manifest))
        assert "damaged manifests" in bad(work)
        run_again(data, work)
        assert not bad(work, data)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"trained_on": "x", "margin": 0.2}'])
def test_a_damaged_source_is_written_again(work, data, text):
    work.source.write_text(text)
    assert bad(work)["damaged records"].found == "1: source.json"
    run_again(data, work)
    assert not bad(work, data)


def damage_folds(work, change) -> None:
    change(pd.read_csv(work.folds)).to_csv(work.folds, index=False)


@pytest.mark.parametrize(
    ("change", "what", "name"),
    [
        (lambda rows: rows.drop(columns="frame_idx"), "records", "folds.csv"),
        (lambda rows: rows.drop(columns="part"), "records", "folds.csv"),
        (lambda rows: rows.assign(frame_idx="x"), "records", "folds.csv"),
        (lambda rows: pd.concat([rows, rows[:1]]), "folds.csv, which names crops twice", "/0_0.png"),
        (lambda rows: rows.assign(fold=range(len(rows))), "folds.csv, which splits families over folds: a leak", ""),
    ],
)
def test_damaged_folds_are_written_again(work, data, change, what, name):
    damage_folds(work, change)
    assert name in bad(work)[f"damaged {what}"].found
    run_again(data, work)
    assert not bad(work, data)


def truncate(content: bytes) -> bytes:
    return content[:-100]


def flip(content: bytes) -> bytes:
    """One bit, in the middle of the pixels: only a checksum tells."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("spoil", [lambda content: b"", truncate, flip, lambda content: b"\0" * 99, lambda c: b"text"])
def test_pictures_that_are_no_pictures_are_named_and_made_again(work, data, spoil):
    real, fake = videos(data, 0)[0], videos(data, 1)[0]
    names = [f"crops/{real}/0_0.png", f"masks/{fake}/6_0.png"]
    for name in names:
        (work.root / name).write_bytes(spoil((work.root / name).read_bytes()))
    finding = bad(work)["damaged pictures"]
    assert finding.found == f"2: {', '.join(names)}"
    assert "delete them, then run" in finding.advice
    for name in names:
        (work.root / name).unlink()
    run_again(data, work)
    assert not bad(work, data)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """What a run of two epochs leaves."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    epochs = [{"epoch": i, "step": 5 * i + 5, "train_loss": 0.7, "valid_loss": 0.6} for i in range(2)]
    save_checkpoint(folder / "last.pt", DeepfakeClassifier("tiny"), {"history": {"epochs": epochs}})
    save_checkpoint(folder / "best.pt", DeepfakeClassifier("tiny"))
    pd.DataFrame(epochs).to_csv(folder / "metrics.csv", index=False)
    return folder


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "metrics.csv"])
@pytest.mark.parametrize("spoil", [lambda content: b"", lambda content: content[: len(content) // 2]])
def test_runs_that_can_not_be_opened_are_damage(work, checkpoint, name, spoil):
    shutil.copytree(checkpoint, work.run("r"))
    assert not bad(work)
    (work.run("r") / name).write_bytes(spoil((work.run("r") / name).read_bytes()))
    what = "damaged tables of runs" if name == "metrics.csv" else "damaged checkpoints"
    assert bad(work)[what].found == f"1: runs/r/{name}"
    shutil.rmtree(work.run("r"))
    assert not bad(work)


def test_a_checkpoint_that_would_run_code_is_not_opened(work, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    work.run("r").mkdir(parents=True)
    torch.save({"state_dict": Trap()}, work.run("r") / "last.pt")
    assert bad(work)["damaged checkpoints"].found == "1: runs/r/last.pt"
    assert not (tmp_path / "sprung").exists()
