"""Every notebook keeps the course's form."""

import ast
import re
import statistics
from pathlib import Path

import nbformat
import pytest
import yaml

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook, tag: str = "") -> list:
    """The cells of code; with a tag, those that carry it."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if not tag or tag in cell.metadata.get("tags", [])]


@pytest.fixture
def code(notebook) -> list[str]:
    return [cell.source for cell in code_cells(notebook)]


@pytest.fixture
def prose(notebook) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_committed_without_outputs(notebook):
    assert not [cell for cell in code_cells(notebook) if cell.outputs or cell.execution_count]


def test_a_page_is_short(notebook, prose):
    assert len(notebook.cells) <= 60
    assert len(prose.split()) <= 2_200


def test_cells_are_short_and_explained(notebook, code):
    lengths = [len(source.splitlines()) for source in code]
    assert statistics.median(lengths) <= 6
    assert max(lengths) <= 25
    wide = [line for source in code for line in source.splitlines() if len(line) > 88]
    assert not wide, "code must not scroll sideways on the site"
    kinds = "".join(cell.cell_type[0] for cell in notebook.cells)
    assert "ccc" not in kinds, "more than two code cells in a row without prose"


def test_parameters_are_typed_literals_with_a_comment(notebook):
    (cell,) = code_cells(notebook, "parameters")
    for line, node in zip(cell.source.splitlines(), ast.parse(cell.source).body, strict=True):
        assert isinstance(node, ast.AnnAssign), line
        ast.literal_eval(node.value)
        assert "  # " in line, line


def test_it_opens_with_a_question_and_closes_with_a_summary(notebook, prose):
    first = notebook.cells[0].source
    assert re.match(r"# .*\?", first)
    assert "**You will**" in first
    assert "| reads | writes |" in first
    assert "## Check your understanding" in prose
    assert 4 <= prose.count("<details>") <= 6
    assert notebook.cells[-1].source.startswith("## Summary")


def test_profiles_name_real_notebooks_and_parameters():
    for profile in (FOLDER / "profiles").glob("*.yaml"):
        values = yaml.safe_load(profile.read_text())
        for name in set(values) - {"all"}:
            notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
            (cell,) = code_cells(notebook, "parameters")
            known = {node.target.id for node in ast.parse(cell.source).body}
            assert set(values[name]) <= known, profile


def test_a_caption_below_every_picture_says_whose_it_is(code, prose):
    """In code, which knows the data; words would call any data set's people synthetic."""
    # answers: a table in colours
    draws = re.compile(r"show_pictures\(|contact_sheet\(|\.imshow\((?!answers)")
    assert not [text for text in code if draws.search(text) and "plots.caption(" not in text]
    allowed = "(?!: a face swapped onto a public-domain portrait; steps)"
    assert not re.search(rf"\*Synthetic{allowed}", prose)


def test_a_cell_that_draws_says_what_its_picture_shows(notebook):
    drawing = [
        c for c in code_cells(notebook) if re.search(r"^\w.* = plt\.subplots\(", c.source, re.M)
    ]
    assert not [c.source for c in drawing if not c.metadata.get("mystnb", {}).get("image", {})]


def test_the_work_folder_that_is_named_is_the_one_that_is_used(code):
    """`--work` sets WORK, and the data folder may be one where nobody can write."""
    everything = "\n".join(code)
    chosen = "WorkFolder(Path(WORK)) if WORK else WorkFolder.beside(data)"
    assert ("WorkFolder" in everything) == (chosen in everything)
    assert everything.count("WorkFolder.beside") == everything.count(chosen)


def test_a_commands_error_is_shown_and_formulas_have_single_backslashes(code, prose):
    assert not [text for text in code if "subprocess" in text], "see progress.run_command"
    assert not re.search(r"\\\\[a-zA-Z]", prose), "TeX would show the command's name"
