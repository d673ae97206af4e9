"""Broken and hostile input: each kind ends in a status or one clear error, and harms no other."""

import io
import json
import os
import pickle
import re
import shutil
import signal
import struct
import tempfile
import zlib
from contextlib import nullcontext, suppress
from functools import cache, partial
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from conftest import done_with, edit, files_of, write_intra_video
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_faults import without_rights
from test_predict import make_model

from dfdc_lib import predict as p
from dfdc_lib.augment import AUGMENTATIONS, valid_transforms
from dfdc_lib.config import MARGINS, PredictConfig, PreprocessConfig
from dfdc_lib.dataset import Crop, CropDataset, CropReader, PairDataset, pair, read_folds
from dfdc_lib.metadata import MetadataError, read_metadata
from dfdc_lib.model import load_checkpoint, save_checkpoint
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.ops.results import read_truth
from dfdc_lib.rehearsal.people import portrait
from dfdc_lib.store import DamagedFile, WorkFolder, read_mask, read_png, write_png
from dfdc_lib.video import iterate_frames, open_container, probe

N_FRAMES = 4
EVERY_2 = PreprocessConfig(every=2)


@pytest.fixture(autouse=True)
def _no_test_blocks():
    """What waits for a pipe's other end, or reads a device without end, is ended by a signal."""
    signal.alarm(300)
    yield
    signal.alarm(0)


def put(data):
    """A maker of a file: of bytes, of what a function gives, or of JSON."""

    def make(path: Path) -> None:
        content = data() if callable(data) else data
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return make


# ---- videos


@cache
def face(width: int = 128, height: int = 128) -> np.ndarray:
    return cv2.resize(portrait("collins")[:320, 100:420], (width, height))


def write(path, frames=None, size=(128, 128), **how):
    """Encode frames, or the face at a size; the container does not follow from the file's name."""
    write_intra_video(path, frames or [face(*size)] * N_FRAMES, **how)


def write_black(path, width: int, height: int):
    """One frame, of some kilobytes however large it is."""
    write(path, [np.zeros((height, width, 3), np.uint8)], options={"preset": "ultrafast"})


