import weakref
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from dfdc_lib import predict as p
from dfdc_lib.aggregate import confident_strategy
from dfdc_lib.augment import valid_transforms
from dfdc_lib.config import Margin, PredictConfig
from dfdc_lib.geometry import spread_indices
from dfdc_lib.model import DeepfakeClassifier, save_checkpoint, score
from dfdc_lib.rehearsal.film import write_video
from dfdc_lib.rehearsal.people import portrait
from dfdc_lib.video import iterate_frames, probe, run_ahead


def make_model(seed: int = 0, **about) -> DeepfakeClassifier:
    """A small network of random weights; about: what its card says."""
    torch.manual_seed(seed)
    model = DeepfakeClassifier("tiny").eval()
    model.card = replace(model.card, **about)
    return model


@pytest.fixture(scope="module")
def models():
    return [make_model(0), make_model(1)]


def test_a_verdict_by_hand(originals, models):
    """One frame, followed by hand through every step, gives the score that the verdict records."""
    video = originals[0]
    verdict = p.predict_video(video, models[:1], n_frames=4)
    row = verdict.faces.iloc[0]
    assert row.frame_idx in spread_indices(probe(video).n_frames, 4)
    ((_, frame),) = iterate_frames(video, [row.frame_idx])
    width, height = row.x1 - row.x0, row.y1 - row.y0
    x0, x1 = round(row.x0 - 0.2 * width), round(row.x1 + 0.2 * width)
    y0, y1 = round(row.y0 - 0.2 * height), round(row.y1 + 0.2 * height)
    crop = frame[max(y0, 0) : y1, max(x0, 0) : x1]
    tensor = valid_transforms(112)(image=crop)["image"][None]
    assert score(models[0], tensor).item() == pytest.approx(row.p_fake, abs=1e-5)
    assert verdict.p_fake == pytest.approx(confident_strategy(verdict.faces.p_fake))


