"""The full sample: nothing that must not tell a fake does, and a small encoder learns what may."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from dfdc_lib.sample import make_sample

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = pd.read_csv(ROOT / "experiments" / "sample_audit.csv")


@pytest.fixture(scope="module")
def audit(tmp_path_factory) -> pd.DataFrame:
    from experiments.sample_audit import audit

    return audit(make_sample(tmp_path_factory.mktemp("audit") / "sample"))


def check(table: pd.DataFrame) -> None:
    table = table.set_index("check")
    learned = [name for name in table.index if name.startswith(("whole", "…"))]
    for name, line in table.drop(learned).iterrows():
        assert line.auc_low <= 0.5 <= line.auc_high, name
    whole = table.loc["whole crop, tiny encoder"]
    assert whole.auc >= 0.8
    assert whole.log_loss < 0.6
    assert whole.auc_low > table.loc["face blanked, tiny encoder"].auc_high
    assert len(learned) == 4


def test_the_committed_table_keeps_its_promises():
    check(COMMITTED)
    assert COMMITTED.loc[COMMITTED.seconds_to_train.notna(), "seconds_to_train"].max() <= 90


@pytest.mark.slow
def test_the_sample_is_fair_and_can_be_learned(audit):
    check(audit)


@pytest.mark.slow
def test_the_full_sample_is_small_enough(tmp_path):
    folder = make_sample(tmp_path / "sample", n_parts=1, originals_per_part=4)
    total = sum(p.stat().st_size for p in folder.rglob("*.mp4"))
    assert total < 25e6
    assert json.loads((folder / "sample.json").read_text())["settings"]["n_frames"] >= 40


@pytest.mark.slow
def test_two_processes_make_the_same_bytes(tmp_path):
    for name, workers in (("a", 1), ("b", 2)):
        call = f"make_sample({str(tmp_path / name)!r}, 1, 4, 8, workers={workers})"
        subprocess.run([sys.executable, "-c", f"from dfdc_lib.sample import make_sample; {call}"], check=True, cwd=ROOT)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.mp4"))
    assert len(files) == 12
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
