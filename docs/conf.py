"""How Sphinx makes the site: `make docs`. Nothing in it asks anything of another computer."""

from __future__ import annotations

import sightline

project = "Sightline"
author = "The Sightline developers"
version = release = sightline.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["learn/*.py"]

# Pages are Markdown that reads well without the site; headings are linked to by their words.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "off"  # notebooks are executed by docs/notebooks.py, and by the tests
nb_merge_streams = True
nb_render_image_options = {"alt": "what the lines above draw"}  # else a file name is read aloud

# Docstrings are plain words with `names` in them.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_use_ivar = True  # else each attribute of a record is listed twice
napoleon_custom_sections = [("Formula", "params_style")]

html_theme = "furo"
html_title = "Sightline"
html_static_path = ["_static"]
html_extra_path = ["../llms.txt"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_copyright = False
