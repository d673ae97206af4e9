"""Broken and hostile input: each kind ends in a status or one clear error, and harms nothing
else."""

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
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache, partial
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from conftest import strike, write_intra_video
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_faults import without_rights

from dfdc_lib import predict as p
from dfdc_lib.augment import AUGMENTATIONS, valid_transforms
from dfdc_lib.config import MARGINS, PredictConfig, PreprocessConfig
from dfdc_lib.dataset import Crop, CropDataset, CropReader, PairDataset, pair, read_folds
from dfdc_lib.metadata import MetadataError, read_metadata
from dfdc_lib.model import DeepfakeClassifier, load_checkpoint, save_checkpoint
from dfdc_lib.ops.pipeline import preprocess
from dfdc_lib.ops.submission import read_labels
from dfdc_lib.rehearsal.sample import portrait
from dfdc_lib.store import DamagedFile, WorkFolder, read_mask, read_png, write_png
from dfdc_lib.video import iterate_frames, open_container, probe

EVERY_2 = PreprocessConfig(every=2)
N_FRAMES = 4
SLIDES = MARGINS["slides"]


@pytest.fixture(autouse=True)
def _no_test_blocks():
    """What waits for a pipe's other end, or reads a device without end, is ended by a signal."""
    signal.alarm(300)
    yield
    signal.alarm(0)


# ---- videos: makers


@cache
def face(width: int = 128, height: int = 128) -> np.ndarray:
    return cv2.resize(portrait("collins")[:320, 100:420], (width, height))


def write(
    path, frames=None, codec="libx264", pixels="yuv420p", form="mp4", size=(128, 128), **options
):
    """Encode frames, or the face at a size; the container does not follow from the file's name."""
    frames = frames or [face(*size)] * N_FRAMES
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.options = {"preset": "ultrafast"} if codec == "libx264" else {}
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=pixels)))
        container.mux(stream.encode())


def content_of(make) -> bytes:
    """The bytes of the file that a maker writes."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "v")
        return (Path(folder) / "v").read_bytes()


@cache
def encoded(**settings) -> bytes:
    return content_of(lambda path: write(path, **settings))


@cache
def intra(noisy: bool = False) -> bytes:
    """12 frames, each by itself, the header first. noisy: ten times as large, without a face."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 128, 128, 3), dtype=np.uint8)
    frames = list(noise) if noisy else [face()] * 12
    faststart = {"movflags": "faststart"}
    return content_of(lambda path: write_intra_video(path, frames, options=faststart))


def write_black(path, width: int, height: int):
    """One frame, of some kilobytes however large it is."""
    write(path, [np.zeros((height, width, 3), np.uint8)])


def break_off(number: int, early: int = 0) -> bytes:
    """A video that ends some bytes before a frame does."""
    with av.open(io.BytesIO(intra())) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
    return intra()[: packet.pos + packet.size - early]


def head_of_pieces() -> bytes:
    """The header of a video that is recorded in pieces, and no piece."""
    data = encoded(movflags="empty_moov+frag_keyframe")
    return data[: data.index(b"moof") - 4]


def promise_frames() -> bytes:
    """An AVI whose header says that it has two billion frames."""
    data = encoded(form="avi")
    place = data.index(b"strh") + 40  # dwLength
    return data[:place] + struct.pack("<I", 2**31 - 1) + data[place + 4 :]


def put(data) -> Callable[[Path], object]:
    """A maker: write bytes, or what a function gives."""
    return lambda path: path.write_bytes(data() if callable(data) else data)


def intra_video(**settings) -> Callable[[Path], object]:
    return lambda path: write_intra_video(path, [face()] * N_FRAMES, **settings)


def link(target) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n"

