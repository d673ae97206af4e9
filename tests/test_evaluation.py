"""The field's measures against scikit-learn and by hand, their intervals, whose truth is whose."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as peer
from test_predict import make_model

from dfdc_lib.config import PredictConfig
from dfdc_lib.metadata import read_metadata
from dfdc_lib.model import save_checkpoint
from dfdc_lib.ops import evaluation, scaling
from dfdc_lib.ops.evaluation import METRICS, draw_intervals, evaluate, measure
from dfdc_lib.ops.evaluation_page import make_card, write_evaluation
from dfdc_lib.ops.leaks import LEAK_COLUMNS, find_leaks, hash_video
from dfdc_lib.ops.results import match_truth
from dfdc_lib.ops.submission import describe_call, journal_of, write_results
from dfdc_lib.predict import NO_FACES, Verdict, load_models
from dfdc_lib.rehearsal.film import write_video
from dfdc_lib.store import DamagedFile, Journal, digest_file
from dfdc_lib.video import probe, read_frames

SCORES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=4, max_size=40)
SCORES = SCORES.filter(lambda pairs: len({label for label, _ in pairs}) == 2)


def split_pairs(pairs) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and scores with many ties."""
    labels, steps = np.array(pairs).T
    return labels, steps / 8


def by_name(labels, p_fake, weights=None, threshold=0.5) -> dict[str, float]:
    weights = np.ones(len(labels)) if weights is None else weights
    return dict(zip(METRICS, measure(labels, p_fake, threshold)(weights).tolist(), strict=True))


@given(SCORES, st.integers(0, 2**20))
def test_each_measure_is_scikit_learns_also_weighted(pairs, seed):
    labels, p_fake = split_pairs(pairs)
    drawn = np.random.default_rng(seed).integers(0, 3, len(labels)).astype(float)
    for weights in (np.ones(len(labels)), drawn):
        if len(np.unique(labels[weights > 0])) < 2:
            continue
        found, how = by_name(labels, p_fake, weights), {"sample_weight": weights}
        assert found["AUC"] == pytest.approx(peer.roc_auc_score(labels, p_fake, **how))
        assert found["AP"] == pytest.approx(peer.average_precision_score(labels, p_fake, **how))
        assert found["accuracy"] == pytest.approx(peer.accuracy_score(labels, p_fake >= 0.5, **how))
        assert found["Brier"] == pytest.approx(peer.brier_score_loss(labels, p_fake, **how))
        kept = np.clip(p_fake, 1e-15, 1 - 1e-15)
        assert found["log loss"] == pytest.approx(peer.log_loss(labels, kept, **how), rel=1e-4)


@given(SCORES)
def test_at_the_equal_error_rate_false_alarms_are_as_many_as_misses(pairs):
    """scikit-learn's ROC, its points joined by lines, passes through (EER, 1 - EER)."""
    labels, p_fake = split_pairs(pairs)
    alarms, found, _ = peer.roc_curve(labels, p_fake, drop_intermediate=False)
    eer = by_name(labels, p_fake)["EER"]
    at = [
        a + (b - a) * share
        for a, b, c, d in zip(alarms, alarms[1:], found, found[1:], strict=False)
        if (step := b - a + d - c) and 0 <= (share := (1 - a - c) / step) <= 1
    ]
    assert min(abs(np.array(at) - eer)) < 1e-9


def test_ten_scores_by_hand():
    labels = np.array([1, 1, 0, 1, 0, 1, 1, 0, 0, 0])
    p_fake = np.array([0.95, 0.9, 0.85, 0.7, 0.6, 0.55, 0.4, 0.3, 0.2, 0.1])
    found = by_name(labels, p_fake, threshold=0.65)
    assert found["AUC"] == pytest.approx(20 / 25)
    assert found["EER"] == pytest.approx(0.4)  # 0.6: two of five reals reach it, two fakes do not
    assert found["AP"] == pytest.approx((1 + 1 + 3 / 4 + 4 / 6 + 5 / 7) / 5)
    assert (found["accuracy"], found["false alarms"], found["found"]) == (0.7, 0.2, 0.6)


