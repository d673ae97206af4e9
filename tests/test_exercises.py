"""The solutions of docs/solutions.md pass, and its wrong answers fail as that page says."""

import ast
import re
from contextlib import suppress

import nbformat
import pytest
from conftest import ROOT

NOTEBOOKS = {path.stem[:2]: path for path in sorted((ROOT / "notebooks").glob("[0-9]*_*.ipynb"))}
PAGE = (ROOT / "docs" / "solutions.md").read_text()
SECTIONS = {part[:2]: part for part in re.split(r"^## (?=\d\d · )", PAGE, flags=re.MULTILINE)[1:]}
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n> AssertionError: ([^\n]+)\n)?", re.DOTALL)
BLOCKS = [(number, *block) for number, text in SECTIONS.items() for block in BLOCK.findall(text)]
TEACHING = (ROOT / "docs" / "teaching.md").read_text()
KNOWN = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def run(number: str, solution: str = "answer = ...\n") -> None:
    """The exercise's cell, solved. Of its notebook it needs no more than imports and functions."""
    cells = nbformat.read(NOTEBOOKS[number], as_version=4).cells
    names = {}
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        if "exercise" in cell.metadata.get("tags", []):
            exec(cell.source.replace("answer = ...\n", solution, 1), names)
            return
        for node in ast.parse(cell.source).body:
            if isinstance(node, KNOWN):
                with suppress(NameError):  # a default or a decorator that the notebook computes
                    exec(compile(ast.Module([node], []), number, "exec"), names)


def test_every_notebook_has_a_solution_and_a_mistake():
    assert list(SECTIONS) == list(NOTEBOOKS)
    for number, text in SECTIONS.items():
        assert [not said for _, said in BLOCK.findall(text)][:2] == [True, False], number
        for part in ("**Task.**", "**To draw out.**", "**Typical mistake.**"):
            assert text.count(part) == 1, (number, part)


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_it_is_handed_out_unsolved(number, capsys):
    run(number)
    assert capsys.readouterr().out == "not solved yet\n"


@pytest.mark.parametrize(("number", "code", "said"), BLOCKS, ids=[block[0] for block in BLOCKS])
def test_right_answers_pass_and_wrong_ones_are_told_why(number, code, said, capsys):
    if said:
        with pytest.raises(AssertionError, match=re.escape(said)):
            run(number, code)
    else:
        run(number, code)
        assert capsys.readouterr().out.startswith("solved")


def test_the_plans_for_teachers_name_sections_and_questions_that_exist():
    sections = re.findall(r"notebook (\d\d), sections? (\d+(?:(?:, | and | to )\d+)*)", TEACHING)
    questions = re.findall(r"\b(\d\d) question (\d)", TEACHING)
    assert (len(sections) > 30, len(questions)) == (True, 3)
    named = [
        (page, f"## {n} · ") for page, several in sections for n in re.findall(r"\d+", several)
    ]
    named += [(page, f"<summary>{n}. ") for page, n in questions]
    for page, heading in named:
        assert heading in NOTEBOOKS[page].read_text(), page
