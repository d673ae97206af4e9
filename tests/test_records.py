"""The record beside a page: the same call says equal, and whatever has changed is told."""

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
from test_predict import make_model

from dfdc_lib.config import PredictConfig
from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import save_checkpoint
from dfdc_lib.ops.cli import main
from dfdc_lib.ops.pages import write_page
from dfdc_lib.predict import load_models, predict_videos
from dfdc_lib.store import digest_file

CONFIG = PredictConfig(frames=3)


@pytest.fixture(scope="module")
def place(small_sample, tmp_path_factory) -> Path:
    """A folder with a video, a checkpoint, and the page and record of its verdict."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copy(small_sample / read_metadata(small_sample).file[0], folder / "clip.mp4")
    save_checkpoint(folder / "m.pt", make_model())
    models = load_models([folder / "m.pt"])
    verdict = next(predict_videos([folder / "clip.mp4"], models, CONFIG))
    write_page(verdict, models, folder / "page.html", CONFIG)
    return folder


@pytest.fixture
def moved(place, tmp_path) -> Path:
    return Path(shutil.copytree(place, tmp_path / "moved"))


def verify(folder: Path, capsys, *more) -> tuple[int, str]:
    words = [folder / "page.json", "--video", folder / "clip.mp4", "--checkpoint", folder / "m.pt"]
    code = main(["verify", *map(str, [*words, *more])])
    out, err = capsys.readouterr()
    return code, out + err


def test_a_record_holds_what_the_page_says(place):
    record, page = json.loads((place / "page.json").read_text()), (place / "page.html").read_text()
    assert record["video"]["sha256"] == digest_file(place / "clip.mp4")
    assert record["checkpoints"][0]["sha256"] == digest_file(place / "m.pt")
    assert record["checkpoints"][0]["numbers"] == "torch, float32"
    assert record["settings"]["frames"] == 3
    assert record["verdict"]["n_faces"] == len(record["faces"]) >= 3
    digests = record["video"]["sha256"], record["checkpoints"][0]["sha256"]
    numbers = f"p_fake {record['verdict']['p_fake']:.3f}", f"torch {version('torch')}", "frames 3"
    for words in (*digests, *numbers, "dfdc verify page.json", "Trust it less", "arxiv.org"):
        assert words in page


def test_the_same_files_give_the_same_scores_from_where_they_lay_or_lie_now(place, moved, capsys):
    assert main(["verify", str(place / "page.json")]) == 0
    assert "equal: the result is the same" in capsys.readouterr().out
    assert verify(moved, capsys)[0] == 0


def change_video(folder: Path) -> None:
    data = bytearray((folder / "clip.mp4").read_bytes())
    data[-1] ^= 1
    (folder / "clip.mp4").write_bytes(data)


def change_model(folder: Path) -> None:
    model = make_model(1)
    model.fc.bias.data += 3
    save_checkpoint(folder / "m.pt", model)


def edit(**changes):
    """A change of the record's verdict."""

    def change(folder: Path) -> None:
        record = json.loads((folder / "page.json").read_text())
        record["verdict"] |= changes
        (folder / "page.json").write_text(json.dumps(record))

    return change


CHANGES = {
    "a byte of the video": (change_video, ["clip.mp4"]),
    "the network": (change_model, ["m.pt", "p_fake"]),
    "the score": (edit(p_fake=0.9), ["p_fake"]),
    "no score": (edit(p_fake=None), ["p_fake"]),
    "its faces": (edit(n_faces=1), ["what was seen"]),
    "no people": (edit(people=[]), []),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_has_changed_is_told_and_nothing_else(name, moved, capsys):
    change, wrong = CHANGES[name]
    change(moved)
    code, said = verify(moved, capsys)
    assert code == 1
    bad = re.findall(r"^BAD (.*?): ", said, re.MULTILINE)
    assert [Path(words).name for words in bad if "person" not in words] == wrong
    assert any("person" in words for words in bad) == (name in ("the network", "no people"))
    assert said.endswith("not equal: BAD says what differs\n")


@pytest.mark.parametrize("text", ["[]", "{}", '{"verdict": 1}', "no JSON"])
def test_what_is_no_record_is_one_line(text, moved, capsys):
    (moved / "page.json").write_text(text)
    code, said = verify(moved, capsys)
    assert (code, said.count("\n")) == (2, 1)
    assert "page.json" in said


def test_a_missing_video_and_another_number_of_checkpoints_are_told(moved, capsys):
    missing, twice = ("--video", moved / "gone.mp4"), (moved / "m.pt",)
    for more, told in ((missing, "--video says where"), (twice, "1 checkpoints gave")):
        code, said = verify(moved, capsys, *more)
        assert code == 2
        assert told in said


def test_a_verdict_without_a_score_has_a_record_too(place, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    models = load_models([place / "m.pt"])
    for path in (tmp_path / "empty.mp4", tmp_path / "gone.mp4"):
        (verdict,) = predict_videos([path], models)
        write_page(verdict, models, tmp_path / "page.html")
        record = json.loads((tmp_path / "page.json").read_text())
        assert record["verdict"]["p_fake"] is None
        assert record["video"]["width"] is None
        assert (record["video"]["bytes"] == 0) == path.exists()


def test_the_page_about_windows_lists_the_highest(place):
    models, config = load_models([place / "m.pt"]), PredictConfig(frames=2, every_seconds=0.2)
    verdict = next(predict_videos([place / "clip.mp4"], models, config))
    page = write_page(verdict, models, place / "windows.html", config).read_text()
    assert "Each window by itself" in page
    listed = json.loads((place / "windows.json").read_text())["windows"]
    pd.testing.assert_frame_equal(pd.DataFrame(listed), verdict.windows)
