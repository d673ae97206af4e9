"""Every exercise can be solved: the solutions of docs/solutions.md pass, its wrong answers fail as that page says."""

import ast
import builtins
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = {path.stem[:2]: path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
PAGE = (ROOT / "docs" / "solutions.md").read_text()
SECTIONS = {part[:2]: part for part in re.split(r"^## (?=\d\d · )", PAGE, flags=re.MULTILINE)[1:]}
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n> AssertionError: ([^\n]+)\n)?", re.DOTALL)
BLOCKS = [(number, *block) for number, text in SECTIONS.items() for block in BLOCK.findall(text)]
TEACHING = (ROOT / "docs" / "teaching.md").read_text()


def cells_before(number: str) -> tuple[list[str], str]:
    """The code of all cells before the exercise, and that of the exercise itself."""
    cells = [cell for cell in nbformat.read(NOTEBOOKS[number], as_version=4).cells if cell.cell_type == "code"]
    (place,) = (i for i, cell in enumerate(cells) if "exercise" in cell.metadata.get("tags", []))
    return [cell.source for cell in cells[:place]], cells[place].source


def definitions(sources: list[str]) -> dict[str, ast.stmt]:
    """The statement that gives each name of a notebook its last meaning, imports one name at a time."""
    found = {}
    for node in (node for source in sources for node in ast.parse(source).body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                single = type(node)(**{**vars(node), "names": [alias]})
                found[alias.asname or alias.name.split(".")[0]] = single
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        else:
            stored = (n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
            found |= {name.id: node for name in stored}
    return found


def needed(code: ast.AST) -> list[str]:
    """The names that a piece of code takes from outside."""
    names = [n for n in ast.walk(code) if isinstance(n, ast.Name)]
    own = {n.id for n in names if isinstance(n.ctx, ast.Store)} | {
        n.arg for n in ast.walk(code) if isinstance(n, ast.arg)
    }
    return sorted({n.id for n in names if not hasattr(builtins, n.id)} - own)


def supply(code: ast.AST, known: dict[str, ast.stmt], names: dict) -> dict:
    """Fill `names` with what the code needs of its notebook, and nothing else: imports, functions, classes."""
    for name in needed(code):
        if name in known and name not in names:
            node = known[name]
            computed = not isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)
            assert not computed, f"{name}: a check should not need what the notebook computed"
            names[name] = None  # it may call itself
            supply(node, known, names)
            exec(compile(ast.Module([node], []), name, "exec"), names)
    return names


def run(number: str, solution: str | None) -> None:
    """The exercise's cell, with the dots replaced; None: as it is handed out."""
    before, cell = cells_before(number)
    known, names = definitions(before), {}
    for code in filter(None, (cell, solution)):
        supply(ast.parse(code), known, names)
    exec(cell.replace("answer = ...\n", solution or "answer = ...\n", 1), names)


def test_every_notebook_has_a_solution_and_a_mistake():
    assert list(SECTIONS) == list(NOTEBOOKS)
    for number, text in SECTIONS.items():
        assert [not said for _, said in BLOCK.findall(text)][:2] == [True, False], number
        for part in ("**Task.**", "**To draw out.**", "**Typical mistake.**"):
            assert text.count(part) == 1, (number, part)


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_it_is_handed_out_unsolved(number, capsys):
    run(number, None)
    assert capsys.readouterr().out == "not solved yet\n"


@pytest.mark.parametrize(
    ("number", "code", "said"), BLOCKS, ids=[f"{n}-{'wrong' if s else 'right'}" for n, _, s in BLOCKS]
)
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
    assert len(sections) > 30
    assert len(questions) == 3
    for number, numbers in sections:
        for section in re.findall(r"\d+", numbers):
            assert f"## {section} · " in NOTEBOOKS[number].read_text(), (number, section)
    for number, question in questions:
        assert f"<summary>{question}. " in NOTEBOOKS[number].read_text()