def test_where_a_class_is_absent_what_needs_it_is_unknown():
    found = by_name(np.ones(3), np.array([0.2, 0.6, 0.9]))
    assert [m for m in METRICS if np.isnan(found[m])] == ["AUC", "EER", "AP", "false alarms"]
    assert found["accuracy"] == pytest.approx(2 / 3)
    unknown = by_name(np.array([0, 1]), np.array([0.2, 0.6]), threshold=float("nan"))
    assert [m for m in METRICS if np.isnan(unknown[m])] == ["false alarms", "found"]


def test_intervals_are_those_of_a_bootstrap_that_draws_every_row():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(20), 3)
    labels = np.tile([0, 1, 1], 20)
    p_fake = np.clip(rng.normal(0.4 + 0.2 * labels, 0.25), 0.01, 0.99)
    low, high = draw_intervals(measure(labels, p_fake), groups, 200)
    oracles = {"AUC": peer.roc_auc_score, "AP": peer.average_precision_score}
    oracles["Brier"] = peer.brier_score_loss
    rng = np.random.default_rng(0)
    draws = [[np.flatnonzero(groups == g) for g in rng.integers(20, size=20)] for _ in range(200)]
    rows = [np.concatenate(members) for members in draws]
    for name, metric in oracles.items():
        brute = np.percentile([metric(labels[i], p_fake[i]) for i in rows], [2.5, 97.5])
        place = METRICS.index(name)
        assert (low[place], high[place]) == pytest.approx(brute)
    low, _ = draw_intervals(measure(labels, p_fake), np.zeros(60), 10)
    assert np.isnan(low).all()


def test_a_threshold_keeps_false_alarms_at_the_rate():
    reals = pd.DataFrame({"label": 0, "score": [0.1, 0.2, 0.3, 0.4, 0.5, 0.5]})
    for rate, alarms in ((0, 0), (0.1, 0), (1 / 6, 0), (1 / 3, 2), (0.5, 3), (1, 6)):
        threshold = evaluation.choose_threshold(reals, rate)
        assert (reals.score >= threshold).sum() == alarms
    assert np.isnan(evaluation.choose_threshold(reals.assign(label=1), 0.1))
    for wrong in (-1, 7, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            evaluate([Path("x")], [Path("y")], wrong)


@pytest.mark.parametrize("kind", ["temperature", "platt"])
def test_scaling_finds_the_slope_that_was_put_in(kind):
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-logit))).astype(int)
    too_sure = 1 / (1 + np.exp(-(3 * logit + (1.5 if kind == "platt" else 0))))
    slope, offset = scaling.fit_scaling(kind, labels, too_sure)
    assert slope == pytest.approx(1 / 3, abs=0.02)
    assert offset == pytest.approx(-0.5 if kind == "platt" else 0, abs=0.06)
    separated = scaling.fit_scaling(kind, np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]))
    assert np.isfinite(separated).all()
    with pytest.raises(ValueError, match="fakes and reals, got 2 and 0"):
        scaling.fit_scaling(kind, np.ones(2), np.array([0.1, 0.2]))


def truth_of(*names: str) -> pd.DataFrame:
    paths = [os.path.abspath(name) for name in names]
    return pd.DataFrame({"file": names, "path": paths})


