"""Broken and hostile input: each kind ends in a named status or one clear error, and harms nothing beside itself."""

import io
import json
import os
import pickle
import shutil
import signal
import socket
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import cache
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from av.stream import Disposition
from conftest import write_intra_video
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dfdc_lib import predict as p
from dfdc_lib.augment import train_transforms, valid_transforms
from dfdc_lib.config import PreprocessConfig
from dfdc_lib.dataset import CropDataset, CropReader, PairDataset, pair, read_folds, read_places
from dfdc_lib.metadata import MetadataError, read_labels, read_metadata
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint, save_checkpoint
from dfdc_lib.paths import DamagedFile, WorkFolder, read_mask, read_png, write_png
from dfdc_lib.preprocess import preprocess
from dfdc_lib.sample import portrait
from dfdc_lib.video import iterate_frames, open_container, probe

EVERY_2 = PreprocessConfig(every=2)
N_FRAMES = 4


@pytest.fixture(autouse=True)
def _no_test_blocks():
    """What waits for a pipe's other end, or reads a device without end, is stopped at last."""

    def stop(*_):
        raise TimeoutError("this test reads something that never ends")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------------------------------------------- videos: makers


@cache
def face(width: int = 128, height: int = 128) -> np.ndarray:
    return cv2.resize(portrait("collins")[:320, 100:420], (width, height))


def write(path, frames=None, codec="libx264", pixels="yuv420p", form="mp4", turn=0, size=(128, 128)):
    """Encode frames, or the face at a size, by any codec, in any container, whatever the file is called."""
    frames = [face(*size)] * N_FRAMES if frames is None else frames
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = pixels, {"preset": "ultrafast"} if codec == "libx264" else {}
        if turn:
            stream.set_display_rotation(turn)
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=pixels)))
        container.mux(stream.encode())


@cache
def encoded(**settings) -> bytes:
    """The bytes of a video that `write` makes."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "v", **settings)
        return (Path(folder) / "v").read_bytes()


@cache
def intra(noisy: bool = False) -> bytes:
    """A video of 12 frames, each by itself, its header first. noisy: some ten times as large, and no face in it."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) if noisy else face() for _ in range(12)]
    with tempfile.TemporaryDirectory() as folder:
        write_intra_video(Path(folder) / "v", frames, options={"movflags": "faststart"})
        return (Path(folder) / "v").read_bytes()


