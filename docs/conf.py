"""Settings of the documentation site (`make docs`): sources are the pages, the notebooks and the docstrings.

The source folder is the repository, so that the pages' relative links also hold on a code host. Three pages change as
they are read: the landing page begins with the README's first part and has the navigation that its links give, and a
notebook has the outputs of the phantom run where these belong to its code.
"""

import json
import os
import re
import sys
from pathlib import Path
from types import GenericAlias

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from sphinx.util.nodes import make_refnode  # noqa: E402

import resdm  # noqa: E402

project, author, release = "ResDM", "Ou et al. (method), the ResDM suite's authors (code)", resdm.__version__
copyright = "MIT licence"
extensions = ["myst_nb", "numpydoc", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = [
    "*.md", "docs/**", "notebooks/*.ipynb", "benchmarks/**.md", "data_manifests/**.md",
    "figures/**.md",
]  # fmt: skip
exclude_patterns = ["docs/api/*/modules.rst", "work", ".*", "*.egg-info", "build"]
suppress_warnings = ["myst.header"]  # a notebook's first heading follows its line of data

html_theme, html_title = "furo", f"ResDM {release}"
html_theme_options = {"navigation_with_keys": True}
html_static_path = html_css_files = ["site.css"]
html_show_copyright = html_copy_source = False

nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # progress bars: their scripts would be loaded from the network
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

PACKAGES = ("resdm", "resdm_suite")
apidoc_separate_modules = apidoc_module_first = True
apidoc_modules = [{"path": f"../{name}", "destination": f"docs/api/{name}"} for name in PACKAGES]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature has them
default_role = "py:obj"
numpydoc_show_class_members = False
# Parameters of `resdm` exist, in this order, with a description
numpydoc_validation_checks, numpydoc_validation_exclude = {"PR02", "PR03", "PR07", "PR10"}, {r"^resdm_suite"}
nitpicky = True  # a name that nothing has is an error in a docstring, except commands, repositories, other libraries
OTHERS = r"(anywidget|collections|ipywidgets|matplotlib|numpy|pandas|scipy|torch)\..*"
nitpick_ignore_regex = [("py:.*", rf".*[ /].*|{OTHERS}")]

EXECUTED = ROOT / "work" / "phantom" / "notebooks"


def sources(notebook: dict) -> list[str]:
    """The text of each cell."""
    return ["".join(cell["source"]) for cell in notebook["cells"]]


def with_outputs(text: str, name: str) -> str:
    """The notebook as the phantom run executed it, if it exists and has the same cells."""
    for path in filter(Path.is_file, (EXECUTED / f"{name}.ipynb", EXECUTED / f"{name}_ResDM.ipynb")):
        run = json.loads(path.read_text(encoding="utf-8"))
        # papermill adds a cell
        run["cells"] = [c for c in run["cells"] if "injected-parameters" not in c["metadata"].get("tags", [])]
        if sources(run) == sources(json.loads(text)):
            return json.dumps(run)
    return text


def landing_page(text: str) -> str:
    """The README up to its list of notebooks, then the page, with a navigation entry for each link of its lists."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The notebooks")[0]
    readme = re.sub(r"\]\((?![a-z]+:|#)", "](../", readme)
    _, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    trees = []
    for section in sections:
        title, _, rest = section.partition("\n")
        links = re.findall(r"^- \[([^]]*)\]\(([^)#]+)[.](?:md|ipynb)\)", rest, flags=re.MULTILINE)
        names = "\n".join(f"{words.replace('`', '')} </{os.path.normpath(f'docs/{link}')}>" for words, link in links)
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{names}\n```")
    names = "\n".join(f"/docs/api/{name}/{name}" for name in PACKAGES)
    trees.append(f"```{{toctree}}\n:hidden:\n:caption: API\n\n{names}\n```")
    return "\n\n".join([readme, "## " + "## ".join(sections), *trees])


def source_read(app, name: str, source: list[str]) -> None:
    """Change a page as it is read (an event of Sphinx)."""
    if name.startswith("notebooks/"):
        source[0] = with_outputs(source[0], Path(name).name)
    elif name == root_doc:
        source[0] = landing_page(source[0])


def by_last_name(app, env, node, text):
    """Resolve a name that docstrings give without its module, where one module has it (an event of Sphinx)."""
    found, again = [], [[one] for one in resdm.__all__]  # the package's names are also those of their modules
    if node.get("refdomain") == "py":
        found = env.domains.python_domain.find_obj(env, None, None, node["reftarget"], node["reftype"], 1)
    found = [one for one in found if one[0].split(".")[1:2] not in again]
    if len(found) != 1:
        return None
    ((name, entry),) = found
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, text, name)


def left_out(app, what: str, name: str, thing, skip: bool, options) -> bool | None:
    """Leave out aliases of types, of which autodoc makes no signature, and what matplotlib adds to a class."""
    return True if isinstance(thing, GenericAlias) or getattr(thing, "__module__", "") == "matplotlib.artist" else None


def setup(app) -> None:
    """Connect the events."""
    app.connect("source-read", source_read)
    app.connect("missing-reference", by_last_name)
    app.connect("autodoc-skip-member", left_out)