def test_labels_are_found_by_the_longest_end_that_fits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    videos = ["d/a/x.mp4", "d/b/x.mp4", "d/b/y.mp4"]
    first = ["a/x.mp4", "x.mp4", f"../{tmp_path.name}/d/a/x.mp4", str(tmp_path / videos[0])]
    for given_names in (videos, [os.path.abspath(video) for video in videos]):
        for name in first:
            truth = truth_of(name, "./b/x.mp4", "y.mp4")
            assert match_truth(given_names, truth).tolist() == [0, 1, 2]
        with pytest.raises(ValueError, match=r"a/x\.mp4 and .*b/x\.mp4 share one label, x\.mp4"):
            match_truth(given_names, truth_of("x.mp4", "y.mp4"))
        assert match_truth(given_names, truth_of("c/x.mp4", "y.mp4")).tolist() == [-1, -1, 1]
    assert match_truth(["x.mp4"], truth_of("part_0/x.mp4", "part_0/y.mp4")).tolist() == [0]
    with pytest.raises(ValueError, match=r"x\.mp4 may be any of .*0/x.mp4, .*1/x.mp4"):
        match_truth(["x.mp4"], truth_of("part_0/x.mp4", "part_1/x.mp4"))


@pytest.fixture(scope="module")
def scored(small_sample, tmp_path_factory) -> Path:
    """Results of two networks, that learned "one" and "other", over a sample and a text file."""
    folder = tmp_path_factory.mktemp("scored")
    videos = [small_sample / file for file in read_metadata(small_sample).file]
    rng = np.random.default_rng(0)
    for name in ("one", "other"):
        path, out = folder / f"{name}.pt", folder / name / "s.csv"
        save_checkpoint(path, make_model(trained_on=name))
        verdicts = [Verdict(folder / "broken.mp4", "unreadable")]
        for video in videos:
            faces = pd.DataFrame(0, range(4), NO_FACES.columns).assign(checkpoint=str(path))
            faces["frame_idx"], faces["face_idx"] = [0, 0, 9, 9], [0, 1, 0, 1]
            faces["p_fake"] = rng.random(4)
            verdicts.append(Verdict(video, "ok", faces.p_fake.mean(), 2, faces))
        out.parent.mkdir()
        call = describe_call(load_models([path], PredictConfig(backend="torch")), PredictConfig())
        Journal(journal_of(out)).append([json.dumps(call)])
        write_results(verdicts, out, fallback=0.5)
    return folder


def lines_of(found, **where) -> pd.DataFrame:
    table = found.table
    for column, value in where.items():
        table = table[table[column] == value]
    return table.set_index("metric")


def test_every_level_method_and_count_of_a_result(scored, small_sample):
    found = evaluate([scored / "one"], [small_sample])
    assert any("1 videos without a label" in note for note in found.notes)
    assert set(found.table.network) == {"one (" + "/".join((scored / "one.pt").parts[-2:]) + ")"}
    assert set(found.table.level) == {"video", "mean of frames", "frame"}
    truth, scores = found.truth, pd.read_csv(scored / "one" / "s.csv").set_index("filename").label
    names = [Path(file).name for file in truth.file]
    whole = lines_of(found, level="video", method="all")
    assert whole.value["AUC"] == pytest.approx(peer.roc_auc_score(truth.label, scores[names]))
    assert (whole.videos["AUC"], whole.coverage["AUC"]) == (len(truth), 1)
    for method in set(truth.method) - {""}:
        some = truth[(truth.label == 0) | (truth.method == method)]
        expected = peer.brier_score_loss(some.label, scores[[Path(f).name for f in some.file]])
        of_method = lines_of(found, level="video", method=method)
        assert of_method.value["Brier"] == pytest.approx(expected)
    faces = pd.read_parquet(scored / "one" / "predictions.parquet")
    frames = faces.groupby(["video", "frame_idx"]).p_fake.mean()
    labels = dict(zip(names, truth.label, strict=True))
    frame = lines_of(found, level="frame", method="all")
    of_frames = peer.roc_auc_score([labels[video] for video, _ in frames.index], frames)
    assert frame.value["AUC"] == pytest.approx(of_frames)
    assert frame.scores["AUC"] == len(frames)


