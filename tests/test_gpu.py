"""What a graphics card will be asked: rehearsed on the CPU; time, failures and wheels."""

import pandas as pd
import pytest
import torch
from conftest import ROOT

from benchmarks.gpu import plan
from benchmarks.gpu.plan import PLAN, Part
from benchmarks.gpu.prepare import WHEELS, pin_versions, prepare
from benchmarks.gpu.setting import Setting


@pytest.mark.slow
def test_every_part_is_rehearsed_on_the_cpu(small_sample, originals, tmp_path, capsys):
    prepare(tmp_path / "gpu", small_sample, originals[:2], families=4)
    given = ["--rehearse", "--folder", str(tmp_path / "gpu"), "--out", str(tmp_path / "tables")]
    assert plan.main(given) == 0, capsys.readouterr().err
    tables = {part.name: pd.read_csv(tmp_path / "tables" / f"{part.name}.csv") for part in PLAN}
    assert all({"machine", "date", "versions"} <= set(table) for table in tables.values())
    checks = tables["correctness"].set_index("check")["differs by"]
    assert checks["tiny in bf16: stopped and resumed"] == 0
    assert 0 < checks["tiny in bf16: p_fake, largest"] < 0.1
    assert len(checks.filter(like="SyncBN")) == 1
    rates = tables["training"].iloc[0]
    assert rates["hours on 1 card"] == pytest.approx(4 * rates["hours on 4 cards"], rel=1e-3)
    seconds = 3600 * rates["hours on 4 cards"] / 75_000  # of a step
    assert rates.ours * seconds == pytest.approx(rates.batch, rel=1e-2)
    assert tables["predict"].networks.tolist() == [1, 1, 1, 7]
    assert tables["encoders"].start.tolist() == ["random"]
    assert list(tables["stages"].stage)[-1] == "score"


def test_the_plan_says_how_long_and_needs_a_card_and_crops(tmp_path, capsys, monkeypatch):
    assert sum(part.share for part in PLAN) == pytest.approx(1)
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert all(f"| {part.name} | {100 * part.share:.0f} % |" in page for part in PLAN)
    with pytest.raises(SystemExit):
        plan.main(["--rehearse", "--folder", str(tmp_path)])
    assert "run `python -m benchmarks gpu-prepare` first" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        plan.main([])
    assert "there is no graphics card here" in capsys.readouterr().err


def test_what_fails_or_takes_too_long_costs_no_other_part_its_table(tmp_path, monkeypatch, capsys):
    allowed = {}

    def endless(setting):
        while setting.has_time():
            yield {"value": 1}

    def broken(setting):
        yield {"value": 2}
        raise RuntimeError("the card is lost")

    def last(setting):
        allowed["rest"] = setting.has_time(60)
        yield {"value": 3}

    parts = [Part("a", "?", 0.001, (endless,)), Part("b", "?", 0.2, (broken, last))]
    monkeypatch.setattr(plan, "PLAN", parts)
    setting = Setting(tmp_path, tmp_path, rehearsal=True)
    assert plan.run_plan(setting, 5, tmp_path) == ["b: broken"]
    assert allowed["rest"]  # what one part leaves goes to the next
    assert pd.read_csv(tmp_path / "a.csv").value.unique().tolist() == [1]
    assert pd.read_csv(tmp_path / "b.csv").value.tolist() == [2, 3]


def test_wheels_are_pinned_for_the_other_machines_python():
    pins = {python: pin_versions(python) for python in ("3.11", "3.12")}
    assert all("==" in pin for pin in pins["3.12"])
    assert [pin.split("==")[0] for pin in pins["3.12"]] == list(WHEELS)
    assert pins["3.11"] != pins["3.12"]  # av