# name: (maker, its status: one word, or that of detection, of a fake's crops, of prediction)
VIDEOS = {
    # damaged
    "empty": (put(b""), "unreadable"),
    "truncated": (put(lambda: encoded()[: len(encoded()) // 2]), "unreadable"),
    "ends_between_frames": (put(lambda: break_off(7)), "short ok short"),
    "ends_within_a_frame": (put(lambda: break_off(6, 99)), "decode_error ok decode_error"),
    "one_frame_broken": (intra_video(drop=[2]), "decode_error"),
    "every_frame_broken": (intra_video(drop=range(N_FRAMES)), "decode_error"),
    "unknown_codec": (put(lambda: encoded().replace(b"avc1", b"zzzz")), "unreadable"),
    "no_frames": (put(head_of_pieces), "decode_error short decode_error"),
    "promises_more": (put(promise_frames), "short ok short"),
    # something else under a video's name
    "text": (put(b"not a video\n" * 99), "unreadable"),
    "gif": (partial(write, codec="gif", pixels="rgb8", form="gif"), "unreadable"),
    "playlist": (put(HLS), "unreadable"),
    "list_of_files": (put(b"ffconcat version 1.0\nfile good.mp4\n"), "unreadable"),
    "audio_only": (put(lambda: encoded().replace(b"vide", b"soun")), "no_video_stream"),
    "folder": (Path.mkdir, "unreadable"),
    "pipe": (os.mkfifo, "unreadable"),
    "link_to_device": (link("/dev/zero"), "unreadable"),
    "link_to_nowhere": (link("/nowhere/x.mp4"), "missing_file"),
    "link_to_another": (link("good.mp4"), "ok"),
    # unusual, and a video
    "avi": (partial(write, form="avi"), "ok"),
    "mpegts": (partial(write, form="mpegts"), "ok"),
    "variable_rate": (intra_video(times=[0, 7, 300, 301]), "ok"),
    "odd_size": (partial(write, pixels="yuv444p", size=(321, 239)), "ok shape_mismatch ok"),
    "one_pixel": (partial(write, pixels="yuv444p", size=(1, 1)), "no_face shape_mismatch no_face"),
    "eight_k": (partial(write_black, width=7680, height=4320), "no_face shape_mismatch no_face"),
    "too_large": (partial(write_black, width=8192, height=8192), "too_large"),
    "ten_bit": (partial(write, pixels="yuv420p10le"), "ok"),
}


# ---- videos: one run


def snapshot(folder: Path, besides: Path) -> dict[Path, object]:
    """All that lies in a folder, but for one of its own: a link's target, bytes, or the kind."""

    def look(path: Path):
        if path.is_symlink():
            return os.readlink(path)
        return path.read_bytes() if path.is_file() else path.lstat().st_mode

    return {path: look(path) for path in folder.rglob("*") if not path.is_relative_to(besides)}


def artifacts(work: WorkFolder, *video_ids: str) -> dict[str, bytes]:
    """The boxes, crops and masks of some videos."""
    places = [place(v) for v in video_ids for place in (work.boxes, work.crops, work.masks)]
    files = [path for place in places for path in [place, *place.glob("*")] if path.is_file()]
    return {str(path.relative_to(work.root)): path.read_bytes() for path in files}


def statuses(data: Path, work: WorkFolder) -> dict[tuple[str, str], str]:
    """Preprocess: (video_id, stage) → status."""
    return preprocess(data, work, EVERY_2).status.set_index(["video_id", "stage"]).status.to_dict()


def make_data(data: Path, makers=()) -> Path:
    """A good family, and of each maker an original and a fake of the good one."""
    part = data / "dfdc_train_part_0"
    part.mkdir(parents=True)
    write(part / "good.mp4")
    write(part / "good_fake.mp4", [cv2.blur(face(), (5, 5))] * N_FRAMES)
    entries = {"good.mp4": REAL, "good_fake.mp4": FAKE}
    for name in makers:
        for file, entry in ((f"{name}.mp4", REAL), (f"{name}_fake.mp4", FAKE)):
            makers[name][0](part / file)
            entries[file] = entry
    (part / "metadata.json").write_text(json.dumps(entries))
    return data


def see(path, n_frames: int = N_FRAMES) -> p.Seen:
    """What prediction sees of a video."""
    config = PredictConfig(frames=n_frames, procedure="slides")
    return p.cut_video(Path(path), config, {p.Cut(SLIDES, 112)})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DeepfakeClassifier("tiny").eval()


@pytest.fixture(scope="module")
def good_work(tmp_path_factory) -> WorkFolder:
    """The good family by itself, preprocessed; its data lie beside it."""
    root = tmp_path_factory.mktemp("good")
    work = WorkFolder(root / "work")
    preprocess(make_data(root / "data"), work, EVERY_2)
    return work


@pytest.fixture(scope="module")
def run(tmp_path_factory, model):
    """A data set of all kinds, each as an original and as a fake; preprocessed, and predicted."""
    root = tmp_path_factory.mktemp("hostile")
    data, work = make_data(root / "data", VIDEOS), WorkFolder(root / "work")
    before = snapshot(root, work.root)
    done = preprocess(data, work, EVERY_2).status.set_index(["video_id", "stage"])
    paths = [data / "dfdc_train_part_0" / f"{name}.mp4" for name in ["good", *VIDEOS]]
    verdicts = p.predict_videos(paths, [model], PredictConfig(frames=N_FRAMES))
    yield work, done, {verdict.video.stem: verdict for verdict in verdicts}
    assert snapshot(root, work.root) == before


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
    assert artifacts(work, "good", "good_fake") == artifacts(good_work, "good", "good_fake") != {}
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


NAMES = ["http:x.mp4", "concat:x.mp4|y.mp4", "-i.mp4", "%03d.mp4", "a?b=c.mp4", "file:x.mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_never_taken_for_an_address(tmp_path, monkeypatch, name):
    write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert see(name)[:3] == ("ok", "", N_FRAMES)


# ---- videos: what changes, and what is locked


@pytest.fixture
def after_first(monkeypatch):
    """after_first(act): what happens while a video is read, once its first frame is decoded."""

    def plan(act):
        def read(*video):
            for number, frame in enumerate(iterate_frames(*video)):
                if number == 1:
                    act()
                yield frame

        monkeypatch.setattr(p, "read_frames", read)

    return plan


def test_a_file_that_vanishes_between_two_looks_is_missing(tmp_path, monkeypatch):
    def look_and_lose(path):
        info = probe(path)
        path.unlink()
        return info

    monkeypatch.setattr("dfdc_lib.predict.probe", look_and_lose)
    monkeypatch.setattr("dfdc_lib.preprocess.probe", look_and_lose)
    write(tmp_path / "x.mp4")
    assert see(tmp_path / "x.mp4").status == "missing_file"
    assert statuses(make_data(tmp_path / "data"), WorkFolder(tmp_path / "work")) == {
        ("good", "detect"): "missing_file",
        ("good_fake", "crop"): "missing_original",
    }


def test_a_file_that_vanishes_while_it_is_read_is_read_to_its_end(tmp_path, after_first):
    write(tmp_path / "x.mp4")
    after_first((tmp_path / "x.mp4").unlink)
    assert see(tmp_path / "x.mp4")[:3] == ("ok", "", 4)


def test_a_file_that_is_cut_while_it_is_read_is_a_status(tmp_path, after_first):
    path, data = tmp_path / "x.mp4", intra(noisy=True)
    path.write_bytes(data)
    after_first(lambda: os.truncate(path, len(data) // 2))
    seen = see(path, 12)
    assert (seen.status, 1 <= seen.n_frames < 12) == ("decode_error", True)


def test_a_file_that_grows_while_it_is_read_is_scored_by_what_was_there(tmp_path, after_first):
    path, data = tmp_path / "x.mp4", intra(noisy=True)
    path.write_bytes(data[: len(data) // 2])
    there = probe(path).n_frames
    assert 2 < there < 12
    after_first(lambda: path.write_bytes(data))
    first, again = see(path, 99), see(path, 99)
    assert (first.status, again.status, again.n_frames) == ("short", "short", 12)
    assert 2 < first.n_frames <= there


class Failing(nullcontext):
    """A container on a drive that goes away: the error is neither a ValueError nor an OSError."""

    def demux(self, stream):
        yield from islice(self.enter_result.demux(stream), 2)
        raise av.error.ExternalError(-1, "gone")


def test_a_file_that_can_not_be_read_on_ends_there(tmp_path, monkeypatch):
    write(tmp_path / "x.mp4")
    info = probe(tmp_path / "x.mp4")
    container, stream = open_container(tmp_path / "x.mp4")
    with container:
        monkeypatch.setattr("dfdc_lib.video.open_container", lambda _: (Failing(container), stream))
        assert len(list(iterate_frames(tmp_path / "x.mp4", range(N_FRAMES), info))) <= 2


@pytest.fixture
def open_folder(good_work):
    """A folder that everybody may enter and write to, unlike pytest's own."""
    see(good_work.root.parent / "data" / "dfdc_train_part_0" / "good.mp4")
    # Now all is loaded: nobody might not be allowed to.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


def test_what_may_not_be_read_is_a_status_and_the_others_are_read(open_folder):
    data, locked = make_data(open_folder / "data"), open_folder / "locked"
    part = data / "dfdc_train_part_0"
    original, fake = part / "good.mp4", part / "good_fake.mp4"
    locked.mkdir()
    shutil.copy(fake, locked)
    fake.unlink()
    fake.symlink_to(locked / "good_fake.mp4")
    locked.chmod(0)
    with without_rights():
        told = statuses(data, WorkFolder(open_folder / "work"))
        seen = see(fake)
    assert told.pop(("good_fake", "crop")) == "unreadable"
    assert set(told.values()) == {"ok"}
    assert seen[:2] == ("unreadable", "it can't be looked at (Permission denied)")
    original.chmod(0)
    with without_rights():
        told = statuses(data, WorkFolder(open_folder / "again"))
        seen = see(original)
    assert list(told.values()) == ["unreadable", "broken_original"]
    assert (seen.status, "Permission denied" in seen.reason) == ("unreadable", True)
    (part / "metadata.json").chmod(0)
    message = r"metadata.json can't be read \(Permission denied\)"
    with without_rights(), pytest.raises(MetadataError, match=message):
        read_metadata(data)


# ---- metadata


def put_sparse(path):
    path.touch()
    os.truncate(path, 2**30)


REAL = {"label": "REAL"}
FAKE = {"label": "FAKE", "original": "good.mp4"}
DEEP = "[" * 900 + "]" * 900

# name: (the metadata.json: bytes, JSON or a maker; what the error says)
METADATA = {
    "empty": (b"", "is not JSON"),
    "not UTF-8": (b'{"caf\xe9.mp4": {"label": "REAL"}}', "is not JSON.*utf-8"),
    "as large as a disk": (put_sparse, "1,073,741,824 bytes"),
    "a pipe": (os.mkfifo, "a pipe or a device"),
    "deep": (b"[" * 200_000, "is not JSON"),
    "a number that fills the page": (b"9" * 100_000, "is not JSON"),
    "a list": (["a.mp4"], "one object"),
    "an entry of another type": ({"a.mp4": None}, "REAL or FAKE, or .* got None"),
    "a label of another type": ({"a.mp4": {"label": ["REAL"]}}, "REAL or FAKE"),
    "a label in small letters": ({"a.mp4": {"label": "real"}}, "REAL or FAKE, or .* got 'real'"),
    "a deep label": (f'{{"a.mp4": {{"label": {DEEP}}}}}'.encode(), "REAL or FAKE"),
    "an original of another type": ({"a.mp4": FAKE | {"original": 7}}, "original of a.mp4 7"),
    "an original that climbs": ({"a.mp4": FAKE | {"original": "../b.mp4"}}, "plain file name"),
    "a fake of itself": ({"good.mp4": FAKE}, "'good', is listed as a fake"),
    "the same name twice": (b'{"a.mp4": {}, "a.mp4": {}}', "'a.mp4' is listed twice"),
    "two endings": ({"a.mp4": REAL, "a.mov": REAL}, "'a' is listed twice"),
}
BAD_NAMES = ["", "..", "../a.mp4", "/etc/passwd", ".a.mp4", "a\0.mp4", "a\n.mp4", "a" * 151]
BAD_NAMES += ["\x1b[2J.mp4", "\u202e4pm.mp4", "a" * 2**20]  # clears the screen, turns text round
METADATA |= {repr(name)[:20]: ({name: REAL}, "plain file name") for name in BAD_NAMES}


@pytest.mark.parametrize("name", METADATA)
def test_each_kind_of_metadata_is_one_clear_error(tmp_path, name):
    content, message = METADATA[name]
    part = tmp_path / "data" / "dfdc_train_part_0"
    part.mkdir(parents=True)
    if callable(content):
        content(part / "metadata.json")
    else:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (part / "metadata.json").write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MetadataError, match=message) as error:
        preprocess(tmp_path / "data", WorkFolder(tmp_path / "work"))
    assert str(tmp_path / "data") in str(error.value)
    assert len(str(error.value)) < 600
    assert str(error.value).isprintable()
    assert sorted(tmp_path.rglob("*")) == before


LABELS = {
    "not UTF-8": (b"filename,label\ncaf\xe9.mp4,1\n", "is not a CSV file"),
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


# ---- artifacts: boxes, crops, masks, folds


@pytest.fixture
def work(good_work, tmp_path) -> WorkFolder:
    """A copy of the good family's artifacts, to be damaged."""
    shutil.copytree(good_work.root, tmp_path / "work")
    return WorkFolder(tmp_path / "work")


@pytest.mark.parametrize("text", ["", "[]", "{}", "\xff\xfe"])
def test_damaged_records_are_named(work, text):
    for path, read in (
        (work.boxes("good"), lambda: work.read_boxes("good")),
        (work.recipe, work.read_recipe),
        (work.folds, lambda: read_folds(work)),
    ):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(DamagedFile, match=re.escape(str(path))):
            read()


def edit(change) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def claim_size(width, height):
    """A PNG of some bytes that says it is huge."""

    def change(data: bytes) -> bytes:
        head = data[12:16] + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]

    return edit(change)


PICTURES = {
    "a JPEG": put(lambda: cv2.imencode(".jpg", face())[1].tobytes()),
    "cut": edit(lambda data: data[: len(data) // 2]),
    "a wrong byte": edit(lambda data: data[:999] + bytes([data[999] ^ 1]) + data[1000:]),
    "a bomb": claim_size(30_000, 30_000),
    "no width": claim_size(0, 10),
    "larger than it is": claim_size(60, 5000),
}


def left_out(data) -> list[bool]:
    """Of each item of a dataset: is it left out?"""
    return [data[number] is None for number in range(len(data))]


@pytest.mark.parametrize("name", PICTURES)
def test_a_broken_crop_is_named_counted_and_spoils_no_other(good_work, work, name):
    path = work.crops("good") / "0_0.png"
    PICTURES[name](path)
    for read in (read_png, read_mask):
        with pytest.raises(DamagedFile, match=r"good/0_0\.png; `dfdc doctor"):
            read(path)
    rows, reader = read_folds(work), CropReader(work, 64)
    crops = CropDataset(rows, reader, valid_transforms(64), seed=0)
    assert left_out(crops) == [True, False, False, False]
    pairs = PairDataset(pair(rows), reader, valid_transforms(64), seed=0)
    assert left_out(pairs) == [True, False]
    strike(work, "good_fake", "masks")
    line = preprocess(good_work.root.parent / "data", work, EVERY_2).status.iloc[-1]
    assert (line.status, line["count"]) == ("broken_crop", 1)


def hard_crops(work) -> list[bool]:
    """Which of the crops are left out by the hard augmentation, which needs masks and landmarks."""
    rows, transform = read_folds(work), AUGMENTATIONS["hard"](64)
    return left_out(CropDataset(rows, CropReader(work, 64), transform, seed=0, hard=True))


def test_a_mask_or_a_partner_of_another_size_leaves_its_crop_out(work):
    crop_path, path = work.crops("good") / "0_0.png", work.masks("good_fake") / "0_0.png"
    assert hard_crops(work) == [False] * 4
    whole_mask = read_mask(path)
    write_png(path, whole_mask[:-3])
    assert hard_crops(work) == [False, False, True, False]
    crop = Crop(*read_folds(work)[list(Crop._fields)].iloc[2])
    with pytest.raises(DamagedFile, match=r"masks/good_fake/0_0\.png has \(\d+, \d+\) pixels"):
        CropReader(work, 64).mask(crop, whole_mask.shape)
    path.write_text("no picture")
    assert hard_crops(work) == [False, False, True, False]
    write_png(crop_path, read_png(crop_path)[:-3])
    pairs = pair(read_folds(work))
    data = PairDataset(pairs, CropReader(work, 64), valid_transforms(64), seed=0)
    assert left_out(data) == [True, False]


# ---- checkpoints


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def pickled(place) -> bytes:
    return pickle.dumps({"card": Evil(place), "state_dict": {}}, protocol=2)


def saved(value, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def saved_old(value) -> bytes:
    return saved(value, _use_new_zipfile_serialization=False)


def holding(**changes):
    return lambda stored, place: saved(stored | changes)


def with_weights(change):
    """All weights changed, alike."""
    return lambda stored, place: saved(
        stored | {"state_dict": {name: change(v) for name, v in stored["state_dict"].items()}}
    )


def with_card(**told):
    return lambda stored, place: saved(stored | {"card": stored["card"] | told})


# name: (bytes, from a good checkpoint's content and a place where nothing may appear; the error)
UNSAFE, NO_CARD = "can be read safely", "a card that can't be used"
CHECKPOINTS = {
    "a pickle that runs code": (lambda stored, place: pickled(place), UNSAFE),
    "code in the card": (lambda stored, place: saved(stored | {"card": Evil(place)}), UNSAFE),
    "code among the weights": (lambda stored, place: saved({"state_dict": Evil(place)}), UNSAFE),
    "code in the old form": (lambda stored, place: saved_old(stored | {"x": Evil(place)}), UNSAFE),
    "text": (lambda stored, place: b"no checkpoint", UNSAFE),
    "cut in half": (lambda stored, place: saved(stored)[: len(saved(stored)) // 2], UNSAFE),
    "the old form, cut": (lambda stored, place: saved_old(stored)[:9999], UNSAFE),
    "a tensor": (lambda stored, place: saved(torch.zeros(3)), "it holds a Tensor"),
    "no weights": (lambda stored, place: saved({"card": {}}), "lacks 'state_dict'"),
    "a list of weights": (holding(state_dict=[1]), "no tensors in its 'state_dict'"),
    "strings for weights": (with_weights(str), "no tensors in its 'state_dict'"),
    "weights of another shape": (with_weights(lambda v: v[None]), "does not fit its model"),
    "weights of NaN": (with_weights(lambda v: v * torch.nan), "are no numbers"),
    "a card of another type": (holding(card=[1]), NO_CARD),
    "more than a card": (with_card(more=1), NO_CARD),
    "an encoder it was not": (with_card(encoder="resnet18"), "does not fit its model"),
    "an encoder from a hub": (with_card(encoder="hf-hub:evil/model"), f"{NO_CARD}: encoder must"),
    "an encoder with a wrong tag": (with_card(encoder="resnet18.evil"), NO_CARD),
    "an encoder of another type": (with_card(encoder=["tiny"]), f"{NO_CARD}: encoder and"),
    "a size without end": (with_card(size=10**9), f"{NO_CARD}: size"),
    "a size of another type": (with_card(size="112"), f"{NO_CARD}: size"),
    "a margin of NaN": (with_card(margin=float("nan")), f"{NO_CARD}: a margin"),
    "a margin of another type": (with_card(margin=[0.2]), f"{NO_CARD}: a margin"),
}


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory) -> dict:
    """What a good checkpoint holds."""
    path = tmp_path_factory.mktemp("models") / "m.pt"
    save_checkpoint(path, model)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_each_kind_of_checkpoint_is_one_clear_error_and_nothing_is_executed(stored, tmp_path, name):
    make, message = CHECKPOINTS[name]
    path = tmp_path / "bad.pt"
    path.write_bytes(make(stored, tmp_path / "executed"))
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
ENTRIES = st.dictionaries(st.sampled_from(["label", "original", "is_fake"]), NEARLY | ANY_JSON)
DOCUMENTS = ANY_JSON | st.dictionaries(NEARLY.map(str) | st.text(), ENTRIES | ANY_JSON, max_size=4)


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder to write one document after the other to."""
    return tmp_path_factory.mktemp("desk")


@settings(max_examples=200)
@given(data=DOCUMENTS.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
def test_the_reader_of_metadata_raises_its_own_error_and_no_other(desk, data):
    (desk / "metadata.json").write_bytes(data)
    with suppress(MetadataError):
        table = read_metadata(desk)
        assert all(Path(file).name == file for file in table.file)
        assert set(table.label) <= {0, 1}


@pytest.fixture(scope="module")
def small_checkpoint(stored) -> bytes:
    """A card with too few weights, which is short enough to be printed as a test's argument."""
    return saved({"card": stored["card"], "state_dict": {"fc.weight": torch.zeros(1, 4)}})


CHANGES = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 255)), min_size=1, max_size=4)


@settings(max_examples=60)
@given(changes=CHANGES)
@example(changes=[(0, 128)])  # looks like a pickle of a protocol that torch warns of
def test_the_reader_of_checkpoints_raises_its_own_error(small_checkpoint, desk, changes):
    data = bytearray(small_checkpoint)
    for at, value in changes:
        data[at % len(data)] = value
    (desk / "m.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"m\.pt"):
        load_checkpoint(desk / "m.pt")
