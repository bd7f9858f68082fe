"""How Sphinx builds the site: `sphinx-build -W -b html docs build/site`."""

import blocksparse_ops

project = "blocksparse_ops"
author = "the blocksparse_ops developers"
version = release = blocksparse_ops.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
]
myst_heading_anchors = 3

# The parameters of an op's constructor are its properties, and its methods are PyTensor's.
numpydoc_show_class_members = False
autodoc_member_order = "bysource"

# The docstrings say the types, in words.
autodoc_typehints = "none"

html_theme = "sphinx_book_theme"
html_title = "blocksparse_ops"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"home_page_in_toc": True, "navbar_persistent": []}
