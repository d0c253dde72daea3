"""The documents as a site: Sphinx over the Markdown of the whole repository; `make docs`."""

import edgesparse

project = "EdgeSparse"
copyright = "EdgeSparse contributors"  # noqa: A001 - Sphinx wants this name
release = version = edgesparse.__version__

# The source is the root of the repository: READMEs and byte maps stay beside what they are about.
root_doc = "docs/site/index"
include_patterns = [
    "docs/**.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "*/README.md",
    "*/*/README.md",
    "examples/*/*/README.md",
    "edgesparse/formats/*.md",
    "converters/edgesparse_converters/*/README.md",
]
exclude_patterns = ["docs/README.md", "build", "out", ".*"]
# Byte maps, model cards and the READMEs of rooms are reached from the pages that speak of them.
suppress_warnings = ["toc.not_included"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"EdgeSparse {release}"
html_show_sphinx = False
html_copy_source = False
