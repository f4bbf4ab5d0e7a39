"""Settings of Sphinx: `sphinx-build -W docs build/docs`."""

from importlib.metadata import version as version_of

project = "robo_orchard_fasthooks"
author = "The robo_orchard_fasthooks authors"
copyright = "2026, " + author
version = release = version_of(project)

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]

html_theme = "furo"
html_use_index = False  # The API page serves as one.
html_domain_indices = False
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]

myst_heading_anchors = 3

default_role = "code"
smartquotes_action = "De"  # Quotes are often code.

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # Docstrings give the types.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = True


def as_prose(app, what, name, obj, options, lines):
    """Keeps napoleon from taking prose for a term or a type."""
    if what == "attribute":  # What stands before a colon in the first line.
        lines[:0] = ["..", ""]
    within = False
    for number, line in enumerate(lines):
        if line.startswith(" "):
            lines[number] = "    " + line.lstrip() if within else line
        elif line:
            within = line == "Returns:"


def setup(app):
    """Connects it before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", as_prose, 400)