@cache
def encoded(noisy: bool = False, form: str = "mp4", **options) -> bytes:
    """A video of 8 frames. noisy: ten times as large, without a face."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v"
        write(path, list(noise) if noisy else [face()] * 8, form=form, options=options)
        return path.read_bytes()


def break_off(number: int, early: int = 0) -> bytes:
    """A video, header first, that ends some bytes before a frame does."""
    whole = encoded(movflags="faststart")
    with av.open(io.BytesIO(whole)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
    return whole[: packet.pos + packet.size - early]


def head_of_pieces() -> bytes:
    """The header of a video that is recorded in pieces, and no piece."""
    data = encoded(movflags="empty_moov+frag_keyframe")
    return data[: data.index(b"moof") - 4]


def promise_frames() -> bytes:
    """An AVI whose header says that it has two billion frames."""
    data = encoded(form="avi")
    place = data.index(b"strh") + 40  # dwLength
    return data[:place] + struct.pack("<I", 2**31 - 1) + data[place + 4 :]


HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n"
TEN_BITS, ANY_SIZE = "yuv420p10le", "yuv444p"

# name: (maker, its status: one word, or that of detection, of a fake's crops, of prediction)
VIDEOS = {
    # damaged
    "empty": (put(b""), "unreadable"),
    "truncated": (put(lambda: encoded()[: len(encoded()) // 2]), "unreadable"),
    "ends_between_frames": (put(lambda: break_off(5)), "short ok short"),
    "ends_within_a_frame": (put(lambda: break_off(4, 99)), "decode_error ok decode_error"),
    "one_frame_broken": (partial(write, drop=[2]), "decode_error"),
    "every_frame_broken": (partial(write, drop=range(N_FRAMES)), "decode_error"),
    "unknown_codec": (put(lambda: encoded().replace(b"avc1", b"zzzz")), "unreadable"),
    "no_frames": (put(head_of_pieces), "decode_error short decode_error"),
    "promises_more": (put(promise_frames), "short ok short"),
    # something else under a video's name
    "text": (put(b"not a video\n" * 99), "unreadable"),
    "gif": (partial(write, codec="gif", pix_fmt="rgb8", form="gif"), "unreadable"),
    "playlist": (put(HLS), "unreadable"),
    "list_of_files": (put(b"ffconcat version 1.0\nfile good.mp4\n"), "unreadable"),
    "audio_only": (put(lambda: encoded().replace(b"vide", b"soun")), "no_video_stream"),
    "folder": (Path.mkdir, "unreadable"),
    "pipe": (os.mkfifo, "unreadable"),
    "link_to_device": (partial(os.symlink, "/dev/zero"), "unreadable"),
    "link_to_nowhere": (partial(os.symlink, "/nowhere/x.mp4"), "missing_file"),
    "link_to_another": (partial(os.symlink, "good.mp4"), "ok"),
    # unusual, and a video
    "avi": (partial(write, form="avi"), "ok"),
    "mpegts": (partial(write, form="mpegts"), "ok"),
    "variable_rate": (partial(write, times=[0, 7, 300, 301]), "ok"),
    "odd_size": (partial(write, pix_fmt=ANY_SIZE, size=(321, 239)), "ok shape_mismatch ok"),
    "one_pixel": (partial(write, pix_fmt=ANY_SIZE, size=(1, 1)), "no_face shape_mismatch no_face"),
    "eight_k": (partial(write_black, width=7680, height=4320), "no_face shape_mismatch no_face"),
    "too_large": (partial(write_black, width=8192, height=8192), "too_large"),
    "ten_bit": (partial(write, pix_fmt=TEN_BITS), "ok"),
}
REAL = {"label": "REAL"}
FAKE, OF_B = ({"label": "FAKE", "original": f"{name}.mp4"} for name in ("good", "b"))
PART = "dfdc_train_part_0"


def make_data(data: Path, makers: dict) -> Path:
    """A good family, and of each maker an original and a fake of the good one."""
    (data / PART).mkdir(parents=True)
    entries = {}
    for name, make in ({"good": write} | makers).items():
        for file, entry in ((f"{name}.mp4", REAL), (f"{name}_fake.mp4", FAKE)):
            make(data / PART / file)
            entries[file] = entry
    put(entries)(data / PART / "metadata.json")
    return data


def see(path, n_frames: int = N_FRAMES) -> p.Seen:
    """What prediction sees of a video."""
    config = PredictConfig(frames=n_frames, procedure="slides")
    return p.cut_video(Path(path), config, {p.Cut(MARGINS["slides"], 112)})


def snapshot(folder: Path) -> dict[Path, tuple]:
    """Of all that lies in a folder: its kind, its size, and when it was changed."""
    stats = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (stat.st_mode, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.fixture(scope="module")
def good_work(tmp_path_factory) -> WorkFolder:
    """The good family by itself, preprocessed; its data lie beside it."""
    root = tmp_path_factory.mktemp("good")
    done_with(make_data(root / "data", {}), WorkFolder(root / "work"), EVERY_2)
    return WorkFolder(root / "work")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A data set of all kinds, each as an original and as a fake; preprocessed, and predicted."""
    root = tmp_path_factory.mktemp("hostile")
    makers = {name: make for name, (make, _) in VIDEOS.items()}
    data, work = make_data(root / "data", makers), WorkFolder(root / "work")
    before = snapshot(data)
    done = done_with(data, work, EVERY_2)
    paths = [data / PART / f"{name}.mp4" for name in ["good", *VIDEOS]]
    verdicts = p.predict_videos(paths, [make_model()], PredictConfig(frames=N_FRAMES))
    yield work, done, {verdict.video.stem: verdict for verdict in verdicts}
    assert snapshot(data) == before
    assert set(root.iterdir()) == {data, work.root}


@pytest.mark.parametrize("name", VIDEOS)
def test_each_kind_of_video_has_its_status(run, name):
    _, done, verdicts = run
    found = [done.loc[name, "detect"], done.loc[f"{name}_fake", "crop"], verdicts[name]]
    words = VIDEOS[name][1].split()
    expected = words * 3 if len(words) == 1 else words
    assert [one.status for one in found] == expected, [one.reason for one in found]
    assert [bool(one.reason) for one in found] == [word != "ok" for word in expected]
    assert (verdicts[name].p_fake is None) == (verdicts[name].n_faces == 0)


