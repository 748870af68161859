"""The documentation site: `make docs` builds it into docs/_build; nothing is loaded from elsewhere."""

import sys
from pathlib import Path

import latex2mathml.converter
from docutils.nodes import SkipNode

sys.path.insert(0, str(Path(__file__).parent))
from generated import write_commands, write_notebook

project = "vaekit"
author = "the vaekit authors"
html_title = "vaekit"
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
html_theme = "furo"
html_math_renderer = "mathml"
exclude_patterns = ["_build", "design/README.md"]


def inline(self, node):  # type: ignore[no-untyped-def]
    self.body.append(latex2mathml.converter.convert(node.astext()))
    raise SkipNode


def block(self, node):  # type: ignore[no-untyped-def]
    self.body.append(latex2mathml.converter.convert(node.astext(), display="block"))
    raise SkipNode


def setup(app):  # type: ignore[no-untyped-def]
    """Formulas as MathML, which browsers draw themselves: nothing is loaded from elsewhere."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("builder-inited", generate)


def generate(app):  # type: ignore[no-untyped-def]
    source = Path(app.srcdir)
    write_commands(source / "commands.md")
    for notebook in (source / "notebooks").glob("*.ipynb"):
        write_notebook(notebook)
