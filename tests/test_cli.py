import re
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image
from test_adopt import lay
from test_predict import make_model
from torch.distributed.run import parse_args

from dfdc_lib import config
from dfdc_lib.config import DEMO_TRAINING, PredictConfig, PreprocessConfig, TrainConfig
from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import save_checkpoint
from dfdc_lib.ops.cli import main, name_pages, read_command
from dfdc_lib.rehearsal import people
from dfdc_lib.store import write_json

CONFIGS = {"preprocess": PreprocessConfig, "train": TrainConfig, "predict": PredictConfig}


@pytest.fixture
def predict(tmp_path):
    """predict(videos, *options): the exit code, by a network that has learned the sample."""
    save_checkpoint(tmp_path / "tiny.pt", make_model(trained_on="sample"))
    call = ["--checkpoint", str(tmp_path / "tiny.pt"), "--frames", "2"]
    return lambda *words: main(["predict", *map(str, words), *call])


@pytest.mark.parametrize("command", ["", "sample", "weights", *CONFIGS, "doctor"])
def test_help_names_every_field_of_the_configurations(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for field in fields(CONFIGS[command]) if command in CONFIGS else ():
        assert re.search(rf"^ *--{field.name.replace('_', '-')}\b", text, re.MULTILINE), field.name
    assert "tyro" not in text


B7 = TrainConfig(encoder="b7", batch=config.ENCODERS["b7"].batch)
UPSTREAM = PreprocessConfig(5, margin=config.MARGINS["upstream"])
OPTIONS = {  # by command and field: options, and the value that they mean
    ("preprocess data", "recipe"): {
        "": PreprocessConfig(),
        "--every 5 --margin upstream": UPSTREAM,
        "--margin 0.4": PreprocessConfig(margin=config.Margin(0.4)),
        "--thresholds 0.7 0.8 0.9": PreprocessConfig(thresholds=(0.7, 0.8, 0.9)),
    },
    ("train --work w --run r", "settings"): {
        "": TrainConfig(),
        "--encoder b7": B7,
        "--encoder=b7 --batch 4": replace(B7, batch=4),
        "--preset demo": DEMO_TRAINING,
        "--preset demo --steps 2 --no-paired": replace(DEMO_TRAINING, steps=2, paired=False),
        "--preset transfer": config.TRANSFER_TRAINING,
        "--preset demo --encoder b7": replace(DEMO_TRAINING, encoder="b7"),
    },
    ("train --work w --run r", "pretrained"): {
        "": None,
        "--pretrained --seed 3": (),
        "--pretrained weights --seed 3": (Path("weights"),),
    },
}


STARTS = {"": False, "--pretrained": True, "--preset demo": True}
STARTS |= {"--preset demo --encoder b7": False, "--preset demo --pretrained w": Path("w")}


@pytest.mark.parametrize("words", STARTS)
def test_training_starts_from_the_weights_that_were_asked_for(words):
    command = read_command(f"train --work w --run r {words}".split())
    assert command.choose_start() == STARTS[words]


@pytest.mark.parametrize(("command", "name"), OPTIONS)
def test_options_are_the_settings(command, name):
    for words, value in OPTIONS[command, name].items():
        assert getattr(read_command(f"{command} {words}".split()), name) == value, words


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("", "{sample, adopt, preprocess, train, weights, predict, evaluate, verify, doctor}"),
        ("simple out", "simple"),
        ("sample", "OUT"),
        ("sample out --sede 3", "--sede"),
        ("sample out --seed three", "--seed"),
        ("preprocess gone", "no such folder: gone"),
        (f"preprocess data --work {__file__}/work", "(Not a directory): name another folder"),
        ("preprocess data --every 0", "every must be at least 1, got 0"),
        ("preprocess data --margin wide", "--margin: a margin is a number or one of slides"),
        ("preprocess data --thresholds 0.7 0.8", "--thresholds"),
        ("train --work gone --run x", "dfdc preprocess"),
        ("train --work gone --run x --optimizer adam", "--optimizer"),
        ("train --work gone --run x --self-blend 1", "self_blend must be a probability"),
        ("train --work gone --run x --self-blend -0.1", "self_blend must be a probability"),
        ("train --work gone --run x --smoothing 0.5", "smoothing must be in"),
        ("predict --checkpoint gone.pt", "name the videos"),
        ("predict gone.mp4 --checkpoint gone.pt", "no such file or folder: gone.mp4"),
        (f"predict {__file__} --checkpoint gone.pt", "no such checkpoint: gone.pt"),
        ("adopt ffpp gone out", "/gone"),
        ("adopt kodf gone out", "invalid choice 'kodf'"),
        ("evaluate gone.csv --labels gone", "gone.csv"),
        ("evaluate --labels gone", "name the results"),
        ("doctor --estimate 2", "--data"),
    ],
)
def test_a_wrong_call_is_one_line(call, message, capsys):
    assert main(call.split()) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert re.fullmatch(r"dfdc: .+\n", printed.err)
    assert not printed.out


