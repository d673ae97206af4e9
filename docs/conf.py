"""The site: executed notebooks and a few pages. It loads nothing from outside, so it opens from a
folder, offline."""

import os
import sys
from pathlib import Path

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).resolve().parent / "_ext"))

# Where the code is, such as https://github.com/someone/course: for links and launch buttons.
REPOSITORY = os.environ.get("COURSE_REPOSITORY", "")
ARCHIVE = "course.tar.gz"  # the code, for a site that has no such address

project = "How the Deepfake Detection Challenge was won"
author = "the contributors"
copyright = "2026, the contributors; MIT licence"
extensions = ["myst_nb", "course", "api", "results"]
nb_execution_mode = "off"  # the copies are executed already
nb_ipywidgets_js = {}  # no widget script from a network
nb_merge_streams = True
nb_render_markdown_format = "myst"  # cards have tables
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # one search field is enough
    "show_toc_level": 2,
    "footer_content_items": ["copyright"],
}
if REPOSITORY:
    html_theme_options |= {
        "repository_url": REPOSITORY,
        "repository_branch": "main",
        "use_repository_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it fetches the pages found, which a browser refuses offline
highlight_language = "none"  # of blocks that name no language: mostly commands
html_domain_indices = False  # api.md lists the modules
add_module_names = False  # add_margin, not dfdc_lib.geometry.add_margin
python_maximum_signature_line_length = 60  # an argument a line: readable on a phone
toc_object_entries_show_parents = "hide"
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
exclude_patterns = ["README.md"]


def visit_inline(self, node: nodes.math) -> None:
    """Browsers draw MathML by themselves: no script to load."""
    self.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def visit_block(self, node: nodes.math_block) -> None:
    """The same for a formula of its own line."""
    self.body.append(
        f'<div class="math">{latex2mathml.converter.convert(node.astext(), display="block")}</div>'
    )
    raise nodes.SkipNode


def name_repository(app: Sphinx, docname: str, source: list[str]) -> None:
    """Say where the code is, where a page says ADDRESS: in the repository, or else in the archive
    that the build put beside the pages."""
    if not (REPOSITORY or (Path(app.srcdir) / ARCHIVE).exists()):
        return
    where = f"Download [{ARCHIVE}]({ARCHIVE}), the code that built this site. In its folder:"
    lines = source[0].split("\n")
    lines = [where if line.startswith("If the first line says") else line for line in lines]
    if REPOSITORY:
        lines = [line.replace("ADDRESS", REPOSITORY) for line in lines if line != where]
    else:
        lines = [line.replace("git clone ADDRESS course", f"tar xzf {ARCHIVE}") for line in lines]
    source[0] = "\n".join(lines)


def setup(app: Sphinx) -> None:
    """Register the renderer that needs neither MathJax nor a network."""
    app.connect("source-read", name_repository)
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
