"""What the site makes of the executed notebooks: numbers in the navigation, alternative texts,
links between them."""

import json
import re
from pathlib import Path

from bs4 import BeautifulSoup
from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
NUMBER = re.compile(r"[-−+±]?[\d,.]+(?:e[-+]?\d+)?(?: ?%)?|nan")
MEASURED = re.compile(rf"(?:{NUMBER.pattern})(?: \([^()]* to [^()]*\))?|—|")
MENTION = re.compile(r"[Nn]otebooks? \d\d(?:(?:, | and | or | to |–)\d\d)*\b")


def number_title(app: Sphinx, doctree: nodes.document) -> None:
    """Put a notebook's number before its title: the navigation, "previous" and "next" then show it
    too.

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
    """Give each figure the alternative text that code gave it; the others have that of their cell's
    metadata.

    A figure with neither is a warning, and so ends the build: it would say nothing to who can't see
    it.
    """
    mute = [n for n in doctree.findall(nodes.image) if "alt" not in n]
    cells = [(figure, find_cell(figure)) for figure in mute]
    said = (
        read_texts_of_code(app.env.doc2path(app.env.docname))
        if any(cell for _, cell in cells)
        else {}
    )
    for figure, cell in cells:
        if cell is None:
            continue
        number = int(cell["cell_index"])
        if number in said:
            figure["alt"] = said[number]
        else:
            LOGGER.warning("the figure of cell %d has no alternative text", number, location=figure)


def size_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Show a notebook's pictures at half their pixels: they were drawn twice as fine."""
    for figure in doctree.findall(nodes.image):
        if find_cell(figure) is not None and figure["uri"].endswith(".png"):
            with Image.open(Path(app.srcdir, figure["uri"])) as picture:
                figure["width"] = f"{picture.width // 2}px"


def align_columns(app: Sphinx, doctree: nodes.document) -> None:
    """Mark the columns of a page's own tables in which every cell is a number, perhaps with its
    interval."""
    for table in doctree.findall(nodes.table):
        rows = [list(row.findall(nodes.entry)) for row in table.findall(nodes.row)]
        for column in zip(*rows, strict=False):
            cells = [entry.astext().strip() for entry in column[1:]]
            if any(cells) and all(MEASURED.fullmatch(cell) for cell in cells):
                for entry in column:
                    entry["classes"].append("number")


def align_numbers(app: Sphinx, doctree: nodes.document) -> None:
    """Mark the cells of pandas' tables that hold a number, so that the style sheet can align them
    to the right, and the headings of columns in which all do."""
    for raw in doctree.findall(nodes.raw):
        if "<table" not in raw.astext():
            continue
        table = BeautifulSoup(raw.astext(), "html.parser")
        rows = [row.find_all("td") for row in table.select("tbody tr")]
        for row in rows:
            for cell in row:
                if NUMBER.fullmatch(cell.get_text().strip()):
                    cell["class"] = [*cell.get("class", []), "number"]
        headings = table.select("thead tr:first-child th")
        if rows and len(headings) > len(rows[0]):  # one heading a column, besides the index
            columns = zip(headings[-len(rows[0]) :], zip(*rows, strict=True), strict=True)
            for heading, cells in columns:
                if all("number" in cell.get("class", []) for cell in cells):
                    heading["class"] = [*heading.get("class", []), "number"]
        raw.rawsource = str(table)
        raw[:] = [nodes.Text(str(table))]


def find_cell(node: nodes.Node) -> nodes.container | None:
    """The code cell that holds a node."""
    while node is not None:
        if isinstance(node, nodes.container) and node.get("nb_element") == "cell_code":
            return node
        node = node.parent
    return None


def read_texts_of_code(path: Path) -> dict[int, str]:
    """Cell number → the text that code gave to its picture: `Image(…, alt="…")`."""
    texts = {}
    for number, cell in enumerate(json.loads(Path(path).read_text())["cells"]):
        for output in cell.get("outputs", []):
            if said := output.get("metadata", {}).get("image/png", {}).get("alt"):
                texts[number] = said
    return texts


class LinkNotebooks(SphinxPostTransform):
    """Make "notebook 09", wherever a page says it, a link to that notebook, if the site has it."""

    default_priority = 400

    def run(self, **kwargs) -> None:
        here = self.env.docname
        pages = {
            name[10:12]: name
            for name in sorted(self.env.found_docs, reverse=True)
            if name[:10] == "notebooks/"
        }
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
                parts += [
                    nodes.Text(text[done:start]),
                    nodes.reference("", number[0], internal=True, refuri=uri),
                ]
                done = end
        return [*parts, nodes.Text(text[done:])]


def is_linkable(node: nodes.Node) -> bool:
    while (node := node.parent) is not None:
        if isinstance(
            node, nodes.reference | nodes.title | nodes.literal | nodes.literal_block | nodes.raw
        ):
            return False
    return True


def setup(app: Sphinx) -> dict:
    app.connect("doctree-read", number_title, priority=100)  # before Sphinx collects the titles
    app.connect("doctree-read", describe_figures)
    app.connect("doctree-read", size_figures)
    app.connect("doctree-read", align_numbers)
    app.connect("doctree-read", align_columns)
    app.add_post_transform(LinkNotebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