def test_the_command_line_starts_without_torch():
    code = (
        "import sys; from dfdc_lib.ops.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: assert not {'torch', 'pandas', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_preprocess_and_train_work_from_the_command_line(small_sample, uncropped, capsys):
    work = uncropped.root
    call = ["preprocess", str(small_sample), "--work", str(work), "--every", "6", "--workers", "0"]
    assert main([*call, "--stages", "detect,crop"]) == 0
    assert not (work / "masks").exists()
    assert main(call) == 0
    assert "folds: " in capsys.readouterr().out
    train = ["train", "--work", str(work), "--run", "r", "--preset", "demo"]
    train += ["--steps", "2", "--batch", "4"]
    assert main(train) == 0
    assert (work / "runs" / "r" / "last.pt").exists()
    assert "2/2" in capsys.readouterr().err
    assert main([*call, "--every", "12", "--overwrite"]) == 0  # the last --every counts


def test_a_score_a_page_and_what_the_labels_say(small_sample, predict, tmp_path, capsys):
    video, out = small_sample / read_metadata(small_sample).file[0], tmp_path / "submission.csv"
    assert predict(video, "--out", out, "--report", tmp_path) == 0
    printed = capsys.readouterr()
    assert "rehearsal" in printed.err
    for told in ("p_fake", "coverage 100%"):
        assert told in printed.out
    assert pd.read_csv(out).label.between(0, 1).all()
    assert (tmp_path / f"{video.name}.html").exists()
    labels = [str(small_sample), str(tmp_path / "labels.csv")]
    Path(labels[1]).write_text("filename,label\nother.mp4,1\n")
    page = ["--out", str(tmp_path / "evaluation")]
    assert main(["evaluate", str(out), "--labels", *labels, *page]) == 0
    printed = capsys.readouterr()
    assert "rehearsal" in printed.err
    assert "log loss" in printed.out
    assert (tmp_path / "evaluation" / "evaluation.html").exists()
    assert main(["evaluate", str(out), "--labels", labels[1]]) == 2
    assert f"no video of {out} has a label" in capsys.readouterr().err
    (tmp_path / "text.mp4").write_text("no video")
    assert predict(tmp_path, "--fallback", "0.5") == 1
    printed = capsys.readouterr().out
    assert "unreadable" in printed
    assert "the others count as 0.5" in printed


def test_folders_are_adopted_from_the_command_line(tmp_path, capsys):
    plain = lay(tmp_path / "plain", "real/a.mp4", "fake/a.mp4")
    assert main(["adopt", "folders", str(plain), str(tmp_path / "out")]) == 0
    assert "2 videos are linked" in capsys.readouterr().out


def test_a_picture_is_scored_and_gets_a_page(predict, tmp_path, capsys):
    Image.fromarray(people.portrait("hopper")).save(tmp_path / "a.jpg")
    assert predict(tmp_path, "--report", tmp_path / "pages") == 0  # found in its folder
    told = capsys.readouterr().out
    assert "1 faces in 1 frames (1 of 2 frames: the video has no more)" in told
    assert "<img" in (tmp_path / "pages" / "a.jpg.html").read_text()


def test_doctor_tells_good_from_bad(small_sample, work_copy, tmp_path, capsys):
    work = ["--work", str(work_copy.root)]
    assert main(["doctor", "--data", str(small_sample), *work]) == 0
    assert f"GB at {small_sample}" in (told := capsys.readouterr().out)
    assert "12 of 12 videos" in told
    work_copy.folds.unlink()
    assert main(["doctor", "--data", str(tmp_path), *work]) == 1
    printed = capsys.readouterr().out
    assert "BAD data" in printed
    assert "BAD folds" in printed


def test_torchrun_takes_the_lines_of_the_pages():
    """It reads options that begin like its own, --run like --run-path, unless `--` ends them."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    text = "\n".join(page.read_text() for page in pages).replace("\\\n", "").replace("$RANK", "0")
    trainings = re.findall(r"torchrun (--[^`#…\\\n]*dfdc(?: train|_lib)[^`#…\\\n]*)", text)
    assert len(trainings) == 6
    for line in trainings:
        call = parse_args([*shlex.split(line), "--run", "b5"])
        assert call.training_script == "dfdc", line
        assert call.training_script_args[-2:] == ["--run", "b5"], line


def test_no_two_videos_share_a_page_and_a_disk_takes_its_name():
    names = ["b.mp4", "x/c.mp4", "y/c.mp4", "x__c.mp4", "é" * 100 + ".mp4"]
    pages = name_pages({Path(name): name for name in names})
    assert len(set(pages.values())) == len(names)
    assert pages[Path("b.mp4")] == "b.mp4.html"
    assert all(len(page.encode()) < 200 and "/" not in page for page in pages.values())


def test_a_page_is_replaced_only_by_the_same_videos(tmp_path):
    same, other = tmp_path / "a" / "é.mp4", tmp_path / "b" / "é.mp4"
    write_json(tmp_path / "é.mp4.json", {"video": {"path": str(same)}})
    assert name_pages({same: "é.mp4"}, tmp_path) == {same: "é.mp4.html"}
    assert name_pages({other: "é.mp4"}, tmp_path)[other] not in ("é.mp4.html", "")
    assert len(name_pages({other: "é" * 300}, tmp_path)[other].encode()) < 200
