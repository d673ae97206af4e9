"""The library's reference, from its source: signatures, docstrings, comments beside settings.

Nothing is imported, so no page waits for torch. Each module becomes a page in api/; `{modules}`
lists some of them.
"""

import ast
import importlib.util
import re
from pathlib import Path

from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

LIBRARY = Path(importlib.util.find_spec("dfdc_lib").origin).parent


def write_pages(app: Sphinx) -> None:
    """A page for each module, touched only where its text changes: a second build is quick."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    for path in sorted(LIBRARY.rglob("[!_]*.py")):
        page, text = folder / f"{name_module(path)}.md", describe_module(path)
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


def name_module(path: Path) -> str:
    """As it is imported, without the package's name: "faces", "fast.mtcnn"."""
    return ".".join(path.relative_to(LIBRARY).with_suffix("").parts)


def describe_module(path: Path) -> str:
    source = path.read_text()
    tree, lines = ast.parse(source), source.splitlines()
    name = name_module(path)
    parts = [f"# {name}", fence("py:module", f"dfdc_lib.{name}", ""), prose(tree)]
    constants = [describe_constant(node, lines) for node in tree.body if is_constant(node)]
    others = [describe(node, lines) for node in tree.body if is_public(node)]
    return (
        "\n\n".join([*parts, *others, *(["## Constants", *constants] if constants else [])]) + "\n"
    )


def is_public(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")


def is_constant(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id[0].isupper()
    )


def describe(node: ast.FunctionDef | ast.ClassDef, lines: list[str]) -> str:
    if isinstance(node, ast.FunctionDef):
        return fence("py:function", f"{node.name}{signature(node)}", prose(node))
    methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
    fields = [
        n for n in node.body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_")
    ]
    given = signature(methods["__init__"], 1) if "__init__" in methods else ""
    inside = [describe_field(field, lines) for field in fields]
    inside += [
        describe_method(method) for name, method in methods.items() if not name.startswith("_")
    ]
    words = [prose(node), prose(methods["__init__"]) if "__init__" in methods else "", *inside]
    return fence("py:class", f"{node.name}{given}", "\n\n".join(w for w in words if w), 5)


def describe_field(field: ast.AnnAssign, lines: list[str]) -> str:
    options = f":type: {ast.unparse(field.annotation)}\n"
    if field.value is not None and len(value := ast.unparse(field.value)) < 60:
        options += f":value: {value}\n"
    return fence("py:attribute", field.target.id, f"{options}\n{escape(comment_on(field, lines))}")


def describe_method(method: ast.FunctionDef) -> str:
    wrappers = [ast.unparse(wrapper) for wrapper in method.decorator_list]
    if "property" in wrappers:
        result = f":type: {ast.unparse(method.returns)}\n\n" if method.returns else ""
        return fence("py:property", method.name, result + prose(method))
    kind = "py:staticmethod" if "staticmethod" in wrappers else "py:method"
    return fence(kind, f"{method.name}{signature(method, kind == 'py:method')}", prose(method))


def describe_constant(node: ast.Assign, lines: list[str]) -> str:
    value = ast.unparse(node.value)
    option = f":value: {value}\n\n" if len(value) <= 90 else ""
    return fence("py:data", node.targets[0].id, option + escape(comment_on(node, lines)))


def signature(function: ast.FunctionDef, n_skipped: int = 0) -> str:
    """The arguments and the result, as written, without the first `n_skipped` (self)."""
    arguments = function.args
    for names in (arguments.posonlyargs, arguments.args):
        del names[: n_skipped if names else 0]
    result = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"({ast.unparse(arguments)}){result}"


def comment_on(node: ast.stmt, lines: list[str]) -> str:
    """The comment at the end of a statement's first or last line, or the lines above it."""
    for number in (node.lineno, node.end_lineno):
        if mark := re.search(r"  # (.*)", lines[number - 1]):
            return mark[1]
    above = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.strip().startswith("# "):
            break
        above.insert(0, line.strip()[2:])
    return " ".join(above)


def prose(node: ast.AST) -> str:
    return escape(ast.get_docstring(node) or "")


def escape(text: str) -> str:
    """Docstrings are prose with `code`: keep that, and let Markdown see nothing else in them."""
    lines, before = [], ""
    for line in text.splitlines():
        is_command = line.startswith("    ") and (not before.strip() or before.startswith("    "))
        lines.append(line if is_command else escape_line(line.strip()))
        before = line if is_command else line.strip()
    return "\n".join(lines)


def escape_line(line: str) -> str:
    spans = re.split(r"(`[^`]*`)", line)
    words = "".join(
        s if s.startswith("`") else re.sub(r"([<*$|\\\[]|__)", r"\\\1", s) for s in spans
    )
    return re.sub(r"^([-+#>])( )", r"\\\1\2", words)


def fence(directive: str, argument: str, content: str, width: int = 4) -> str:
    marks = "`" * width
    return f"{marks}{{{directive}}} {argument}\n{content}\n{marks}"


class Modules(SphinxDirective):
    """List modules with the first sentence of each: its page has the rest."""

    has_content = True

    def run(self) -> list:
        lines = []
        for name in " ".join(self.content).split():
            path = LIBRARY / f"{name.replace('.', '/')}.py"
            if not path.exists():
                raise self.error(f"dfdc_lib has no module {name}: fix this list")
            text = ast.get_docstring(ast.parse(path.read_text()))
            first = " ".join(text.split("\n\n")[0].split())
            lines += [f"[{name}](api/{name}.md)", f": {escape(first)}", ""]
        self.content = StringList(lines, self.env.docname)
        return self.parse_content_to_nodes()


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", write_pages)
    app.add_directive("modules", Modules)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