def test_the_good_family_is_unharmed_and_nothing_but_artifacts_is_written(run, good_work):
    """The fixture compares what lies outside the work folder when it ends."""
    work, _, verdicts = run
    good = {path: data for path, data in files_of(good_work).items() if "good" in str(path)}
    assert files_of(work).items() >= good.items()
    assert len(good) == 1 + 2 + 2 + 2  # boxes, crops of two, masks
    assert verdicts["good"].status == "ok"
    videos = set(read_folds(work).video_id)
    assert {"good", "good_fake", "avi", "odd_size"} <= videos
    assert not {"text", "pipe", "folder", "every_frame_broken"} & videos
    tops = {path.name for path in work.root.iterdir()} - {"status.csv.lock", ".unfinished"}
    assert tops == {"recipe.json", "boxes", "crops", "masks", "folds.csv", "status.csv"}
    assert not list(work.root.rglob("*.part")) + list(work.root.glob(".unfinished/*"))


@pytest.mark.parametrize("form", ["mp4", "avi", "matroska", "mpegts"])
def test_random_damage_ends_in_a_named_status(tmp_path, form):
    """Bytes changed, a piece cut out or doubled: no exception, and the next video is read."""
    known = {"ok", "short", "decode_error", "unreadable", "no_video_stream", "too_large"}
    rng, good, path = np.random.default_rng(1), bytearray(encoded(form=form)), tmp_path / "v.mp4"
    for number in range(10):
        data = good.copy()
        for place in rng.integers(0, len(data), 1 + number * 3):
            data[place] ^= 1 << int(rng.integers(8))
        begin, end = sorted(rng.integers(0, len(data), 2).tolist())
        path.write_bytes([data, data[:begin] + data[end:], data[:end] + data[begin:]][number % 3])
        assert see(path).status in known
    path.write_bytes(good)
    assert see(path).status == "ok"


def test_a_name_is_never_taken_for_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["http:x.mp4", "concat:x.mp4|y.mp4", "-i.mp4", "%03d.mp4", "a?b=c.mp4", "file:x.mp4"]
    for name in names:
        write(tmp_path / name)
        assert see(name)[:3] == ("ok", "", N_FRAMES), name


# ---- videos that change, and what is locked


def test_a_file_that_vanishes_between_two_looks_is_missing(tmp_path, monkeypatch):
    def look_and_lose(path):
        info = probe(path)
        path.unlink()
        return info

    monkeypatch.setattr("dfdc_lib.predict.probe", look_and_lose)
    monkeypatch.setattr("dfdc_lib.preprocess.probe", look_and_lose)
    write(tmp_path / "x.mp4")
    assert see(tmp_path / "x.mp4").status == "missing_file"
    done = done_with(make_data(tmp_path / "data", {}), WorkFolder(tmp_path / "work"), EVERY_2)
    expected = {("good", "detect"): "missing_file", ("good_fake", "crop"): "missing_original"}
    assert done.status.to_dict() == expected


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def complete(path: Path) -> None:
    path.write_bytes(encoded(noisy=True, movflags="faststart"))