def test_what_a_reader_must_know_is_noted(scored, small_sample, tmp_path):
    few = [Path(file).name for file in read_metadata(small_sample).file[:4]]
    rows = "\n".join(f"{name},{number % 2}" for number, name in enumerate([*few, "else.mp4"]))
    (tmp_path / "one.csv").write_text(f"filename,label\n{rows}\n")
    notes = "\n".join(evaluate([scored / "one"], [tmp_path / "one.csv"]).notes)
    assert "9 videos without a label are left out" in notes
    assert "it scored 4 of the 5 videos of one" in notes
    assert "trained on one, and may have learned some of these videos" in notes
    assert "one names no originals, so its intervals count each video by itself" in notes


def test_one_threshold_for_all_sets_also_for_one_without_that_split(scored, small_sample, tmp_path):
    table = read_metadata(small_sample)
    first, second = table[table.part == 0], table[table.part == 1]
    about = {"filename": first.file, "label": first.label, "original_id": first.original_id}
    pd.DataFrame(about | {"split": ["val"] * 3 + ["test"] * 3}).to_csv(tmp_path / "a.csv")
    about = {"filename": second.file, "label": second.label}
    pd.DataFrame(about).to_csv(tmp_path / "b.csv")
    labels = [tmp_path / "a.csv", tmp_path / "b.csv"]
    found = evaluate([scored / "one"], labels, fit_on="val")
    lines = lines_of(found, level="video")
    assert lines.threshold.nunique() == 1
    assert lines.loc["found"].value.notna().all()
    assert set(found.table.videos) == {3, 6, 9}
    done = evaluate([scored / "one"], labels, 0.05, "val", "platt")
    assert "scaled" in set(done.table.level)
    Path(f"{scored / 'one.pt'}.scaling.json").unlink()


def test_another_programs_submission_has_no_frames(tmp_path):
    (tmp_path / "labels.csv").write_text("filename,label,split\na.mp4,1,x\nb.mp4,0,x\nc.mp4,0,y\n")
    (tmp_path / "theirs.csv").write_text("filename,label\na.mp4,0.9\nb.mp4,0.2\nc.mp4,0.1\n")
    found = evaluate([tmp_path / "theirs.csv"], [tmp_path / "labels.csv"], fit_on="y")
    assert set(found.table.level) == {"video"}
    assert lines_of(found).value["AUC"] == 1
    assert found.table.scores.unique() == [2]
    assert found.table.threshold.iloc[0] == pytest.approx(0.1)
    wrong = {"video,score\na,1\n": "not a submission", "filename,label\na,7\n": "0, 1"}
    for text, message in (wrong | {"filename,label\n": "no scores"}).items():
        (tmp_path / "theirs.csv").write_text(text)
        with pytest.raises(DamagedFile, match=message):
            evaluate([tmp_path / "theirs.csv"], [tmp_path / "labels.csv"])
    (tmp_path / "theirs.csv").write_text("filename,label\nz.mp4,0.5\n")
    with pytest.raises(ValueError, match=r"no video of .*theirs.csv has a label, e\.g\. z\.mp4"):
        evaluate([tmp_path / "theirs.csv"], [tmp_path / "labels.csv"])