def end_of_packet(data: bytes, number: int) -> int:
    """Where a frame's piece of the file ends."""
    with av.open(io.BytesIO(data)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
    return packet.pos + packet.size


def media(data: bytes) -> slice:
    """Where an mp4 keeps its pictures."""
    begin = data.index(b"mdat") - 4
    return slice(begin + 8, begin + struct.unpack(">I", data[begin : begin + 4])[0])


def overwrite(data: bytes, place: slice, change) -> bytes:
    return data[: place.start] + bytes(change(byte) for byte in data[place]) + data[place.stop :]


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inside.mp4", encoded())


def write_audio(path, cover: bool = False):
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 128, 128, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            container.mux(
                picture.encode(av.VideoFrame.from_ndarray(face(), format="rgb24").reformat(format="yuvj420p"))
            )
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_no_frames(path):
    """The header of a video that is recorded in pieces, and no piece."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(face(), format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moof") - 4])


def promise_frames(count: int) -> bytes:
    """An AVI whose header says that it has `count` frames."""
    data = encoded(form="avi")
    place = data.index(b"strh") + 8 + 32  # dwLength: after type, handler, flags, priority, initial, scale, rate, start
    return data[:place] + struct.pack("<I", count) + data[place + 4 :]


def write_two_sizes(path):
    """Two frames of the size that the header says, and two that are smaller."""
    with av.open(str(path), "w", format="mp4") as container:
        stream, other = container.add_stream("mjpeg", rate=30), av.CodecContext.create("mjpeg", "w")
        for coder, side in ((stream, 128), (other, 64)):
            coder.width, coder.height, coder.pix_fmt, coder.time_base = side, side, "yuvj420p", Fraction(1, 30)
        for number, (coder, side) in enumerate([(stream, 128)] * 2 + [(other, 64)] * 2):
            frame = av.VideoFrame.from_ndarray(face(side, side), format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            for packet in coder.encode(frame):
                packet.stream = stream
                container.mux(packet)


@cache
def black(width: int, height: int) -> bytes:
    """One frame, of some kilobytes however large it is."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "v", [np.zeros((height, width, 3), np.uint8)])
        return (Path(folder) / "v").read_bytes()


def link_elsewhere(path):
    elsewhere = path.parents[2] / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    write(elsewhere / path.name)
    path.symlink_to(elsewhere / path.name)


def listen(path):
    """A socket, as a program that waits for others leaves it in a folder."""
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{short}/s")
        os.rename(f"{short}/s", path)


def put(data) -> Callable[[Path], object]:
    """A maker: write bytes, or what a function gives."""
    return lambda path: path.write_bytes(data() if callable(data) else data)


def coded(**settings) -> Callable[[Path], object]:
    return put(lambda: encoded(**settings))


HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n"

# name: (maker, status of detection, of the crops of a fake like it, of prediction)
VIDEOS = {
    # damaged
    "empty": (put(b""), "unreadable", "unreadable", "unreadable"),
    "truncated": (put(lambda: encoded()[: len(encoded()) // 2]), "unreadable", "unreadable", "unreadable"),
    "ends_between_frames": (put(lambda: intra()[: end_of_packet(intra(), 7)]), "short", "ok", "short"),
    "ends_within_a_frame": (
        put(lambda: intra()[: end_of_packet(intra(), 6) - 99]), "decode_error", "ok", "decode_error",
    ),
    "zero_filled": (put(lambda: bytes(len(encoded()))), "unreadable", "unreadable", "unreadable"),
    "pictures_zero_filled": (
        put(lambda: overwrite(encoded(), media(encoded()), lambda byte: 0)),
        "decode_error", "decode_error", "decode_error",
    ),
    "header_flipped": (
        put(lambda: overwrite(encoded(), slice(media(encoded()).stop, len(encoded())), lambda byte: byte ^ 1)),
        "unreadable", "unreadable", "unreadable",
    ),
    "pictures_flipped": (
        put(lambda: overwrite(encoded(), media(encoded()), lambda byte: byte ^ 1)),
        "decode_error", "decode_error", "decode_error",
    ),
    "one_frame_flipped": (
        lambda path: write_intra_video(path, [face()] * N_FRAMES, drop=[2]),
        "decode_error", "decode_error", "decode_error",
    ),
    "unknown_codec": (put(lambda: encoded().replace(b"avc1", b"zzzz")), "unreadable", "unreadable", "unreadable"),
    "no_frames": (write_no_frames, "decode_error", "short", "decode_error"),
    "promises_more": (put(lambda: promise_frames(1_000_000)), "short", "ok", "short"),
    "promises_less": (put(lambda: promise_frames(1)), "ok", "ok", "ok"),
    # something else under a video's name
    "text": (put(b"not a video\n" * 99), "unreadable", "unreadable", "unreadable"),
    "png": (put(lambda: cv2.imencode(".png", face())[1].tobytes()), "unreadable", "unreadable", "unreadable"),
    "gif": (coded(codec="gif", pixels="rgb8", form="gif"), "unreadable", "unreadable", "unreadable"),
    "zip": (write_zip, "unreadable", "unreadable", "unreadable"),
    "playlist": (put(HLS), "unreadable", "unreadable", "unreadable"),
    "list_of_files": (put(b"ffconcat version 1.0\nfile good.mp4\n"), "unreadable", "unreadable", "unreadable"),
    "audio_only": (write_audio, "no_video_stream", "no_video_stream", "no_video_stream"),
    "song_with_cover": (lambda path: write_audio(path, cover=True), *["no_video_stream"] * 3),
    "folder": (lambda path: path.mkdir(), "unreadable", "unreadable", "unreadable"),
    "pipe": (os.mkfifo, "unreadable", "unreadable", "unreadable"),
    "socket": (listen, "unreadable", "unreadable", "unreadable"),
    "link_to_device": (lambda path: path.symlink_to("/dev/zero"), "unreadable", "unreadable", "unreadable"),
    "link_to_nowhere": (lambda path: path.symlink_to("/nowhere/x.mp4"), "missing_file", "missing_file", "missing_file"),
    "link_to_itself": (lambda path: path.symlink_to(path), "missing_file", "missing_file", "missing_file"),
    "link_elsewhere": (link_elsewhere, "ok", "ok", "ok"),
    # unusual, and a video
    "avi": (coded(form="avi"), "ok", "ok", "ok"),
    "mpegts": (coded(form="mpegts"), "ok", "ok", "ok"),
    "variable_rate": (
        lambda path: write_intra_video(path, [face()] * N_FRAMES, times=[0, 7, 300, 301]), "ok", "ok", "ok",
    ),
    "turned_a_quarter": (coded(turn=90), "no_face", "ok", "no_face"),
    "turned_a_little": (coded(turn=45, size=(160, 128)), "ok", "shape_mismatch", "ok"),
    "turned_a_little_back": (coded(turn=-45, size=(160, 128)), "ok", "shape_mismatch", "ok"),
    "size_changes": (write_two_sizes, "ok", "shape_mismatch", "ok"),
    "odd_size": (coded(pixels="yuv444p", size=(321, 239)), "ok", "shape_mismatch", "ok"),
    "one_pixel": (coded(pixels="yuv444p", size=(1, 1)), "no_face", "shape_mismatch", "no_face"),
    "one_row": (coded(pixels="yuv444p", size=(640, 1)), "no_face", "shape_mismatch", "no_face"),
    "eight_k": (put(lambda: black(7680, 4320)), "no_face", "shape_mismatch", "no_face"),
    "too_large": (put(lambda: black(8192, 8192)), "too_large", "too_large", "too_large"),
    "ten_bit": (coded(pixels="yuv420p10le"), "ok", "ok", "ok"),
    "grey": (coded(pixels="gray"), "ok", "ok", "ok"),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- videos: one run


def snapshot(folder: Path, besides: Path) -> dict[str, tuple]:
    """All that lies in a folder, but for one of its own: kind, and the bytes of a file or the target of a link."""
    seen = {}
    for path in sorted(folder.rglob("*")):
        if path != besides and besides not in path.parents:
            state = path.lstat()
            link = os.readlink(path) if path.is_symlink() else ""
            data = path.read_bytes() if path.is_file() and not link else b""
            seen[str(path)] = (state.st_mode, state.st_mtime_ns if not path.is_dir() else 0, link, data)
    return seen


def artifacts(work: WorkFolder, *video_ids: str) -> dict[str, bytes]:
    """The boxes, crops and masks of some videos."""
    places = [place(v) for v in video_ids for place in (work.boxes, work.crops, work.masks)]
    files = [path for place in places for path in [place, *place.glob("*")] if path.is_file()]
    return {str(path.relative_to(work.root)): path.read_bytes() for path in files}


def make_part(data: Path) -> tuple[Path, dict]:
    """A part with one good family, and its metadata."""
    part = data / "dfdc_train_part_0"
    part.mkdir(parents=True)
    write(part / "good.mp4")
    write(part / "good_fake.mp4", [cv2.blur(face(), (5, 5))] * N_FRAMES)
    return part, {"good.mp4": {"label": "REAL"}, "good_fake.mp4": {"label": "FAKE", "original": "good.mp4"}}


def make_good(data: Path) -> Path:
    part, entries = make_part(data)
    (part / "metadata.json").write_text(json.dumps(entries))
    return data


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DeepfakeClassifier("tiny").eval()


@pytest.fixture(scope="module")
def good_work(tmp_path_factory) -> WorkFolder:
    """The good family by itself, preprocessed; its data lie beside it."""
    root = tmp_path_factory.mktemp("good")
    work = WorkFolder(root / "work")
    preprocess(make_good(root / "data"), work, EVERY_2)
    return work


@pytest.fixture(scope="module")
def run(tmp_path_factory, model):
    """One data set of all kinds, each as an original and as a fake of the good one; preprocessed, and predicted."""
    root = tmp_path_factory.mktemp("hostile")
    part, entries = make_part(root / "data")
    for name, (make, *_) in VIDEOS.items():
        make(part / f"{name}.mp4")
        make(part / f"{name}_fake.mp4")
        entries |= {f"{name}.mp4": {"label": "REAL"}, f"{name}_fake.mp4": {"label": "FAKE", "original": "good.mp4"}}
    (part / "metadata.json").write_text(json.dumps(entries))
    before, work = snapshot(root, root / "work"), WorkFolder(root / "work")
    done = preprocess(root / "data", work, EVERY_2).status.set_index(["video_id", "stage"])
    paths = [part / f"{name}.mp4" for name in ["good", *VIDEOS]]
    verdicts = {v.video.stem: v for v in p.predict_videos(paths, [model], p.PredictConfig(frames=N_FRAMES))}
    yield work, done, verdicts
    assert snapshot(root, root / "work") == before


@pytest.mark.parametrize("name", VIDEOS)
def test_each_kind_of_video_has_its_status(run, name):
    _, done, verdicts = run
    _, detect, crop, verdict = VIDEOS[name]
    assert done.status[name, "detect"] == detect, done.reason[name, "detect"]
    assert done.status[f"{name}_fake", "crop"] == crop, done.reason[f"{name}_fake", "crop"]
    assert verdicts[name].status == verdict, verdicts[name].reason
    for status, reason in (
        (detect, done.reason[name, "detect"]), (crop, done.reason[f"{name}_fake", "crop"]),
        (verdict, verdicts[name].reason),
    ):  # fmt: skip
        assert bool(reason) == (status != "ok")
    assert (verdicts[name].p_fake is None) == (verdicts[name].n_faces == 0)


def test_the_good_family_is_unharmed(run, good_work):
    work, _, verdicts = run
    assert artifacts(work, "good", "good_fake") == artifacts(good_work, "good", "good_fake") != {}
    assert verdicts["good"].status == "ok"
    folds = read_folds(work)
    assert {"good", "good_fake", "avi", "odd_size"} <= set(folds.video_id)
    assert not {"text", "pipe", "folder", "pictures_flipped"} & set(folds.video_id)


def test_nothing_is_written_outside_the_work_folder(run):
    """The fixture compares all else when it ends; here: what lies inside is of known names only."""
    work, *_ = run
    known = {"manifest", "boxes", "crops", "masks", "folds.csv", "status.csv", "source.json"}
    assert {path.name for path in work.root.iterdir()} == known
    assert not [path for path in work.root.rglob("*") if path.is_symlink() or path.name.endswith(".part")]


STATUSES = {"ok", "short", "decode_error", "unreadable", "no_video_stream", "too_large"}


@pytest.mark.parametrize("form", ["mp4", "avi", "matroska", "mpegts"])
def test_random_damage_ends_in_a_named_status(tmp_path, form):
    """Some bytes changed, a piece cut out or doubled, at ten places each: no exception, and the next video is read."""
    rng, good, paths = np.random.default_rng(1), bytearray(encoded(form=form)), []
    for number in range(10):
        data = good.copy()
        for place in rng.integers(0, len(data), 1 + number * 3):
            data[place] ^= 1 << int(rng.integers(8))
        begin, end = sorted(rng.integers(0, len(data), 2).tolist())
        data = [data, data[:begin] + data[end:], data[:end] + data[begin:]][number % 3]
        paths += [tmp_path / f"{number}.mp4", tmp_path / f"{number}_whole.mp4"]
        paths[-2].write_bytes(data)
        paths[-1].write_bytes(good)
    ends = {item.video.stem: item.status for item in p.decode_videos(paths, N_FRAMES) if isinstance(item, p.End)}
    assert {ends[f"{number}_whole"] for number in range(10)} == {"ok"}
    assert {ends[str(number)] for number in range(10)} <= STATUSES


@pytest.mark.parametrize("name", ["http:x.mp4", "concat:x.mp4|y.mp4", "-i.mp4", "%03d.mp4", "a?b=c.mp4", "file:x.mp4"])
def test_a_name_is_never_taken_for_an_address(tmp_path, monkeypatch, name):
    write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (end,) = (item for item in p.decode_videos([Path(name)], 1) if isinstance(item, p.End))
    assert (end.status, end.reason) == ("ok", "")


# -------------------------------------------------------------------------- videos: what changes, and what is locked


def decode(path, n_frames: int, after_first=lambda: None):
    """Decode; after the first frame something happens. Returns frame numbers, status."""
    numbers = []
    for item in p.decode_videos([path], n_frames):
        if isinstance(item, p.End):
            return numbers, item.status
        numbers.append(item.frame_idx)
        if len(numbers) == 1:
            after_first()
    raise AssertionError("no End")


def test_a_file_that_vanishes_between_two_looks_is_missing(tmp_path, monkeypatch):
    def look_and_lose(path):
        info = probe(path)
        path.unlink()
        return info

    monkeypatch.setattr("dfdc_lib.predict.probe", look_and_lose)
    monkeypatch.setattr("dfdc_lib.preprocess.probe", look_and_lose)
    write(tmp_path / "x.mp4")
    assert decode(tmp_path / "x.mp4", 4) == ([], "missing_file")
    status = preprocess(make_good(tmp_path / "data"), WorkFolder(tmp_path / "work"), EVERY_2).status
    assert status.set_index(["video_id", "stage"]).status.to_dict() == {
        ("good", "detect"): "missing_file", ("good_fake", "crop"): "missing_original",
    }  # fmt: skip


def test_a_file_that_vanishes_while_it_is_read_is_read_to_its_end(tmp_path):
    write(tmp_path / "x.mp4")
    assert decode(tmp_path / "x.mp4", 4, (tmp_path / "x.mp4").unlink) == ([0, 1, 2, 3], "ok")


def test_a_file_that_is_cut_while_it_is_read_is_a_status(tmp_path):
    (tmp_path / "x.mp4").write_bytes(intra(noisy=True))
    numbers, status = decode(
        tmp_path / "x.mp4", 12, lambda: os.truncate(tmp_path / "x.mp4", len(intra(noisy=True)) // 2)
    )
    assert status == "decode_error"
    assert 1 <= len(numbers) < 12
    assert numbers == sorted(set(numbers))


def test_a_file_that_can_not_be_read_on_ends_there(tmp_path, monkeypatch):
    """A network drive that goes away: FFmpeg has errors that are neither ValueError nor OSError."""

    class Failing:
        def __init__(self, container):
            self.container = container

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.container.close()

        def demux(self, stream):
            yield from islice(self.container.demux(stream), 2)
            raise av.error.ExternalError(-1, "gone")

    def open_failing(path):
        container, stream = open_container(path)
        return Failing(container), stream

    path = tmp_path / "x.mp4"
    path.write_bytes(encoded())
    info = probe(path)
    monkeypatch.setattr("dfdc_lib.video.open_container", open_failing)
    assert len(list(iterate_frames(path, range(N_FRAMES), info))) <= 2


def test_a_file_that_grows_while_it_is_read_is_judged_by_what_was_there(tmp_path):
    path, data = tmp_path / "x.mp4", intra(noisy=True)
    path.write_bytes(data[: len(data) // 2])
    n_frames = probe(path).n_frames
    numbers, status = decode(path, 99, lambda: path.write_bytes(data))
    assert 2 < n_frames < 12
    assert (numbers[-1] < n_frames, status) == (True, "short")
    assert decode(path, 99) == (list(range(12)), "short")


@contextmanager
def without_rights():
    """As somebody who may not read everything. Root can become nobody, and root again."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that everybody may enter and write to, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


def test_what_may_not_be_read_is_a_status_and_the_others_are_read(open_folder):
    data = make_good(open_folder / "data")
    part = data / "dfdc_train_part_0"
    (part / "good.mp4").chmod(0)
    with without_rights():
        locked, other = (i for i in p.decode_videos(sorted(part.glob("*.mp4")), 1) if isinstance(i, p.End))
        status = preprocess(data, WorkFolder(open_folder / "work"), EVERY_2).status
    assert (locked.status, other.status) == ("unreadable", "ok")
    assert "Permission denied" in locked.reason
    assert status.status.tolist() == ["unreadable", "broken_original"]


def test_a_folder_that_may_not_be_entered_is_a_status(open_folder):
    (open_folder / "locked").mkdir(mode=0)
    with without_rights():
        (end,) = p.decode_videos([open_folder / "locked" / "x.mp4"], 1)
    assert end.status == "unreadable"
    assert end.reason == "it can't be looked at (Permission denied)"


def test_a_link_into_a_locked_folder_costs_its_own_video_a_status(open_folder):
    data, locked = make_good(open_folder / "data"), open_folder / "locked"
    preprocess(data, WorkFolder(open_folder / "first"), EVERY_2)  # nobody may import what this imports
    locked.mkdir()
    fake = data / read_metadata(data).query("label == 1").file.iloc[0]
    fake.rename(locked / "fake.mp4")
    fake.symlink_to(locked / "fake.mp4")
    locked.chmod(0)
    with without_rights():
        status = preprocess(data, WorkFolder(open_folder / "work"), EVERY_2).status
    status = status.set_index(["video_id", "stage"]).status
    assert status.pop((fake.stem, "crop")) == "unreadable"
    assert set(status) == {"ok"}


def test_metadata_that_may_not_be_read_is_named(open_folder):
    data = make_good(open_folder / "data")
    (data / "dfdc_train_part_0" / "metadata.json").chmod(0)
    with without_rights(), pytest.raises(MetadataError, match=r"metadata.json can't be read \(Permission denied\)"):
        read_metadata(data)


# ------------------------------------------------------------------------------------------------------- metadata


def put_entries(entries) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(entries))


def put_sparse(path):
    with open(path, "wb") as file:
        file.truncate(2**30)


REAL = {"label": "REAL"}
MANY = json.dumps({f"{i}.mp4": REAL for i in range(50_000)})
DEEP = "[" * 900 + "]" * 900

# name: (maker of the metadata.json, what the error says)
METADATA = {
    "empty": (put(b""), "is not JSON"),
    "a byte order mark": (put(b"\xef\xbb\xbf{}"), "is not JSON"),
    "not UTF-8": (put(b'{"caf\xe9.mp4": {"label": "REAL"}}'), "is not JSON.*utf-8"),
    "UTF-16": (put(json.dumps({"a.mp4": REAL}).encode("utf-16")), "is not JSON"),
    "binary": (put(bytes(range(256))), "is not JSON"),
    "broken off": (put(MANY[:-9].encode()), "is not JSON"),
    "as large as a disk": (put_sparse, "1,073,741,824 bytes"),
    "deep": (put(b"[" * 200_000), "is not JSON"),
    "a deep label": (put(f'{{"a.mp4": {{"label": {DEEP}}}}}'.encode()), "REAL or FAKE"),
    "a number that fills the page": (put(b"9" * 100_000), "is not JSON"),
    "a list": (put_entries(["a.mp4"]), "one object"),
    "NaN": (put(b"NaN"), "one object"),
    "a label of NaN": (put(b'{"a.mp4": {"label": NaN}}'), "REAL or FAKE, or .* got nan"),
    "a label of another type": (put_entries({"a.mp4": {"label": ["REAL"]}}), "REAL or FAKE"),
    "a label in small letters": (put_entries({"a.mp4": {"label": "real"}}), "REAL or FAKE, or .* got 'real'"),
    "an entry of another type": (put_entries({"a.mp4": None}), "REAL or FAKE, or .* got None"),
    "an original of another type": (put_entries({"a.mp4": {"label": "FAKE", "original": 7}}), "original of a.mp4 7"),
    "the same name twice": (put(b'{"a.mp4": {"label": "REAL"}, "a.mp4": {"label": "FAKE"}}'), "'a.mp4' is listed"),
    "the same name twice, and many": (put((MANY[:-1] + ', "7.mp4": 1}').encode()), "'7.mp4' is listed twice"),
    "the same name with two endings": (put_entries({"a.mp4": REAL, "a.mov": REAL}), "'a' is listed twice"),
    "a name that climbs": (put_entries({"../a.mp4": REAL}), "plain file name"),
    "a name from the root": (put_entries({"/etc/passwd": REAL}), "plain file name"),
    "a name of dots": (put_entries({"..": REAL}), "plain file name"),
    "a hidden name": (put_entries({".a.mp4": REAL}), "plain file name"),
    "an empty name": (put_entries({"": REAL}), "plain file name"),
    "a name with NUL": (put_entries({"a\0.mp4": REAL}), "plain file name"),
    "a name with a new line": (put_entries({"a\n.mp4": REAL}), "plain file name"),
    "a name that clears the screen": (put_entries({"\x1b[2J.mp4": REAL}), "plain file name"),
    "a name that turns the text round": (put_entries({"\u202e4pm.mp4": REAL}), "plain file name"),
    "a long name": (put_entries({"a" * 151 + ".mp4": REAL}), "plain file name"),
    "a name of a megabyte": (put_entries({"a" * 2**20: REAL}), "plain file name"),
    "an original that climbs": (put_entries({"a.mp4": {"label": "FAKE", "original": "../b.mp4"}}), "plain file name"),
    "a fake of itself": (put_entries({"a.mp4": {"label": "FAKE", "original": "a.mp4"}}), "'a', is listed as a fake"),
    "two that are each other's original": (
        put_entries({a: {"label": "FAKE", "original": b} for a, b in (("a.mp4", "b.mp4"), ("b.mp4", "a.mp4"))}),
        "'b', is listed as a fake",
    ),
    "a pipe": (os.mkfifo, "a pipe or a device"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "a pipe or a device"),
    "a folder": (lambda path: path.mkdir(), "a folder, a pipe"),
}  # fmt: skip


@pytest.mark.parametrize("name", METADATA)
def test_each_kind_of_metadata_is_one_clear_error(tmp_path, name):
    make, message = METADATA[name]
    part = tmp_path / "data" / "dfdc_train_part_0"
    part.mkdir(parents=True)
    make(part / "metadata.json")
    before = snapshot(tmp_path, tmp_path / "none") if name != "as large as a disk" else None
    with pytest.raises(MetadataError, match=message) as error:
        preprocess(tmp_path / "data", WorkFolder(tmp_path / "work"))
    assert str(tmp_path / "data") in str(error.value)
    assert len(str(error.value)) < 600
    assert str(error.value).isprintable()
    assert before is None or snapshot(tmp_path, tmp_path / "none") == before


LABELS = {
    "empty": (b"", "is not a CSV file"),
    "not UTF-8": (b"filename,label\ncaf\xe9.mp4,1\n", "is not a CSV file"),
    "ragged": (b"filename,label\na.mp4,1\nb.mp4,1,2,3\n", "is not a CSV file"),
    "another table": (b"video,fake\na.mp4,1\n", "must have the columns"),
    "a third label": (b"filename,label\na.mp4,2\n", "has the label 2.*must be 1"),
    "no label": (b"filename,label\na.mp4,\n", "must be 1 for a fake"),
    "a name twice": (b"filename,label\na.mp4,1\na.mp4,0\n", "'a.mp4' is listed twice"),
}


@pytest.mark.parametrize("name", LABELS)
def test_each_kind_of_labels_is_one_clear_error(tmp_path, name):
    data, message = LABELS[name]
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(MetadataError, match=f"labels.csv.*{message}"):
        read_labels(tmp_path / "labels.csv")


# ------------------------------------------------------------------------------- artifacts: boxes, crops, masks, folds


@pytest.fixture
def work(good_work, tmp_path) -> WorkFolder:
    """A copy of the good family's artifacts, to be damaged."""
    shutil.copytree(good_work.root, tmp_path / "work")
    return WorkFolder(tmp_path / "work")


def in_frame(**changes):
    """A change of the first frame of a boxes file."""

    def change(stored):
        stored["frames"][0] |= changes

    return change


def at_top(**changes):
    return lambda stored: stored.update(changes)


def repeat_frame(stored):
    stored["frames"].append(stored["frames"][0])


def lose(name):
    return lambda stored: stored["frames"][0].pop(name)


BOX, POINTS = [10.0, 10.0, 90.0, 90.0], [[30.0, 40.0]] * 5
BOXES = {
    "NaN": in_frame(boxes=[[float("nan")] * 4]),
    "infinity": in_frame(boxes=[[0.0, 0.0, float("inf"), 9.0]]),
    "huge": in_frame(boxes=[[-1e308, 0.0, 1e308, 9.0]]),
    "a number without end": in_frame(boxes=[[10**400, 0, 1, 1]]),
    "three corners": in_frame(boxes=[BOX[:3]]),
    "one box for two": in_frame(face_idx=[0, 1]),
    "two boxes for one": in_frame(boxes=[BOX, BOX]),
    "strings for numbers": in_frame(boxes=[["10", "10", "90", "90"]]),
    "true for a number": in_frame(boxes=[[True, True, 90, 90]]),
    "a box for boxes": in_frame(boxes=BOX),
    "the same person twice": in_frame(face_idx=[0, 0], boxes=[BOX, BOX], landmarks=[POINTS, POINTS]),
    "boxes by name": in_frame(boxes={"0": BOX}),
    "four landmarks": in_frame(landmarks=[POINTS[:4]]),
    "landmarks of NaN": in_frame(landmarks=[[[float("nan"), 1.0]] * 5]),
    "a path for a number": in_frame(face_idx=["../../../../stolen"]),
    "a number of a thousand million": in_frame(face_idx=[10**9]),
    "a person below zero": in_frame(face_idx=[-1]),
    "half a person": in_frame(face_idx=[0.5]),
    "a frame below zero": in_frame(frame_idx=-2),
    "a path for a frame": in_frame(frame_idx="../../0"),
    "a frame of a thousand million": in_frame(frame_idx=10**9),
    "a frame twice": repeat_frame,
    "no boxes": lose("boxes"),
    "no landmarks": lose("landmarks"),
    "no people": lose("face_idx"),
    "no frame": lose("frame_idx"),
    "frames that are none": at_top(frames=[None]),
    "frames of another type": at_top(frames="many"),
    "no frames": lambda stored: stored.pop("frames"),
    "no width": lambda stored: stored.pop("width"),
    "a width of NaN": at_top(width=float("nan")),
    "a height of another type": at_top(height="128"),
}
BOXES_TEXTS = {
    "empty": b"", "not JSON": b"{", "not UTF-8": b'"\xff"', "a list": b"[]", "deep": b"[" * 200_000, "NaN": b"NaN",
    "a key twice": b'{"width": 1, "width": 2, "height": 1, "frames": []}',
}  # fmt: skip


@pytest.mark.parametrize("name", [*BOXES, *BOXES_TEXTS])
def test_damaged_boxes_are_named_and_made_again(good_work, work, tmp_path, name):
    """Every reader says which file; the next run makes it anew, and touches nothing else."""
    path = work.boxes("good")
    if name in BOXES:
        stored = json.loads(path.read_text())
        BOXES[name](stored)
        path.write_text(json.dumps(stored))
    if name in BOXES_TEXTS:
        path.write_bytes(BOXES_TEXTS[name])
    for read in (work.read_boxes, work.read_faces, lambda video_id: read_places(work, video_id)):
        with pytest.raises(DamagedFile, match="boxes/good.json"):
            read("good")
    before = snapshot(tmp_path, work.root)
    preprocess(good_work.root.parent / "data", work, EVERY_2)
    assert artifacts(work, "good", "good_fake") == artifacts(good_work, "good", "good_fake")
    assert snapshot(tmp_path, work.root) == before


@pytest.mark.parametrize(
    "box", [[-50, 5, -10, 40], [500, 5, 600, 40], [90, 90, 10, 10], [64, 64, 64, 64], [-1e7, -1e7, -9e6, -9e6]]
)
def test_a_box_that_leaves_nothing_is_a_status(good_work, work, box):
    """Outside the frame, with corners reversed, without an area: detection may be unsure, so it is no damage."""
    stored = json.loads(work.boxes("good").read_text())
    stored["frames"][0]["boxes"][0] = box
    work.boxes("good").write_text(json.dumps(stored))
    manifest = json.loads(work.manifest("good_fake").read_text())
    del manifest["crop"]
    work.manifest("good_fake").write_text(json.dumps(manifest))
    done = preprocess(good_work.root.parent / "data", work, EVERY_2)
    status = done.status.set_index(["video_id", "stage"])
    assert status.status["good_fake", "crop"] == "empty_crop"
    assert status["count"]["good_fake", "crop"] == 1
    assert len(read_places(work, "good")) == 1


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def claim_size(width, height):
    """A PNG of some bytes that says it is huge."""

    def change(path):
        data = path.read_bytes()
        head = data[12:16] + struct.pack(">II", width, height) + data[24:29]
        path.write_bytes(data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:])

    return change


PICTURES = {
    "empty": put(b""),
    "text": put(b"no picture"),
    "cut": cut,
    "a flipped bit": flip,
    "zero filled": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a JPEG": lambda path: path.write_bytes(cv2.imencode(".jpg", face())[1].tobytes()),
    "a bomb": claim_size(30_000, 30_000),
    "larger than numbers": claim_size(2**31 - 1, 2**31 - 1),
    "no width": claim_size(0, 10),
    "larger than it is": claim_size(60, 5000),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_broken_crop_is_named_counted_and_spoils_no_other(good_work, work, name):
    path = work.crops("good") / work.crop_names("good")[0]
    PICTURES[name](path)
    for read in (read_png, read_mask):
        with pytest.raises(DamagedFile, match=f"good/{path.name}; delete it"):
            read(path)
    rows, reader = read_folds(work), CropReader(work, 64)
    crops = CropDataset(rows, reader, valid_transforms(64), seed=0)
    assert [crops[i] is None for i in range(len(rows))] == [True] + [False] * (len(rows) - 1)
    pairs = PairDataset(pair(rows), reader, valid_transforms(64), seed=0)
    assert [pairs[i] is None for i in range(len(pairs))] == [True] + [False] * (len(pairs) - 1)
    forget_masks(work)
    status = preprocess(good_work.root.parent / "data", work, EVERY_2).status.set_index(["video_id", "stage"])
    assert status.status["good_fake", "masks"] == "broken_crop"
    assert status["count"]["good_fake", "masks"] == len(pairs) - 1
    path.unlink()  # as the reason says
    shutil.rmtree(work.masks("good_fake"))
    preprocess(good_work.root.parent / "data", work, EVERY_2)
    assert artifacts(work, "good", "good_fake") == artifacts(good_work, "good", "good_fake")


def test_a_picture_that_claims_to_be_huge_is_not_even_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("this fills the memory"))
    write_png(tmp_path / "0_0.png", face())
    claim_size(30_000, 30_000)(tmp_path / "0_0.png")
    with pytest.raises(DamagedFile, match="0_0.png"):
        read_png(tmp_path / "0_0.png")


def forget_masks(work):
    manifest = json.loads(work.manifest("good_fake").read_text())
    del manifest["masks"]
    work.manifest("good_fake").write_text(json.dumps(manifest))


def test_a_crop_of_another_size_than_its_partner_is_left_out(good_work, work):
    name = work.crop_names("good")[0]
    write_png(work.crops("good") / name, read_png(work.crops("good") / name)[:-3])
    rows = read_folds(work)
    pairs = PairDataset(pair(rows), CropReader(work, 64), valid_transforms(64), seed=0)
    assert [pairs[i] is None for i in range(len(pairs))] == [True, False]
    forget_masks(work)
    status = preprocess(good_work.root.parent / "data", work, EVERY_2).status.set_index(["video_id", "stage"])
    assert status.status["good_fake", "masks"] == "shape_mismatch"


def hard_crops(work) -> list[bool]:
    """Which of the crops the hard augmentation gets: True for one that is left out."""
    rows = read_folds(work)
    crops = CropDataset(rows, CropReader(work, 64), train_transforms(64, hard=True), seed=0, hard=True)
    return [crops[i] is None for i in range(len(rows))]


def test_a_mask_that_does_not_fit_its_crop_leaves_that_crop_out(work):
    fake = work.masks("good_fake") / work.crop_names("good_fake")[0]
    assert hard_crops(work) == [False] * 4
    whole_mask = read_mask(fake)
    write_png(fake, whole_mask[:-3])
    assert hard_crops(work) == [False, False, True, False]
    with pytest.raises(DamagedFile, match=r"masks/good_fake/0_0.png has \(\d+, \d+\) pixels, its crop"):
        CropReader(work, 64).mask("good_fake", 0, 0, whole_mask.shape)
    fake.write_text("no picture")
    assert hard_crops(work) == [False, False, True, False]


def test_crops_whose_boxes_are_damaged_or_of_another_run_are_left_out(work):
    stored = json.loads(work.boxes("good").read_text())
    stored["frames"][0]["face_idx"] = [7]
    work.boxes("good").write_text(json.dumps(stored))
    assert hard_crops(work) == [True, False, True, False]
    work.boxes("good").write_text("{")
    assert hard_crops(work) == [True] * 4
    with pytest.raises(DamagedFile, match="boxes/good.json"):
        CropReader(work, 64).landmarks("good", 0, 0)


def test_a_stray_picture_among_the_crops_is_named(work):
    (work.crops("good") / "thumb.png").write_bytes(b"")
    with pytest.raises(DamagedFile, match="good/thumb.png is no crop"):
        work.crop_names("good")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "video_id\na\n",
        "\xff\xfe",
        "video_id,file,label,original_id,frame_idx,face_idx,part,fold\na,a,1,a,../0,0,0,0\n",
    ],
)
def test_damaged_folds_are_named(work, text):
    work.folds.write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedFile, match="folds.csv .*run"):
        read_folds(work)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"margin": 0.2}', '{"trained_on": "x", "margin": NaN}', '{"trained_on": "x", "margin": -1}'],
)
def test_a_damaged_source_is_named(work, text):
    work.source.write_text(text)
    with pytest.raises(DamagedFile, match="source.json"):
        read_places(work, "good")


# ---------------------------------------------------------------------------------------------------- checkpoints


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def pickled(place) -> bytes:
    return pickle.dumps({"card": Evil(place), "state_dict": {}}, protocol=2)


def saved(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def saved_old(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def in_tar(place) -> bytes:
    """The oldest form of a checkpoint: a tar with pickles inside."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(pickled(place))
            archive.addfile(member, io.BytesIO(pickled(place)))
    return buffer.getvalue()


def with_card(**changes):
    return lambda stored, place: saved(stored | {"card": stored["card"] | changes})


def with_weights(change):
    """All weights changed, alike."""
    return lambda stored, place: saved(stored | {"state_dict": {k: change(v) for k, v in stored["state_dict"].items()}})


# name: (bytes from a good checkpoint's content and a place that must stay empty, what the error says)
CHECKPOINTS = {
    "a pickle that runs code": (lambda stored, place: pickled(place), "can be read safely"),
    "code in the card": (lambda stored, place: saved(stored | {"card": Evil(place)}), "can be read safely"),
    "code among the weights": (lambda stored, place: saved({"state_dict": {"w": Evil(place)}}), "can be read safely"),
    "code in the old form": (lambda stored, place: saved_old(stored | {"x": Evil(place)}), "can be read safely"),
    "code in the oldest form": (lambda stored, place: in_tar(place), "can be read safely"),
    "empty": (lambda stored, place: b"", "can be read safely"),
    "text": (lambda stored, place: b"no checkpoint", "can be read safely"),
    "cut in half": (lambda stored, place: saved(stored)[: len(saved(stored)) // 2], "can be read safely"),
    "cut near its end": (lambda stored, place: saved(stored)[:-100], "can be read safely"),
    "the old form, cut": (lambda stored, place: saved_old(stored)[:9999], "can be read safely"),
    "a tensor": (lambda stored, place: saved(torch.zeros(3)), "it holds a Tensor"),
    "no weights": (lambda stored, place: saved({"card": {}}), "lacks 'state_dict'"),
    "a list of weights": (lambda stored, place: saved(stored | {"state_dict": [1]}), "no tensors in its 'state_dict'"),
    "strings for weights": (with_weights(str), "no tensors in its 'state_dict'"),
    "weights of another shape": (with_weights(lambda v: v[None]), "does not fit its model"),
    "weights of NaN": (with_weights(lambda v: v * float("nan") if v.is_floating_point() else v), "are no numbers"),
    "weights of another kind": (with_weights(lambda v: v.to_sparse()), "does not fit its model"),
    "of another encoder": (with_card(encoder="resnet18"), "does not fit its model"),
    "of an encoder that nobody knows": (with_card(encoder="b99"), "a card that can't be used: encoder must be"),
    "of an encoder from a hub": (with_card(encoder="hf-hub:evil/model"), "a card that can't be used: encoder must be"),
    "of an encoder from a folder": (with_card(encoder="local-dir:/tmp"), "a card that can't be used: encoder must be"),
    "of an encoder with a wrong tag": (with_card(encoder="resnet18.evil"), "a card that can't be used"),
    "an encoder of another type": (with_card(encoder=["tiny"]), "a card that can't be used: encoder and"),
    "a size without end": (with_card(size=10**9), "a card that can't be used: size"),
    "a size of another type": (with_card(size="112"), "a card that can't be used: size"),
    "a margin of NaN": (with_card(margin=float("nan")), "a card that can't be used: margin"),
    "a margin without end": (with_card(margin=1e300), "a card that can't be used: margin"),
    "a card with more in it": (with_card(more=1), "a card that can't be used"),
    "a card of another type": (lambda stored, place: saved(stored | {"card": [1]}), "a card that can't be used"),
}  # fmt: skip


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory) -> dict:
    """What a good checkpoint holds."""
    path = tmp_path_factory.mktemp("models") / "m.pt"
    save_checkpoint(path, model)
    return torch.load(path, weights_only=True)


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_each_kind_of_checkpoint_is_one_clear_error_and_nothing_is_executed(stored, tmp_path, name):
    make, message = CHECKPOINTS[name]
    path, place = tmp_path / "bad.pt", tmp_path / "executed"
    path.write_bytes(make(stored, place))
    with pytest.raises(ValueError, match=f"bad.pt .*{message}"):
        load_checkpoint(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_a_checkpoint_that_is_no_file_is_an_error_that_does_not_block(tmp_path, make):
    make(tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="bad.pt is a folder, a pipe or a device"):
        load_checkpoint(tmp_path / "bad.pt")


# --------------------------------------------------------------------------------------------- readers, fuzzed

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10**400, "../x", "REAL"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
GOOD_METADATA = {
    "a.mp4": {"label": "REAL", "split": "train", "original": None},
    "b.mp4": {"label": "FAKE", "split": "train", "original": "a.mp4"},
}
GOOD_BOXES = {
    "video_id": "a", "width": 128, "height": 96, "scale": 2.0, "thresholds": [0.8, 0.9, 0.9], "every": 2,
    "frames": [
        {"frame_idx": 0, "face_idx": [0, 1], "boxes": [BOX, BOX], "scores": [0.9, 0.9], "landmarks": [POINTS, POINTS]},
        {"frame_idx": 2, "face_idx": [], "boxes": [], "scores": [], "landmarks": []},
    ],
}  # fmt: skip


@st.composite
def mutated(draw, good) -> bytes:
    """A good document with a value, or some of its bytes, replaced."""
    document = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, 2))):
        place, key = document, draw(st.sampled_from(list(document)))
        while isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
            place = place[key]
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        place[key] = draw(ANY_JSON)
    data = bytearray(json.dumps(document).encode())
    for at in draw(st.lists(st.integers(0, len(data) - 1), max_size=2)):
        data[at] = draw(st.integers(0, 255))
    return bytes(data)


def documents(good):
    return mutated(good) | ANY_JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40)


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> WorkFolder:
    """A folder to write one document after the other to."""
    work = WorkFolder(tmp_path_factory.mktemp("desk"))
    (work.root / "boxes").mkdir()
    work.source.write_text('{"trained_on": "sample", "margin": 0.2}')
    return work


@settings(max_examples=200)
@given(data=documents(GOOD_METADATA))
def test_the_reader_of_metadata_raises_its_own_error_and_no_other(desk, data):
    (desk.root / "metadata.json").write_bytes(data)
    with suppress(MetadataError):
        table = read_metadata(desk.root)
        assert all(Path(file).name == file for file in table.file)
        assert set(table.label) <= {0, 1}


@settings(max_examples=200)
@given(data=documents(GOOD_BOXES), margin=st.sampled_from([0.2, 0, 100, "upstream"]))
def test_the_reader_of_boxes_raises_its_own_error_and_no_other(desk, data, margin):
    desk.boxes("a").write_bytes(data)
    desk.source.write_text(json.dumps({"trained_on": "sample", "margin": margin}))
    with suppress(DamagedFile):
        faces = desk.read_faces("a")
        places = read_places(desk, "a")
        assert set(places) <= set(faces)
        assert all(np.isfinite(value).all() for place in places.values() for value in place)
        assert all(Path(name).name == name for name in faces)


@pytest.fixture(scope="module")
def small_checkpoint(stored) -> bytes:
    """A card with too few weights. (As a test's argument it is short enough to be printed.)"""
    return saved({"card": stored["card"], "state_dict": {"fc.weight": torch.zeros(1, 4)}})


@settings(max_examples=60)
@given(changes=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 255)), min_size=1, max_size=4))
@example(changes=[(0, 128)])  # looks like a pickle of a protocol that torch warns of
def test_the_reader_of_checkpoints_raises_its_own_error_and_no_other(small_checkpoint, desk, changes):
    data = bytearray(small_checkpoint)
    for at, value in changes:
        data[at % len(data)] = value
    (desk.root / "m.pt").write_bytes(data)
    with pytest.raises(ValueError, match="m.pt"):
        load_checkpoint(desk.root / "m.pt")