def test_checkpoints_may_be_paths_and_wrong_calls_name_the_choices(originals, models, tmp_path):
    video, path = originals[0], tmp_path / "m.pt"
    save_checkpoint(path, models[0])
    from_path = p.predict_video(video, [path], n_frames=2)
    assert from_path.p_fake == p.predict_video(video, models[:1], n_frames=2).p_fake
    for message, given_models in (("given twice", [path, path]), ("at least one", [])):
        with pytest.raises(ValueError, match=message):
            p.predict_video(video, given_models)
    with pytest.raises(ValueError, match="mean, confident"):
        p.predict_video(video, models, strategy="best")
    with pytest.raises(FileNotFoundError, match="gone"):
        p.predict_video(tmp_path / "gone.mp4", models)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Videos of few and of many frames, of nobody and of two, and with names that people give."""
    folder = tmp_path_factory.mktemp("zoo")
    face = cv2.resize(portrait("collins")[:260, 90:350], (256, 256))
    moving = [np.roll(face, 2 * (i % 5), axis=1) for i in range(33)]
    for count in (1, 31, 32, 33):
        write_video(folder / f"{count}_frames.mp4", moving[:count])
    write_video(folder / "no_face.mp4", [np.full((120, 160, 3), 127, np.uint8)] * 40)
    hopper = cv2.resize(portrait("hopper")[90:390, 110:410], (256, 256))
    write_video(folder / "two_people.mp4", [np.hstack([picture, hopper]) for picture in moving])
    # A tag that is not UTF-8, as old cameras write.
    latin = (folder / "33_frames.mp4").read_bytes().replace(b"Lavf", b"La\xe9f")
    (folder / "latin_tag.mp4").write_bytes(latin)
    return folder


def test_a_verdict_says_how_much_was_seen(zoo, models):
    expected = {"1_frames": ("short", 1, 1), "31_frames": ("short", 31, 31)}
    expected |= dict.fromkeys(["32_frames", "33_frames", "latin_tag"], ("ok", 32, 32))
    expected["no_face"] = ("no_face", 32, 0)
    verdicts = p.predict_videos([zoo / f"{name}.mp4" for name in expected], models[:1])
    seen = {one.video.stem: (one.status, one.n_frames, one.n_faces) for one in verdicts}
    assert seen == expected


def test_strategies_run_over_faces_for_each_model_and_then_comes_the_mean(zoo, models):
    verdict = p.predict_video(zoo / "two_people.mp4", models, strategy="max")
    assert len(verdict.faces) == 2 * 64
    assert verdict.p_fake == verdict.faces.groupby("checkpoint").p_fake.max().mean()
    assert verdict.people.n_faces.tolist() == [32, 32]
    theirs = verdict.faces[verdict.faces.face_idx == 1].groupby("checkpoint").p_fake
    assert verdict.people.p_fake[1] == pytest.approx(theirs.max().mean())


def test_a_detector_that_fails_on_a_frame_costs_that_frame_alone(zoo, models, monkeypatch):
    detector = p.shared_detector(p.INFERENCE_THRESHOLDS, p.count_cores())
    whole = detector.detect_resized
    wanted = spread_indices(33, 8)
    ((_, third),) = iterate_frames(zoo / "33_frames.mp4", wanted[2:3])

    def fail_at_third(frames, procedure):
        if any(np.array_equal(frame, third) for frame in frames):
            raise RuntimeError("out of luck")
        return whole(frames, procedure)

    monkeypatch.setattr(detector, "detect_resized", fail_at_third)
    verdict = p.predict_video(zoo / "33_frames.mp4", models, 8)
    assert (verdict.status, verdict.n_faces) == ("detect_error", 7)
    assert f"frame {wanted[2]} (RuntimeError: out of luck)" in verdict.reason


def make_seen(n_faces: int, cuts, seed: int) -> p.Seen:
    """A video of random crops, one a frame."""
    rng, shape = np.random.default_rng(seed), {cut: (cut.size, 9, 3) for cut in cuts}
    crops, rows = [], []
    for frame in range(n_faces):
        crops.append({cut: rng.integers(0, 256, shape[cut], np.uint8) for cut in cuts})
        rows.append((frame, 0.0, 0, 0.0, 0.0, 9.0, 9.0, 1.0))
    return p.Seen("ok", "", 5, pd.DataFrame(rows, columns=p.FACE_COLUMNS), tuple(crops))


@pytest.fixture(scope="module")
def scorers() -> tuple[dict[str, p.Scorer], list[int]]:
    """Two stand-ins that want other crops, and the sizes of the batches that they are given."""
    result, batches = {}, []
    for size in (16, 24):
        model = make_model(size=size)

        def mean_of(crops, size=size):
            assert crops.shape[1:] == (3, size, size)
            batches.append(len(crops))
            return crops.mean(dim=(1, 2, 3)).sigmoid()

        result[f"model {size}"] = p.Scorer(model, mean_of)
    return result, batches


@settings(max_examples=40)
@given(counts=st.lists(st.integers(0, 5), max_size=6), batch=st.integers(1, 7))
def test_batches_span_videos_and_each_gets_the_scores_that_it_gets_alone(scorers, counts, batch):
    models, batches = scorers
    config = PredictConfig(procedure="slides")
    cuts = [p.Cut.of(scorer.model.card, "slides") for scorer in models.values()]
    videos = [(Path(str(n)), make_seen(count, cuts, n)) for n, count in enumerate(counts)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(p.BATCH, "cpu", 1)
        alone = [next(p.score_in_batches([video], models, config)) for video in videos]
        patched.setitem(p.BATCH, "cpu", batch)
        batches.clear()
        together = list(p.score_in_batches(videos, models, config))
    assert [verdict.video for verdict in together] == [path for path, _ in videos]
    for one, other, count in zip(together, alone, counts, strict=True):
        assert (one.status, one.n_faces) == ("ok" if count else "no_face", count)
        assert one.p_fake == (pytest.approx(other.p_fake) if count else None)
        pd.testing.assert_frame_equal(one.faces, other.faces)
    full, rest = divmod(sum(counts), batch)
    assert batches[::2] == batches[1::2] == [batch] * full + [rest] * (rest > 0)


def test_run_ahead_keeps_order_errors_and_its_distance():
    made = []

    def numbers():
        for number in range(10):
            made.append(number)
            yield number
        raise KeyError("last")

    ahead = run_ahead(numbers(), 3)
    for number in range(10):
        assert next(ahead) == number
        assert len(made) <= number + 1 + 3
    with pytest.raises(KeyError, match="last"):
        next(ahead)


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path, monkeypatch):
    """At no time are more than a few decoded frames alive, however many are looked at."""
    pictures, alive = [], []

    def watch(path, wanted, info):
        for frame_idx, picture in iterate_frames(path, wanted, info):
            pictures.append(weakref.ref(picture))
            alive.append(sum(one() is not None for one in pictures))
            yield frame_idx, picture

    monkeypatch.setattr("dfdc_lib.video.iterate_frames", watch)
    write_video(tmp_path / "long.mp4", [np.full((120, 160, 3), 99, np.uint8)] * 120)
    config = PredictConfig(frames=120, procedure="slides")
    assert p.cut_video(tmp_path / "long.mp4", config, [p.Cut(Margin(0.2), 112)]).n_frames == 120
    assert max(alive) <= 24  # of 120: a group in the detector, one that waits, a few decoded ahead


def test_a_window_of_some_seconds_is_looked_at_like_a_video(originals, models):
    """Twelve frames at 25 a second: windows of 0.2 seconds hold five, five and two."""
    video, config = originals[1], PredictConfig(frames=2, every_seconds=0.2)
    assert p.choose_frames(probe(video), config).tolist() == [0, 4, 5, 9, 10, 11]
    verdict = next(p.predict_videos([video], models, config))
    assert verdict.n_frames == 6
    assert verdict.faces.seconds.tolist() == pytest.approx((verdict.faces.frame_idx / 25).tolist())
    windows = verdict.windows
    assert windows.start.tolist() == pytest.approx([0, 0.2, 0.4])
    assert (windows.end - windows.start).tolist() == pytest.approx([0.2] * 3)
    last = verdict.faces[verdict.faces.frame_idx >= 10]
    assert windows.p_fake.iloc[-1] == p.join_models(last, "confident")
    whole = replace(verdict, every_seconds=0.0).windows
    assert whole.p_fake.tolist() == [verdict.p_fake]


def test_who_is_in_the_same_place_after_a_cut_is_someone_else(models, tmp_path):
    face = cv2.resize(portrait("collins")[:320, 100:420], (320, 320))
    other = np.ascontiguousarray(255 - face[..., ::-1])  # the same face in other colours
    other[60:260, 60:260] = face[60:260, 60:260]
    for name, pictures, people in (("cut", [face] * 3 + [other] * 3, 2), ("take", [face] * 6, 1)):
        write_video(tmp_path / f"{name}.mp4", pictures)
        verdict = p.predict_video(tmp_path / f"{name}.mp4", models, n_frames=6)
        assert verdict.n_faces == 6
        assert len(verdict.people) == people
        first = verdict.faces[verdict.faces.face_idx == 0]
        assert first.frame_idx.max() == (2 if people == 2 else 5)


@pytest.mark.parametrize(
    ("n_faces", "width", "told"),
    [(12, 48, []), (11, 48, ["only 11 pictures of faces"]), (12, 47, ["47 pixels wide"])],
)
def test_a_score_from_few_or_small_faces_carries_a_warning(n_faces, width, told):
    rows = {"frame_idx": range(n_faces), "face_idx": 0, "x0": 0.0, "x1": float(width)}
    faces = pd.DataFrame(rows)
    warnings = p.Verdict(Path("v"), "ok", 0.5, n_faces, faces).warnings
    assert len(warnings) == len(told)
    assert all(words in warning for words, warning in zip(told, warnings, strict=True))
    assert p.Verdict(Path("v"), "no_face").warnings == []


def test_the_limits_of_warnings_are_those_that_were_measured():
    assert confident_strategy([1.0] * p.FEW_FACES + [0.5]) == 1
    assert confident_strategy([1.0] * (p.FEW_FACES - 1) + [0.5]) < 1
    table = pd.read_csv(ROOT / "experiments" / "limits.csv").query("kind == 'width'")
    loss = table.set_index("value").against_value
    assert loss[p.SMALL_FACE] > -0.02
    assert (loss[loss.index < p.SMALL_FACE] < -0.1).all()
