"""Every notebook keeps the course's form: short cells, a parameters cell of literals, no outputs, an exercise."""

import ast
import re
import statistics
from pathlib import Path

import nbformat
import pytest
import yaml

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
CAPTION = "plots.caption("
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag: str):
    return [cell for cell in code_cells(notebook) if tag in cell.metadata.get("tags", [])]


def test_committed_without_outputs(notebook):
    assert not [cell for cell in code_cells(notebook) if cell.outputs or cell.execution_count]


def test_cells_are_short_and_explained(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert statistics.median(lengths) <= 6
    assert max(lengths) <= 30
    kinds = "".join(cell.cell_type[0] for cell in notebook.cells)
    assert "ccc" not in kinds, "more than two code cells in a row without prose"


def test_parameters_are_typed_literals_with_a_comment(notebook):
    (cell,) = tagged(notebook, "parameters")
    for line, node in zip(cell.source.splitlines(), ast.parse(cell.source).body, strict=True):
        assert isinstance(node, ast.AnnAssign), line
        ast.literal_eval(node.value)
        assert "  # " in line, line


def test_it_opens_with_a_question_and_closes_with_a_summary(notebook):
    first = notebook.cells[0].source
    assert first.startswith("# ")
    assert "?" in first.splitlines()[0]
    assert "**You will**" in first
    assert "| reads | writes |" in first
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "## Check your understanding" in prose
    assert 4 <= prose.count("<details>") <= 6
    assert notebook.cells[-1].source.startswith("## Summary")


def test_the_exercise_passes_unsolved(notebook, capsys):
    (cell,) = tagged(notebook, "exercise")
    assert "answer = ..." in cell.source
    exec(cell.source, {})
    assert "not solved yet" in capsys.readouterr().out


def test_profiles_name_real_notebooks_and_parameters():
    for profile in (FOLDER / "profiles").glob("*.yaml"):
        for name, values in yaml.safe_load(profile.read_text()).items():
            if name == "all":
                continue
            cell = tagged(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4), "parameters")[0]
            known = {node.target.id for node in ast.parse(cell.source).body}
            assert set(values) <= known, profile


def test_a_caption_below_every_picture_says_whose_it_is(notebook):
    """In code, which knows the data; words would call any data set's people synthetic."""
    draws = re.compile(r"show_pictures\(|contact_sheet\(|\.imshow\((?!answers)")  # answers: a table in colours
    mute = [cell.source for cell in code_cells(notebook) if draws.search(cell.source) and CAPTION not in cell.source]
    assert not mute
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert not re.search(r"\*Synthetic(?!: a face swapped onto a public-domain portrait; steps)", prose)


def test_the_work_folder_that_is_named_is_the_one_that_is_used(notebook):
    """`--work` sets WORK, and the data folder may be one where nobody can write."""
    code = "\n".join(cell.source for cell in code_cells(notebook))
    chosen = "WorkFolder(Path(WORK)) if WORK else WorkFolder.beside(data)"
    assert ("WorkFolder" in code) == (chosen in code)
    assert code.count("WorkFolder.beside") == code.count(chosen)


def test_a_commands_error_is_shown(notebook):
    assert not [cell.source for cell in code_cells(notebook) if "subprocess" in cell.source], "see progress.run_command"


# What figures and tables of the demo show, and those of other data need not.
FINDINGS = [
    "12 to 15 pixels", "36 pixels", "found at every scale", "each has the old number", "hair and collar", "is broader",
    "another pattern of edges", "lights up over the whole face", "alone reaches the right", "almost all evidence",
    "With 10 % nearly all", "all from 20 %", "a blur of two pixels leave", "less than a minute", "two people cross",
    "may come close to the 0.428", "demo numbers",
]  # fmt: skip


def test_a_finding_of_the_demo_is_called_so(notebook):
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    paragraphs = "\n\n".join(prose).split("\n\n")
    told = [text for text in paragraphs if any(finding in text for finding in FINDINGS)]
    assert not [text for text in told if not re.search("[Ii]n the demo|the sample|a demo's", text)]


def test_formulas_have_single_backslashes(notebook):
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert not [text for text in prose if re.search(r"\\\\[a-zA-Z]", text)], "TeX would show the command's name"
