"""What is fast for a hundred thousand videos gives what the plain way gives."""

import pandas as pd
import pytest

from benchmarks import scale
from dfdc_lib.dataset import KEY, balance, check_files, pair, read_folds
from dfdc_lib.metadata import assign_folds, read_metadata
from dfdc_lib.ops.pipeline import FOLD_COLUMNS, PLACE_COLUMNS, preprocess
from dfdc_lib.store import parse_face_file


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> scale.World:
    """Fourteen made-up originals and their fakes, made in two steps."""
    world = scale.World(tmp_path_factory.mktemp("scale") / "world")
    world.grow(9)
    world.grow(14)
    return world


@pytest.fixture(scope="module")
def done(world):
    """What preprocessing says of the simulation."""
    return preprocess(world.data, world.work)


@pytest.mark.parametrize("step", [step for step in scale.STEPS if step != "hand out"])
def test_every_step_runs_on_the_simulation(world, done, step):
    """The steps raise where the doctor finds it not healthy, or preprocessing not complete."""
    assert scale.run_step(step, world.root)["seconds"] > 0


@pytest.mark.slow
def test_every_video_is_handed_out_in_a_process_of_its_own(world):
    spent = scale.run_apart("hand out", world.root)
    assert spent["seconds"] > 0
    assert 0.05 < spent["peak_gb"] < 20


def test_folds_are_the_plain_ways(world, done):
    table = read_metadata(world.data)
    table = table.assign(fold=assign_folds(table), x0=770, y0=155, x1=1050, y1=505)
    rows = [
        (*video, *parse_face_file(path.name))
        for video in table.itertuples(index=False)
        for path in world.work.crops(video.video_id).glob("*.png")
    ]
    plain = pd.DataFrame(rows, columns=[*table, "frame_idx", "face_idx"])
    order = ["part", "video_id", "frame_idx", "face_idx"]
    plain = plain.sort_values(order)[FOLD_COLUMNS + PLACE_COLUMNS]
    assert world.work.folds.read_text() == plain.to_csv(index=False)


@pytest.fixture
def rows(world, done) -> pd.DataFrame:
    """Some of the crops, in no order, with gaps in the index, and some of them twice."""
    rows = read_folds(world.work).sample(frac=0.9, random_state=0)
    return pd.concat([rows, rows[:5]])


def test_pairs_are_a_plain_merges_and_balancing_is_the_slides_formula(rows):
    reals, fakes = rows[rows.label == 0], rows[rows.label == 1]
    pd.testing.assert_frame_equal(pair(rows), fakes.merge(reals[KEY], on=KEY))
    plain = pd.concat([reals, fakes.sample(n=len(reals), replace=False, random_state=5)])
    pd.testing.assert_frame_equal(balance(rows, 5), plain)


def test_the_crops_that_are_missing_are_counted_and_the_first_is_named(rows, world):
    check_files(rows, world.work)
    alien = rows[:3].assign(frame_idx=[7, 7, 8])
    told = f"^3 crops .*, e.g. .*/crops/{min(alien.video_id)}/[78]_0.png"
    with pytest.raises(FileNotFoundError, match=told):
        check_files(pd.concat([rows, alien]), world.work)


def test_a_long_table_is_read_as_a_whole(world, done, monkeypatch):
    """It is read in pieces; a table without crops has no piece."""
    read_csv, whole = pd.read_csv, read_folds(world.work)
    in_pieces = {"chunksize": 100}
    monkeypatch.setattr(pd, "read_csv", lambda *args, **given: read_csv(*args, **given | in_pieces))
    pd.testing.assert_frame_equal(read_folds(world.work), whole)
