"""run_all.sh's Python half: what is run, kept, refused and reported."""

import re
from pathlib import Path

import nbformat
import pytest
from conftest import load_runner


class Course:
    """The runner, over a folder with two notebooks of its own."""

    def __init__(self, root: Path, capsys, monkeypatch):
        self.root, self.capsys, self.runner = root, capsys, load_runner()
        self.notebooks, self.data = root / "notebooks", root / "data"
        self.executed = root / "reports" / "demo" / "notebooks"
        self.artifacts = root / "work" / "data"  # where the notebooks' artifacts would lie
        for folder in (self.notebooks / "profiles", root / "dfdc_lib", self.data, self.artifacts):
            folder.mkdir(parents=True)
        profile = "all: {INTERACTIVE: false}\n00_first: {LIMIT: 3}\n"
        (self.notebooks / "profiles" / "demo.yaml").write_text(profile)
        (self.data / "metadata.json").write_text('{"a.mp4": {"label": "REAL"}}')
        self.write("00_first", "print(f'limit {LIMIT}')")
        self.write("01_second", "1 / LIMIT")
        monkeypatch.setattr(self.runner, "HERE", self.notebooks)
        monkeypatch.setattr(self.runner, "ROOT", root)
        monkeypatch.setattr(self.runner.choose_notebooks, "__defaults__", (self.notebooks,))

    def write(self, name: str, *code: str, cell=None, **metadata) -> None:
        """code: below the parameters; cell, metadata: what the last cell, the notebook tells."""
        parameters = "LIMIT: int = 1  # one\nSETTINGS: str = 'slides'  # a word"
        cells = [nbformat.v4.new_code_cell(source) for source in (parameters, *code)]
        cells[0].metadata["tags"] = ["parameters"]
        cells[-1].metadata.update(cell or {})
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata | {"kernelspec": kernel})
        nbformat.write(notebook, self.notebooks / f"{name}.ipynb")

    def read(self, name: str) -> nbformat.NotebookNode:
        return nbformat.read(self.executed / f"{name}.ipynb", as_version=4)

    def run(self, options: str = "") -> tuple[int, str, str]:
        """The exit code, and what was printed."""
        code = self.runner.main(["--data", str(self.data), "--no-site", *options.split()])
        printed = self.capsys.readouterr()
        return code, printed.out, printed.err

    def keeps(self, options: str = "", name: str = "00_first") -> bool:
        """A run without failure: does it keep the notebook's page?"""
        code, told, _ = self.run(options)
        assert code == 0
        return re.search(rf"^{name} .*kept", told, re.MULTILINE) is not None


@pytest.fixture
def course(tmp_path, capsys, monkeypatch):
    return Course(tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--profile demi", "choose among demo"),
        ("--only 07", "no notebook 07; choose among 00, 01"),
        ("-p LIMTI 3", "no parameter 'LIMTI' in these notebooks; choose among LIMIT"),
        ("-p LIMIT [", "LIMIT has a value that can't be read"),
        ("--sweep LIMTI 4,5", "no parameter 'LIMTI'"),
        ("--data /nowhere", "no such folder: /nowhere"),
        (f"--data {Path(__file__).parent}", "holds no metadata.json"),
    ],
)
def test_a_wrong_call_is_one_line_with_the_choices(course, options, message):
    code, _, error = course.run(options)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error


def test_profile_and_caller_set_parameters_and_what_stands_is_kept(course):
    """Until a parameter, the library, the data or the artifacts change."""
    assert not course.keeps("--only 00")
    assert "limit 3" in str(course.read("00_first"))
    assert course.keeps("--only 00")
    assert not course.keeps("--only 00 --fresh")
    (course.root / "dfdc_lib" / "new.py").write_text("x = 1")
    assert not course.keeps("--only 00")
    (course.data / "metadata.json").write_text('{"b.mp4": {"label": "REAL"}}')
    assert not course.keeps("--only 00")
    course.artifacts.rmdir()
    assert not course.keeps("--only 00")
    assert not course.keeps("--only 00 -p LIMIT 8")
    assert "limit 8" in str(course.read("00_first"))


def test_a_page_about_a_run_is_made_again_when_the_run_has_grown(course):
    course.write("00_first", "LIMIT", reads_run="{LIMIT}_{SETTINGS}")
    course.run("--only 00")
    grown = course.artifacts / "runs" / "3_slides" / "metrics.csv"
    grown.parent.mkdir(parents=True)
    for text in ("step\n", "step\n1\n"):
        grown.write_text(text)
        assert not course.keeps("--only 00")
        assert course.keeps("--only 00")


def test_a_failure_is_named_and_the_next_run_goes_on_from_there(course):
    code, told, _ = course.run("-p LIMIT 0")
    assert code == 1
    error, where = told.splitlines()[-3:-1]
    assert "01_second.ipynb: ZeroDivisionError: division by zero" in error
    assert "half-executed copy" in where
    assert (course.executed / "01_second.ipynb").exists()
    course.write("01_second", "1 + LIMIT")
    assert course.keeps("-p LIMIT 0")


def test_the_page_of_a_notebook_that_was_renamed_is_no_longer_shown(course):
    course.run()
    (course.notebooks / "01_second.ipynb").rename(course.notebooks / "03_second.ipynb")  # a gap
    assert course.keeps()
    shown = sorted(mark.name for mark in course.executed.glob(".*.made-from"))
    assert shown == [".00_first.made-from", ".03_second.made-from"]


def test_a_notebook_that_lacks_data_ends_its_page_there_and_the_others_go_on(course):
    lacks = "from dfdc_lib.progress import require\nrequire([], 'no fakes are here')"
    course.write("00_first", "1", f"print('made')\n{lacks}", "2 / 0")
    told = course.run()[1]
    assert "    ends early: no fakes are here\n" in told
    assert not course.keeps()  # it is tried again: data may have come
    assert course.keeps(name="01_second")
    page = course.read("00_first")
    assert page.cells[-1].source == "**The rest of this page is left out:** no fakes are here."
    assert [cell.source for cell in page.cells if cell.cell_type == "code"][2:] == ["1"]
    assert "Exception" not in str(page)


@pytest.mark.parametrize("sample", [True, False])
def test_texts_of_figures_speak_of_the_demo_where_the_data_are_others(course, sample):
    course.write("00_first", "LIMIT", cell={"mystnb": {"image": {"alt": "two people"}}})
    if sample:
        (course.data / "sample.json").write_text("{}")
    course.run("--only 00")
    told = course.read("00_first").cells[-1].metadata.mystnb.image.alt
    assert told == ("two people" if sample else "In the demo: two people")


def test_a_warning_on_a_page_is_told_and_a_sweep_leaves_one_executed_copy_a_value(course):
    warn = "import warnings\nwarnings.warn('it will change')"
    course.write("00_first", f"print(f'limit {{LIMIT}}')\n{warn}")
    code, told, _ = course.run("--only 00 --sweep LIMIT 4,5")
    assert code == 0
    assert "WARNING on the page of 00_first" in told
    for value in (4, 5):
        assert f"limit {value}" in str(course.read(f"00_first_LIMIT_{value}"))
