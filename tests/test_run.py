"""run_all.sh's Python half: what is run, kept, refused and reported."""

from pathlib import Path

import nbformat
import pytest
from conftest import load_runner


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The runner, over a folder with two notebooks of its own."""
    module = load_runner()
    here = tmp_path / "notebooks"
    (here / "profiles").mkdir(parents=True)
    (here / "profiles" / "demo.yaml").write_text("all: {INTERACTIVE: false}\n00_first: {LIMIT: 3}\n")
    write_notebook(here / "00_first.ipynb", "print(f'limit {LIMIT}')")
    write_notebook(here / "01_second.ipynb", "1 / LIMIT")
    (tmp_path / "dfdc_lib").mkdir()
    (tmp_path / "data" / "part_0").mkdir(parents=True)
    (tmp_path / "work" / "data").mkdir(parents=True)  # where the notebooks' artifacts would lie
    (tmp_path / "data" / "part_0" / "metadata.json").write_text('{"a.mp4": {"label": "REAL"}}')
    monkeypatch.setattr(module, "HERE", here)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module.choose_notebooks, "__defaults__", (here,))
    return module


def write_notebook(path: Path, *code: str) -> None:
    parameters = nbformat.v4.new_code_cell("LIMIT: int = 1  # a number", metadata={"tags": ["parameters"]})
    cells = [parameters, *map(nbformat.v4.new_code_cell, code)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


@pytest.fixture
def call(run, tmp_path):
    return lambda *args: run.main(["--data", str(tmp_path / "data"), "--no-site", *args])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--profile", "demi"], "choose among demo"),
        (["--only", "07"], "no notebook 07; choose among 00, 01"),
        (["-p", "LIMTI", "3"], "no parameter 'LIMTI' in these notebooks; choose among LIMIT"),
        (["-p", "LIMIT", "["], "LIMIT has a value that can't be read"),
        (["--data", "/nowhere"], "no such folder: /nowhere"),
    ],
)
def test_a_wrong_call_is_one_line_with_the_choices(call, capsys, args, message):
    assert call(*args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_without_metadata_is_refused(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run.main(["--data", str(tmp_path / "empty")]) == 2
    assert "holds no metadata.json" in capsys.readouterr().err


def test_profile_and_caller_set_parameters(call, tmp_path, capsys):
    assert call("--only", "00") == 0
    executed = tmp_path / "reports" / "demo" / "notebooks" / "00_first.ipynb"
    assert "limit 3" in executed.read_text()
    assert call("--only", "00", "-p", "LIMIT", "8") == 0
    assert "limit 8" in executed.read_text()


def test_what_stands_is_kept_until_something_changes(call, tmp_path, capsys):
    def second_line() -> str:
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("00_first "))

    call("--only", "00")
    assert "kept" not in second_line()
    call("--only", "00")
    assert "kept" in second_line()
    call("--only", "00", "--fresh")
    assert "kept" not in second_line()
    for change in (
        lambda: (tmp_path / "dfdc_lib" / "new.py").write_text("x = 1"),
        lambda: (tmp_path / "data" / "part_0" / "metadata.json").write_text('{"b.mp4": {"label": "REAL"}}'),
        lambda: (tmp_path / "work" / "data").rmdir(),
    ):
        change()
        call("--only", "00")
        assert "kept" not in second_line()


def test_a_page_about_a_run_is_made_again_when_the_run_has_grown(call, tmp_path, capsys):
    path, grown = tmp_path / "notebooks" / "00_first.ipynb", tmp_path / "work" / "data" / "runs" / "3_slides"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "\nSETTINGS: str = 'slides'  # a word"
    notebook.metadata["reads_run"] = "{LIMIT}_{SETTINGS}"
    nbformat.write(notebook, path)
    call("--only", "00")
    grown.mkdir(parents=True)
    for _ in range(2):
        (grown / "metrics.csv").write_text("step\n" + grown.name * len(list(grown.iterdir())))
        capsys.readouterr()
        call("--only", "00")
        assert "kept" not in capsys.readouterr().out
        call("--only", "00")
        assert "kept" in capsys.readouterr().out


def test_a_failure_is_named_and_the_next_run_goes_on_from_there(call, tmp_path, capsys):
    assert call("-p", "LIMIT", "0") == 1
    last = capsys.readouterr().out.splitlines()[-3:]
    assert "01_second.ipynb: ZeroDivisionError: division by zero" in last[0]
    assert (tmp_path / "reports" / "demo" / "notebooks" / "01_second.ipynb").exists()
    assert "half-executed copy" in last[1]
    assert "01_second.ipynb" in last[1]
    write_notebook(tmp_path / "notebooks" / "01_second.ipynb", "1 + LIMIT")
    assert call("-p", "LIMIT", "0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("00_first ") and "kept" in line for line in lines)


def read_page(tmp_path: Path, name: str) -> nbformat.NotebookNode:
    return nbformat.read(tmp_path / "reports" / "demo" / "notebooks" / f"{name}.ipynb", as_version=4)


def test_a_notebook_that_lacks_data_ends_its_page_there_and_the_others_go_on(call, tmp_path, capsys):
    lacks = "print('made')\nfrom dfdc_lib.progress import require\n"
    write_notebook(tmp_path / "notebooks" / "00_first.ipynb", "1", lacks + "require([], 'no fakes are here')", "2 / 0")
    for _ in range(2):  # and it is tried again: data may have come
        assert call() == 0
        told = capsys.readouterr().out
        assert "    ends early: no fakes are here\n" in told
    assert "01_second                       kept" in told
    page = read_page(tmp_path, "00_first")
    assert page.cells[-1].source == "**The rest of this page is left out:** no fakes are here."
    assert [cell.source for cell in page.cells if cell.cell_type == "code"][2:] == ["1"]
    assert "Exception" not in str(page)


def test_a_warning_on_a_page_is_told(call, tmp_path, capsys):
    write_notebook(tmp_path / "notebooks" / "00_first.ipynb", "import warnings\nwarnings.warn('it will change')")
    assert call("--only", "00") == 0
    assert "WARNING on the page of 00_first: " in capsys.readouterr().out


@pytest.mark.parametrize("sample", [True, False])
def test_texts_of_figures_speak_of_the_demo_where_the_data_are_others(call, tmp_path, sample):
    path = tmp_path / "notebooks" / "00_first.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].metadata["mystnb"] = {"image": {"alt": "two people"}}
    nbformat.write(notebook, path)
    if sample:
        (tmp_path / "data" / "sample.json").write_text("{}")
    call("--only", "00")
    texts = [
        cell.metadata.mystnb.image.alt for cell in read_page(tmp_path, "00_first").cells if "mystnb" in cell.metadata
    ]
    assert texts == ["two people" if sample else "In the demo: two people"]


def test_a_sweep_leaves_one_executed_copy_a_value(call, tmp_path, capsys):
    assert call("--only", "00", "--sweep", "LIMIT", "4,5") == 0
    for value in (4, 5):
        executed = tmp_path / "reports" / "demo" / "notebooks" / f"00_first_LIMIT_{value}.ipynb"
        assert f"limit {value}" in executed.read_text()
    assert call("--sweep", "LIMTI", "4,5") == 2
    assert "no parameter 'LIMTI'" in capsys.readouterr().err