@pytest.mark.parametrize(
    ("part", "act", "status", "n_frames"),
    [
        (1, Path.unlink, "ok", [8]),  # what is open is read to its end
        (1, halve, "decode_error", range(1, 8)),
        (2, complete, "short", range(3, 8)),
    ],
)
def test_a_changing_file_gives_what_was_there(tmp_path, monkeypatch, part, act, status, n_frames):
    """It changes while it is read. part: 2, it was half as long before."""

    def read_and_act(*video):
        for number, frame in enumerate(iterate_frames(*video)):
            if number == 1:
                act(path)
            yield frame

    path = tmp_path / "x.mp4"
    complete(path)
    os.truncate(path, path.stat().st_size // part)
    there = probe(path).n_frames
    monkeypatch.setattr(p, "read_frames", read_and_act)
    seen = see(path, 8)
    assert seen.status == status
    assert seen.n_frames in n_frames
    assert seen.n_frames <= there


def test_a_drive_that_goes_away_ends_the_video_there(tmp_path, monkeypatch):
    def demux(stream):
        yield from islice(container.demux(stream), 2)
        raise av.error.ExternalError(-1, "gone")  # neither a ValueError nor an OSError

    write(tmp_path / "x.mp4")
    info, failing = probe(tmp_path / "x.mp4"), nullcontext()
    container, stream = open_container(tmp_path / "x.mp4")
    failing.demux = demux
    monkeypatch.setattr("dfdc_lib.video.open_container", lambda _: (failing, stream))
    with container:
        assert len(list(iterate_frames(tmp_path / "x.mp4", range(N_FRAMES), info))) <= 2


def test_what_may_not_be_read_is_a_status_and_the_others_are_read(good_work):
    see(good_work.root.with_name("data") / PART / "good.mp4")
    # Now all is loaded: nobody might not be allowed to.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)  # everybody may enter it and write to it, unlike pytest's own
        root, locked = Path(folder), Path(folder) / "locked"
        locked.mkdir()
        write(locked / "v.mp4")
        links = partial(os.symlink, locked / "v.mp4")
        data = make_data(root / "data", {"shut": write, "shut_in": links})
        for path in (data / PART / "shut.mp4", data / PART / "shut_fake.mp4", locked):
            path.chmod(0)
        with without_rights():
            done = done_with(data, WorkFolder(root / "work"), EVERY_2)
            seen = [see(data / PART / name) for name in ("shut.mp4", "shut_in.mp4")]
        (data / PART / "metadata.json").chmod(0)
        message = r"metadata.json can't be read \(Permission denied\)"
        with without_rights(), pytest.raises(MetadataError, match=message):
            read_metadata(data)
    lost = done[done.status != "ok"]
    videos = {"shut", "shut_fake", "shut_in", "shut_in_fake"}
    assert {video_id for video_id, _ in lost.index} == videos
    for one in [*lost.itertuples(), *seen]:
        assert one.status == "unreadable"
        assert "Permission denied" in one.reason


# ---- metadata


def put_sparse(path):
    path.touch()
    os.truncate(path, 2**30)


DEEP = "[" * 900 + "]" * 900

# name: (the maker of metadata.json, or its content; what the error says)
METADATA = {
    "empty": (b"", "is not usable JSON"),
    "not UTF-8": (b'{"caf\xe9.mp4": {"label": "REAL"}}', "is not usable JSON.*utf-8"),
    "as large as a disk": (put_sparse, "1,073,741,824 bytes"),
    "a pipe": (os.mkfifo, "a pipe or a device"),
    "deep": (b"[" * 200_000, "is not usable JSON"),
    "a number that fills the page": (b"9" * 100_000, "is not usable JSON"),
    "a list": (["a.mp4"], "one object"),
    "a deep label": (f'{{"a.mp4": {{"label": {DEEP}}}}}'.encode(), "REAL or FAKE"),
    "a fake of itself": ({"good.mp4": FAKE}, "good.mp4 is listed as a fake of itself"),
    "a fake of a fake": ({"a.mp4": FAKE, "good.mp4": OF_B}, "'good', is listed as a fake"),
    "the same name twice": (b'{"a.mp4": {}, "a.mp4": {}}', "'a.mp4' is listed twice"),
    "two endings": ({"a.mp4": REAL, "a.mov": REAL}, "'a' is listed twice"),
}
ENTRIES = [None, 7, {}, {"label": ["REAL"]}, {"label": "real"}, {"is_fake": 2}]
METADATA |= {f"entry {entry}": ({"a.mp4": entry}, "needs a label of REAL") for entry in ENTRIES}
ORIGINALS = [FAKE | {"original": name} for name in ("", 7, ["b.mp4"], "../b.mp4")]
METADATA |= {str(entry): ({"a.mp4": entry}, "the original of a.mp4 .* is") for entry in ORIGINALS}
BAD_NAMES = ["", "..", "../a.mp4", "/etc/passwd", ".a.mp4", "a\0.mp4", "a\n.mp4", "a" * 151]
BAD_NAMES += ["\x1b[2J.mp4", "\u202e4pm.mp4", "a" * 2**20]  # clears the screen, turns text round
BAD_NAMES += ["a\ud800.mp4"]  # what no file system takes
METADATA |= {f"{name!r:.20} {len(name)}": ({name: REAL}, "plain file") for name in BAD_NAMES}


@pytest.mark.parametrize(("content", "message"), METADATA.values(), ids=METADATA)
def test_each_kind_of_metadata_is_one_clear_error(tmp_path, content, message):
    (tmp_path / PART).mkdir()
    make = content if callable(content) else put(content)
    make(tmp_path / PART / "metadata.json")
    before = snapshot(tmp_path)
    with pytest.raises(MetadataError, match=message) as error:
        preprocess(tmp_path, WorkFolder(tmp_path / "work"))
    told = str(error.value)
    assert str(tmp_path) in told
    assert len(told) < 600
    assert told.isprintable()
    assert snapshot(tmp_path) == before


LABELS = {
    "not UTF-8": (b"filename,label\ncaf\xe9.mp4,1\n", "can't be read as a CSV file"),
    "another table": (b"video,fake\na.mp4,1\n", "must have the columns"),
    "a third label": (b"filename,label\na.mp4,2\n", "has the label '2'.*must be 1"),
    "no row": (b"filename,label\n", "lists no video"),
    "no label": (b"filename,label\na.mp4,\n", "must be 1 for a fake"),
    "a name twice": (b"filename,label\na.mp4,1\na.mp4,0\n", "'a.mp4' is listed twice"),
}


@pytest.mark.parametrize(("data", "message"), LABELS.values(), ids=LABELS)
def test_each_kind_of_labels_is_one_clear_error(tmp_path, data, message):
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(MetadataError, match=f"labels.csv.*{message}"):
        read_truth(tmp_path / "labels.csv")


# ---- artifacts: boxes, crops, masks, folds


@pytest.fixture
def work(good_work, tmp_path) -> WorkFolder:
    """A copy of the good family's artifacts, to be damaged."""
    return WorkFolder(shutil.copytree(good_work.root, tmp_path / "work"))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff\xfe"])
def test_damaged_records_are_named(work, data):
    for path, read in (
        (work.boxes("good"), lambda: work.read_boxes("good")),
        (work.recipe, work.read_recipe),
        (work.folds, lambda: read_folds(work)),
    ):
        path.write_bytes(data)
        with pytest.raises(DamagedFile, match=re.escape(str(path))):
            read()


def claim_size(width, height):
    """A PNG of some bytes that says it is huge."""

    def change(data: bytes) -> bytes:
        head = data[12:16] + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]

    return edit(change)


