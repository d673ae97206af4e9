"""What was made fast for a hundred thousand videos gives what the plain way gives; and the simulation is true."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import scale
from dfdc_lib.dataset import KEY, balance, check_files, pair, read_folds
from dfdc_lib.metadata import assign_folds, read_metadata
from dfdc_lib.paths import DamagedFile, list_faces, parse_face_file
from dfdc_lib.preprocess import FOLD_COLUMNS, preprocess, write_folds


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> scale.World:
    """Fourteen made-up originals and their fakes, made in two steps."""
    world = scale.World(tmp_path_factory.mktemp("scale") / "world")
    world.grow(9)
    world.grow(14)
    return world


@pytest.mark.parametrize("step", sorted(scale.STEPS, key=lambda step: step != "write_folds"))
def test_every_step_runs_on_the_simulation(world, step):
    """The doctor finds it healthy, and preprocessing current: both steps raise where they do not."""
    spent = scale.run_step(step, world.root)
    assert spent["seconds"] > 0
    assert 0.05 < spent["peak_gb"] < 20


def test_preprocessing_finds_the_simulation_complete(world):
    done = preprocess(world.data, world.work)
    assert set(done.actions.index.get_level_values("action")) == {"kept"}
    assert set(done.status.status) == {"ok"}
    assert done.folds.startswith(f"{30 * len(read_metadata(world.data))} crops; 14 parts in 14 folds")


def test_the_simulation_has_the_challenges_numbers():
    families = list(scale.families(0, scale.N_ORIGINALS))
    names = [name for _, original, fakes in families for name in (original, *fakes)]
    assert len(set(names)) == len(names) == 119_154
    assert {part for part, _, _ in families} == set(range(50))


def test_a_picture_gets_a_new_copy_before_it_has_too_many_names(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "MAX_LINKS", 4)
    (tmp_path / "picture").write_bytes(b"x")
    linker = scale.Linker(tmp_path / "picture")
    for number in range(20):
        linker.link(str(tmp_path / str(number)))
    assert all((tmp_path / str(number)).read_bytes() == b"x" for number in range(20))
    assert max(path.stat().st_nlink for path in tmp_path.iterdir()) <= 5


def test_folds_are_the_plain_ways(world):
    table = read_metadata(world.data)
    table = table.assign(fold=assign_folds(table))
    rows = [
        video | dict(zip(("frame_idx", "face_idx"), parse_face_file(path), strict=True))
        for video in table.to_dict("records")
        for path in world.work.crops(video["video_id"]).glob("*.png")
    ]
    plain = pd.DataFrame(rows, columns=FOLD_COLUMNS).sort_values(["part", "video_id", "frame_idx", "face_idx"])
    write_folds(world.work, read_metadata(world.data), scale.CONFIG)
    assert world.work.folds.read_text() == plain.to_csv(index=False)


@pytest.fixture
def rows(world) -> pd.DataFrame:
    """Crops of which some are not there, in no order, with a gap in the index, and one of them twice."""
    write_folds(world.work, read_metadata(world.data), scale.CONFIG)
    rows = read_folds(world.work).sample(frac=0.9, random_state=0)
    return pd.concat([rows, rows[:5]])


def test_pairs_are_a_plain_merges(rows):
    reals = rows[rows.label == 0][KEY].assign(real_id=lambda reals: reals.original_id)
    pd.testing.assert_frame_equal(pair(rows), rows[rows.label == 1].merge(reals, on=KEY))


def test_balancing_is_the_slides_formula(rows):
    reals, fakes = rows[rows.label == 0], rows[rows.label == 1]
    plain = pd.concat([reals, fakes.sample(n=len(reals), replace=False, random_state=5)])
    pd.testing.assert_frame_equal(balance(rows, 5), plain)


def test_the_crops_that_are_missing_are_counted_and_the_first_is_named(rows, world):
    check_files(rows, world.work)
    alien = rows[:3].assign(frame_idx=[7, 7, 8])
    first = min(alien.video_id)
    with pytest.raises(FileNotFoundError, match=f"^3 crops .*, such as .*/crops/{first}/[78]_0.png"):
        check_files(pd.concat([rows, alien]), world.work)


def test_a_long_table_is_read_as_a_whole(world, monkeypatch):
    """It is read piece by piece; also one without crops, which has no piece."""
    write_folds(world.work, read_metadata(world.data), scale.CONFIG)
    names = dict.fromkeys(["video_id", "original_id", "file"], str)
    whole = pd.read_csv(world.work.folds, dtype=names, keep_default_na=False)
    read_csv = pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda *args, **given: read_csv(*args, **(given | {"chunksize": 100})))
    pd.testing.assert_frame_equal(read_folds(world.work), whole)
    write_folds(world.work, read_metadata(world.data), scale.PreprocessConfig(every=3))
    assert list(read_folds(world.work)) == FOLD_COLUMNS
    assert read_folds(world.work).empty


def test_faces_are_listed_in_order_and_strangers_refused(tmp_path):
    for name in ("100_0.png", "20_1.png", "20_0.png", "notes.txt"):
        (tmp_path / name).touch()
    assert list_faces(tmp_path) == [(20, 0), (20, 1), (100, 0)]
    assert list_faces(tmp_path / "gone") == list_faces(tmp_path / "notes.txt") == []
    (tmp_path / "best.png").touch()
    with pytest.raises(DamagedFile, match=f"{tmp_path}/best.png"):
        list_faces(tmp_path)


def test_the_page_has_each_step_and_the_figure_is_drawn(tmp_path):
    lines = [
        {"step": step, "videos": n, "seconds": n / 1000 + i, "cpu_seconds": n / 1000, "peak_gb": 1 + i / 10}
        for n in (100, 800)
        for i, step in enumerate(scale.STEPS)
    ]
    scale.write_site_table(pd.DataFrame(lines), tmp_path / "scale.csv")
    page = pd.read_csv(tmp_path / "scale.csv", dtype=str)
    assert page.step.tolist() == list(scale.STEPS)
    assert set(page["grows with the videos, to the power of"]) == {"1.0"}
    scale.draw(pd.DataFrame(lines), tmp_path / "scale.png")
    assert np.frombuffer((tmp_path / "scale.png").read_bytes()[16:24], ">u4").tolist() == [1065, 1200]