def test_a_foreign_submission_beside_ours_inherits_nothing(scored, small_sample, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(scored / "one", folder)
    ours = pd.read_csv(folder / "s.csv")
    ours.assign(label=0.5).to_csv(folder / "theirs.csv", index=False)
    found = evaluate([folder / "theirs.csv"], [small_sample])
    assert set(found.table.level) == {"video"}
    assert lines_of(found, method="all").value["AUC"] == 0.5
    assert evaluate([folder], [small_sample]).table.result[0] == str(folder / "s.csv")


def test_scaling_is_kept_beside_the_checkpoint_and_used_again(scored, small_sample, tmp_path):
    table = read_metadata(small_sample)
    splits = ["val" if part == 0 else "test" for part in table.part]
    labels = pd.DataFrame({"filename": table.file, "label": table.label, "split": splits})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    given = ([scored / "one"], [tmp_path / "labels.csv"])
    before = digest_file(scored / "one.pt")
    with pytest.raises(ValueError, match="--fit-on val"):
        evaluate(*given, scaling="platt")
    with pytest.raises(ValueError, match="got 'vla' of test, val"):
        evaluate(*given, fit_on="vla")
    found = evaluate(*given, fit_on="val", scaling="platt")
    kept = Path(f"{scored / 'one.pt'}.scaling.json")
    about = json.loads(kept.read_text())
    assert about["videos"] == splits.count("val") == len(table) - found.table.videos.iloc[0]
    assert digest_file(scored / "one.pt") == before
    again = evaluate(*given)
    assert any("an earlier scaling is used, fitted on val" in note for note in again.notes)
    levels = {level: lines_of(again, level=level).value for level in ("video", "scaled")}
    if about["slope"] > 0:
        assert levels["scaled"]["AUC"] == pytest.approx(levels["video"]["AUC"])
    assert levels["scaled"]["log loss"] != levels["video"]["log loss"]
    assert "scaled" not in set(evaluate([scored / "other"], given[1]).table.level)
    kept.write_text(json.dumps(about | {"checkpoints": ["another"]}))
    assert "scaled" not in set(evaluate(*given).table.level)
    kept.unlink()


def test_the_card_has_a_cell_for_each_training_and_test_set(scored, small_sample, tmp_path):
    rows = read_metadata(small_sample)
    (tmp_path / "second.csv").write_text("filename,label\nbroken.mp4,1\n")
    found = evaluate([scored / "one", scored / "other"], [small_sample, tmp_path / "second.csv"])
    card = make_card(found.table)
    assert list(card.columns) == ["all", small_sample.resolve().name, "second"]
    assert [name.split(" (")[0] for name in card.index] == ["one", "other"]
    n_originals = rows.original_id.nunique()
    assert f"100% of {len(rows)} videos, {n_originals} originals" in card.iloc[0, 1]
    assert "; 0% of 1 videos" in card.iloc[0, 2]  # a fallback is no score
    leaks = pd.DataFrame([("a", "<b>.mp4", "c", "d.mp4", "equal bytes")], columns=LEAK_COLUMNS)
    page = write_evaluation(found, tmp_path / "page", 0.05, "", (leaks, 0)).read_text()
    assert ">nan" not in page
    assert "&lt;b&gt;.mp4" in page
    assert page.count("<img") == 2
    stored = json.loads((tmp_path / "page" / "evaluation.json").read_text())
    table = pd.read_csv(tmp_path / "page" / "evaluation.csv")
    assert len(stored["rows"]) == len(found.table) == len(table)
    with pytest.raises(ValueError, match="given twice"):
        evaluate([scored / "one"] * 2, [small_sample])


def test_an_original_under_another_name_codec_and_size_is_found(small_sample, tmp_path):
    reals = read_metadata(small_sample).query("label == 0").file.tolist()
    copy, encoded = tmp_path / "copy.mp4", tmp_path / "encoded.mp4"
    copy.write_bytes((small_sample / reals[0]).read_bytes())
    info = probe(small_sample / reals[1])
    frames = read_frames(small_sample / reals[1], range(info.n_frames), info)
    half = (info.width // 4 * 2, info.height // 4 * 2)
    write_video(encoded, (cv2.resize(picture, half) for _, picture in frames), 28, "hevc")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    ours = [("ours", file, str(small_sample / file), 0) for file in reals]
    theirs = [("theirs", path.name, str(path), 0) for path in (copy, encoded, broken)]
    truth = pd.DataFrame([*ours, *theirs], columns=["data_set", "file", "path", "label"])
    leaks, unreadable = find_leaks(truth)
    assert unreadable == 1
    found = set(leaks[["file", "other_file", "how"]].itertuples(index=False, name=None))
    expected = {(reals[0], "copy.mp4", "equal bytes"), (reals[1], "encoded.mp4", "equal pictures")}
    assert found == expected
    assert hash_video(broken) == [0, 0, 0]