PICTURES = {
    "a JPEG": put(lambda: cv2.imencode(".jpg", face())[1].tobytes()),
    "cut": halve,
    "a wrong byte": edit(lambda data: data[:999] + bytes([data[999] ^ 1]) + data[1000:]),
    "a bomb": claim_size(30_000, 30_000),
    "no width": claim_size(0, 10),
    "larger than it is": claim_size(60, 5000),
}


def left_out(work) -> tuple[list[bool], list[bool]]:
    """Of each crop, in the augmentation that needs masks, and of each pair: is it left out?"""
    rows, reader = read_folds(work), CropReader(work, 64)
    crops = CropDataset(rows, reader, AUGMENTATIONS["hard"](64), seed=0, hard=True)
    pairs = PairDataset(pair(rows), reader, valid_transforms(64), seed=0)
    return tuple([data[i] is None for i in range(len(data))] for data in (crops, pairs))


@pytest.mark.parametrize("damage", PICTURES.values(), ids=PICTURES)
def test_a_broken_crop_is_named_and_spoils_no_other(work, damage):
    path = work.crops("good") / "0_0.png"
    damage(path)
    for read in (read_png, read_mask):
        with pytest.raises(DamagedFile, match=r"good/0_0\.png; `dfdc doctor"):
            read(path)
    assert left_out(work) == ([True, False, False, False], [True, False])


def shorten(path):
    write_png(path, read_png(path)[:-3])


def test_a_mask_or_a_partner_of_another_size_leaves_its_crop_out(work):
    assert left_out(work) == ([False] * 4, [False] * 2)
    crop, mask = work.crops("good_fake") / "0_0.png", work.masks("good_fake") / "0_0.png"
    shorten(mask)
    assert left_out(work) == ([False, False, True, False], [False] * 2)
    third = Crop(*read_folds(work)[list(Crop._fields)].iloc[2])
    with pytest.raises(DamagedFile, match=r"masks/good_fake/0_0\.png has \(\d+, \d+\) pixels"):
        CropReader(work, 64).mask(third, read_png(crop).shape)
    mask.write_text("no picture")
    assert left_out(work) == ([False, False, True, False], [False] * 2)
    shorten(crop)
    assert left_out(work) == ([False, False, True, False], [True, False])


