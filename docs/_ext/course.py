"""What the site makes of the executed notebooks: numbers in the navigation, alternative texts, links between them."""

import ast
import json
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

CREDIT = re.compile(r"synthetic|portraits:", re.IGNORECASE)  # a credit line says nothing about what a picture shows
MENTION = re.compile(r"[Nn]otebooks? \d\d(?:(?:, | and | or | to |–)\d\d)*\b")
LONGEST = 320  # characters of an alternative text


def number_title(app: Sphinx, doctree: nodes.document) -> None:
    """Put a notebook's number before its title: the navigation, "previous" and "next" then show it too.

    A copy that a sweep has made is told apart by its parameter's value.
    """
    name = app.env.docname.removeprefix("notebooks/")
    title = next(doctree.findall(nodes.title), None)
    if name == app.env.docname or title is None or not name[:2].isdigit():
        return
    title.insert(0, nodes.Text(f"{name[:2]} · "))
    if swept := re.search(r"_([A-Z][A-Z_]*)_([^_]+)$", name):
        title.append(nodes.Text(f" ({swept[1]} {swept[2]})"))


def describe_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Give each figure of a notebook an alternative text: its author's, or the prose around it (see `read_around`)."""
    figures = [n for n in doctree.findall(nodes.image) if "alt" not in n]
    cells = [(figure, find_cell(figure)) for figure in figures]
    of_authors = read_authors_texts(app.env.doc2path(app.env.docname)) if any(cell for _, cell in cells) else {}
    for figure, cell in cells:
        if cell is None:
            continue
        siblings = [n for n, c in cells if c is cell]
        text = of_authors.get(int(cell["cell_index"])) or read_around(cell)
        part = f" ({siblings.index(figure) + 1} of {len(siblings)})" if len(siblings) > 1 else ""
        figure["alt"] = f"Figure{part}: {text}"


def find_cell(node: nodes.Node) -> nodes.container | None:
    """The code cell that holds a node."""
    while node is not None:
        if isinstance(node, nodes.container) and node.get("nb_element") == "cell_code":
            return node
        node = node.parent
    return None


def read_authors_texts(path: Path) -> dict[int, str]:
    """Cell number → the text that code gave to its picture: `Image(…, alt="…")`."""
    texts = {}
    for number, cell in enumerate(json.loads(Path(path).read_text())["cells"]):
        for output in cell.get("outputs", []):
            if said := output.get("metadata", {}).get("image/png", {}).get("alt"):
                texts[number] = said
    return texts


def read_around(cell: nodes.Node) -> str:
    """What the prose says about a figure: the sentence before says what is drawn, the one after what is to be seen.

    Then what the code writes at the axes.
    """
    siblings = list(cell.parent.children)
    place = siblings.index(cell)
    words = [read_before(siblings[:place]), read_after(siblings[place + 1 :])]
    section = next((n.astext() for n in find_section(cell).findall(nodes.title)), "")
    labels = read_labels(next(cell.findall(nodes.literal_block)).astext())
    return " ".join(w for w in (shorten(" ".join(w for w in words if w) or f"{section}."), labels) if w)


def read_before(siblings: list[nodes.Node]) -> str:
    """The last two sentences before a figure's cell; none where they belong to what a cell between them printed."""
    if siblings and is_code(siblings[-1]) and len(siblings[-1].children) == 1:
        siblings = siblings[:-1]
    while siblings and isinstance(siblings[-1], nodes.table | nodes.bullet_list | nodes.math_block):
        siblings = siblings[:-1]
    return re.sub(r":$", ".", " ".join(sentences(siblings[-1])[-2:])) if siblings else ""


def read_after(siblings: list[nodes.Node]) -> str:
    """Up to three sentences after a figure's cell, until one leads on to something else; no credits."""
    for paragraph in siblings:
        told = sentences(paragraph)
        kept = [s for s in told if not CREDIT.search(s)]
        leads_on = (i for i, s in enumerate(kept) if s.endswith(("?", ":")) or (i == 0 and s.startswith("And ")))
        kept = kept[: min(next(leads_on, 3), 3)]
        if kept or len(told) != 1:
            return " ".join(kept)
    return ""


def read_labels(source: str) -> str:
    """What is written at axes and above pictures, where the code says it in so many words."""
    try:
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    except SyntaxError:  # a magic command
        return ""
    shown = [c.args[1] for c in calls if len(c.args) > 1 and getattr(c.func, "attr", "") == "show_pictures"]
    titles = [v.value for s in shown if isinstance(s, ast.List) for v in s.elts if isinstance(v, ast.Constant)]
    found = [f"Titles: {'; '.join(titles)}."] if titles else []
    for word, name in (("Horizontal", "xlabel"), ("Vertical", "ylabel")):
        given = [k.value for call in calls for k in call.keywords if k.arg == name]
        given += [c.args[0] for c in calls if c.args and getattr(c.func, "attr", "") in (f"set_{name}", f"sup{name}")]
        texts = dict.fromkeys(v.value for v in given if isinstance(v, ast.Constant) and v.value)
        found += [f"{word}: {'; '.join(texts)}."] if texts else []
    return " ".join(found)


def is_code(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


def find_section(node: nodes.Node) -> nodes.Node:
    while not isinstance(node, nodes.section | nodes.document):
        node = node.parent
    return node


def sentences(node: nodes.Node) -> list[str]:
    """The sentences of a paragraph, without formatting."""
    if not isinstance(node, nodes.paragraph):
        return []
    text = " ".join(node.astext().split())
    return [s for s in re.split(r"(?<=[.?!])\s+(?=[A-Z(0-9“])|(?<=[.?!]\))\s+", text) if s]


def shorten(text: str) -> str:
    """As many whole sentences as fit; of a single long one, its beginning."""
    if len(text) <= LONGEST:
        return text
    cut = text[:LONGEST]
    end = max(cut.rfind(". "), cut.rfind("? "))
    return cut[: end + 1] if end > LONGEST // 3 else cut.rsplit(" ", 1)[0] + " …"


class LinkNotebooks(SphinxPostTransform):
    """Make "notebook 08", wherever a page says it, a link to that notebook, if the site has it."""

    default_priority = 400

    def run(self, **kwargs) -> None:
        here = self.env.docname
        pages = {name[10:12]: name for name in sorted(self.env.found_docs, reverse=True) if name[:10] == "notebooks/"}
        for text in list(self.document.findall(nodes.Text)):
            if is_linkable(text) and MENTION.search(text):
                text.parent.replace(text, self.link(text.astext(), here, pages))

    def link(self, text: str, here: str, pages: dict[str, str]) -> list[nodes.Node]:
        parts, done = [], 0
        for mention in MENTION.finditer(text):
            for number in re.finditer(r"(?:[Nn]otebooks? )?(\d\d)", mention[0]):
                page = pages.get(number[1], here)
                if page == here:
                    continue
                start, end = (mention.start() + place for place in number.span())
                uri = self.app.builder.get_relative_uri(here, page)
                parts += [nodes.Text(text[done:start]), nodes.reference("", number[0], internal=True, refuri=uri)]
                done = end
        return [*parts, nodes.Text(text[done:])]


def is_linkable(node: nodes.Node) -> bool:
    while (node := node.parent) is not None:
        if isinstance(node, nodes.reference | nodes.title | nodes.literal | nodes.literal_block | nodes.raw):
            return False
    return True


def setup(app: Sphinx) -> dict:
    app.connect("doctree-read", number_title, priority=100)  # before Sphinx collects the titles
    app.connect("doctree-read", describe_figures)
    app.add_post_transform(LinkNotebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
