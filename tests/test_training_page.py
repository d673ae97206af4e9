"""Notebooks 07 and 08 and the runs on the disk: what is trained, and what is only read."""

import re
from collections import defaultdict
from types import SimpleNamespace

import nbformat
import pytest
from matplotlib.figure import Figure
from test_notebooks import FOLDER

from dfdc_lib.store import write_json


def code_of(name: str) -> dict[int, list[str]]:
    """The code cells of each section of a notebook; 0: those before the first."""
    found, number = defaultdict(list), 0
    for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells:
        number = int(next(iter(re.findall(r"^## (\d+) · ", cell.source, re.MULTILINE)), number))
        if cell.cell_type == "code":
            found[number].append(cell.source)
    return found


@pytest.fixture
def train_page(work_copy):
    """Runs what trains in notebook 07; `train` only notes how it was called."""
    called = []

    def train(work, config, name, pretrained=False, **options) -> SimpleNamespace:
        called.append(SimpleNamespace(name=name, config=config, pretrained=pretrained, **options))
        work.run(name).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(metrics=None, losses=None)

    def run(**parameters) -> list[SimpleNamespace]:
        code, names = code_of("07_training"), {}
        *imports, given, derived = code[0]
        for source in (*imports, given):
            exec(source, names)
        plots = SimpleNamespace(plot_training=lambda *_: Figure().subplots().figure)
        names |= {"WORK": str(work_copy.root), "train": train, "plots": plots} | parameters
        for source in (derived, *code[6], code[7][0]):
            exec(source, names)
        return called

    return run


def test_a_run_of_several_processes_is_only_read(train_page, work_copy, capsys):
    write_json(work_copy.run("lite0_demo_0_0") / "config.json", {"processes": 4})
    assert not train_page()
    assert "lite0_demo_0_0 was trained by 4 processes: it is loaded" in capsys.readouterr().out


def test_the_steps_reach_the_line_that_is_printed(train_page, capsys):
    train_page(SETTINGS="slides", ENCODER="b7", STEPS=100_500, TRAIN=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "--run b7_slides_0_0 --encoder b7 " in told
    assert "--steps 100500 " in told
    train_page(STEPS=300, TRAIN=False)  # the demo's steps are not the slides'
    assert "--steps 75000 " in capsys.readouterr().out
    with pytest.raises(ValueError, match="SETTINGS must be one of demo, slides, got 'slide'"):
        train_page(SETTINGS="slide")


@pytest.mark.parametrize("steps", [1, 2, 5, 300])
def test_few_steps_are_steps_too(train_page, steps):
    interrupted, again = train_page(STEPS=steps, ENCODER="tiny")
    assert interrupted.config.steps == again.config.steps == steps
    assert interrupted.save_every == max(steps // 10, 1)


def test_pretrained_and_from_scratch_differ_in_nothing_else(train_page, capsys):
    *pretrained, scratch = train_page()
    assert [call.pretrained for call in pretrained] == [True, True]
    assert (scratch.pretrained, scratch.config) == (False, pretrained[0].config)
    assert scratch.name == f"from_scratch_{pretrained[0].name}"
    capsys.readouterr()
    assert not any(call.pretrained for call in train_page(ENCODER="tiny")[3:])  # no such weights
    assert "not compared: that takes a run of lite0, lite1, lite2" in capsys.readouterr().out
