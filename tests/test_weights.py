"""Fetching the released networks, from a server that behaves badly."""

import hashlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from dfdc_lib.model import DeepfakeClassifier
from dfdc_lib.ops import weights
from dfdc_lib.ops.cli import main
from dfdc_lib.ops.weights import RELEASED, Released, fetch_weights

NAME = next(iter(RELEASED))
CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Mirror:
    """A server of made-up files. What it does wrong: `faults`, one for each answer, then none."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.faults, self.asked = files, [], []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                mirror.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request) -> None:
        fault = self.faults.pop(0) if self.faults else ""
        wanted = request.headers.get("Range", "bytes=0-")
        self.asked.append(start := int(wanted.removeprefix("bytes=").removesuffix("-")))
        content = self.files.get(request.path[1:])
        if content is None or fault in ("404", "503"):
            request.send_error(int(fault or 404))
            return
        if fault == "silent":
            time.sleep(1)
        if fault == "no ranges":
            start = 0
        content = content[::-1] if fault == "wrong" else content
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        end = start + (len(content) - start) // 2 if fault == "cut" else len(content)
        request.wfile.write(content[start:end])


@pytest.fixture
def mirror(monkeypatch):
    monkeypatch.setattr(weights, "PAUSE", 0)
    monkeypatch.setattr(weights, "PATIENCE", 0.2)
    made = Mirror({})
    yield made
    made.server.shutdown()
    made.server.server_close()


def release(monkeypatch, content: bytes, name: str = NAME) -> bytes:
    """From now on, upstream has released these bytes under a name."""
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(RELEASED, name, Released(len(content), digest))
    return content


@pytest.mark.parametrize(
    ("left", "faults", "asked"),
    [
        (0, [], [0]),
        (1000, [], [1000]),  # of a call that was stopped
        (0, ["cut", "cut"], [0, 1_500_000, 2_250_000]),
        (0, ["cut", "no ranges"], [0, 1_500_000]),
        (0, ["silent", "503"], [0, 0, 0]),
    ],
)
def test_a_download_goes_on_where_it_broke_off(mirror, monkeypatch, tmp_path, left, faults, asked):
    mirror.files[NAME] = release(monkeypatch, CONTENT)
    mirror.faults, seen = list(faults), []
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:left])
    (path,) = fetch_weights(tmp_path, [NAME], mirror.address, lambda *done: seen.append(done))
    assert path.read_bytes() == CONTENT
    assert mirror.asked == asked
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [file.name for file in tmp_path.iterdir()] == [NAME]
    fetch_weights(tmp_path, [NAME], mirror.address)  # it is there
    assert mirror.asked == asked


def test_another_file_is_refused_and_kept_aside(mirror, monkeypatch, tmp_path):
    mirror.files[NAME] = release(monkeypatch, CONTENT)
    mirror.faults = ["wrong"]
    with pytest.raises(ValueError, match="not what upstream released"):
        fetch_weights(tmp_path, [NAME], mirror.address)
    assert [file.name for file in tmp_path.iterdir()] == [f"{NAME}.wrong"]
    fetch_weights(tmp_path, [NAME], mirror.address)
    assert weights.find_weights(tmp_path) == [tmp_path / NAME]


@pytest.mark.parametrize(
    ("faults", "told"), [(["404"], "404"), (["cut"] * 5, "it ended after"), (["503"] * 5, "503")]
)
def test_what_can_not_be_had_is_one_line(mirror, monkeypatch, tmp_path, capsys, faults, told):
    mirror.files[NAME] = release(monkeypatch, CONTENT)
    mirror.faults = list(faults)
    assert main(["weights", str(tmp_path), "--only", "111", "--mirror", mirror.address]) == 2
    (line,) = re.findall(rf"dfdc: can't download .*{NAME} .*", capsys.readouterr().err)
    assert told in line
    assert "--mirror" in line
    assert not mirror.faults


def test_a_folder_may_stand_for_the_server(monkeypatch, tmp_path):
    (tmp_path / "usb").mkdir()
    (tmp_path / "usb" / NAME).write_bytes(release(monkeypatch, CONTENT))
    fetch_weights(tmp_path / "here", [NAME], str(tmp_path / "usb"))
    assert (tmp_path / "here" / NAME).read_bytes() == CONTENT
    (tmp_path / "usb" / NAME).unlink()
    with pytest.raises(FileNotFoundError, match=NAME):
        fetch_weights(tmp_path / "elsewhere", [NAME], str(tmp_path / "usb"))


def test_seeds_choose_the_files():
    assert len(weights.choose_names("")) == 7
    assert len(weights.choose_names("777, 999")) == 3
    told = "no network of seed 77: choose from 111, 555, 777, 888, 999"
    with pytest.raises(ValueError, match=told):
        weights.choose_names("77")


def test_from_nothing_to_a_page_in_two_steps(mirror, monkeypatch, tmp_path, small_sample, capsys):
    """Upstream's keys, a small encoder; a verdict averages them, faces cut as upstream does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in list(RELEASED)[2:]:  # two tell what seven would
        monkeypatch.delitem(RELEASED, name)
    for seed, name in enumerate(RELEASED):
        torch.manual_seed(seed)
        network = DeepfakeClassifier("b3").half().state_dict()
        path = tmp_path / "made"
        torch.save({"state_dict": {f"module.{k}": v for k, v in network.items()}}, path)
        mirror.files[name] = release(monkeypatch, path.read_bytes(), name)
    video = next(small_sample.rglob("*.mp4"))
    assert main(["predict", str(video)]) == 2
    assert "`dfdc weights` fetches the winner's" in capsys.readouterr().err
    assert main(["weights", "--mirror", mirror.address]) in (0, 1)  # 1: they know nothing
    assert main(["predict", str(video), "--frames", "1", "--report", str(tmp_path / "pages")]) == 0
    told = capsys.readouterr()
    assert "using 2 of the winner's 2 networks" in told.err
    page = (tmp_path / "pages" / f"{video.name}.html").read_text()
    assert page.count("margin upstream, trained on dfdc") == 2