# ---- checkpoints


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, place="executed"):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def saved(value, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


saved_old = partial(saved, _use_new_zipfile_serialization=False)


def changed(part: str, told: dict):
    """A good checkpoint but for this in its card, or among its weights."""
    return lambda stored: saved(stored | {part: stored[part] | told})


NAN = torch.tensor(torch.nan)
UNSAFE, NO_CARD = "can't be read safely", "a card that can't be used"

# name: (bytes, at times from a good checkpoint's content; the error)
CHECKPOINTS = {
    "a pickle that runs code": (pickle.dumps(Evil(), protocol=2), UNSAFE),
    "code in the card": (lambda stored: saved(stored | {"card": Evil()}), UNSAFE),
    "code among the weights": (saved({"state_dict": Evil()}), UNSAFE),
    "code in the old form": (lambda stored: saved_old(stored | {"x": Evil()}), UNSAFE),
    "empty": (b"", UNSAFE),
    "text": (b"no checkpoint", UNSAFE),
    "cut in half": (lambda stored: saved(stored)[: len(saved(stored)) // 2], UNSAFE),
    "the old form, cut": (lambda stored: saved_old(stored)[:9999], UNSAFE),
    "a tensor": (saved(torch.zeros(3)), "it holds a Tensor"),
    "no weights": (saved({"card": {}}), "'state_dict'"),
    "a list of weights": (saved({"state_dict": [1]}), "'state_dict'"),
    "a weight of text": (changed("state_dict", {"fc.bias": "0.5"}), "'state_dict'"),
    "a weight of another shape": (changed("state_dict", {"fc.bias": NAN}), "does not fit its"),
    "a weight of NaN": (changed("state_dict", {"fc.bias": NAN[None]}), "are not finite"),
    "a card of another type": (lambda stored: saved(stored | {"card": [1]}), NO_CARD),
    "an encoder it was not": (changed("card", {"encoder": "resnet18"}), "does not fit its"),
}
HUB, TAG = "hf-hub:evil/model", "resnet18.evil"
CARDS = [{"more": 1}, {"encoder": HUB}, {"encoder": TAG}, {"encoder": ["tiny"]}, {"size": 10**9}]
CARDS += [{"size": "112"}, {"margin": torch.nan}, {"margin": -1}, {"margin": [1]}]
CHECKPOINTS |= {f"a card with {told}": (changed("card", told), NO_CARD) for told in CARDS}


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> dict:
    """What a good checkpoint holds."""
    path = tmp_path_factory.mktemp("models") / "m.pt"
    save_checkpoint(path, make_model())
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("data", "message"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_each_kind_of_checkpoint_is_an_error_and_nothing_is_executed(
    stored, tmp_path, monkeypatch, data, message
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pt"
    path.write_bytes(data(stored) if callable(data) else data)
    with pytest.raises(ValueError, match=f"bad.pt .*{message}"):
        load_checkpoint(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_checkpoint_that_is_no_file_is_an_error_that_does_not_block(tmp_path, make):
    make(tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt is a folder, a pipe or a device"):
        load_checkpoint(tmp_path / "bad.pt")


# ---- readers of what strangers make, fuzzed

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
NEARLY = st.sampled_from(["REAL", "FAKE", "a.mp4", "b.mp4", "../x.mp4", 0, 1])
KEYS, FILES = st.sampled_from(["label", "original", "is_fake"]), NEARLY.map(str) | st.text()
NEARLY_ENTRIES = st.dictionaries(KEYS, NEARLY | ANY_JSON)
DOCUMENTS = ANY_JSON | st.dictionaries(FILES, NEARLY_ENTRIES | ANY_JSON, max_size=4)


@settings(max_examples=200)
@given(data=DOCUMENTS | st.binary(max_size=40))
def test_the_reader_of_metadata_raises_its_own_error_and_no_other(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("data")
    put(data)(folder / "metadata.json")
    with suppress(MetadataError):
        table = read_metadata(folder)
        assert all(Path(file).name == file for file in table.file)
        assert set(table.label) <= {0, 1}


@settings(max_examples=60)
@given(changes=st.dictionaries(st.integers(0, 10**9), st.integers(0, 255), min_size=1, max_size=4))
@example(changes={0: 128})  # looks like a pickle of a protocol that torch warns of
def test_the_reader_of_checkpoints_raises_its_own_error(stored, tmp_path_factory, changes):
    path = tmp_path_factory.mktemp("models") / "m.pt"
    few = {"card": stored["card"], "state_dict": {"fc.weight": torch.zeros(1, 4)}}
    data = bytearray(saved(few))
    for at, value in changes.items():
        data[at % len(data)] = value
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"m\.pt"):
        load_checkpoint(path)
