"""Run notebooks of an archive for reading in this process, where torch and other packages seem not to be installed.

``python read_archive.py PROFILE [06 13 …]`` in the folder of an unpacked archive; of notebooks that are not named (by
default all are) the imports alone.
"""

from __future__ import annotations

import ast
import json
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

ABSENT = (
    "torch", "torchvision", "lightning_fabric", "lightning_utilities", "monai", "open_clip", "einops", "safetensors",
    "SimpleITK", "huggingface_hub", "mistune", "nbconvert", "snakemake", "grimp",
)  # fmt: skip
"""Packages that ``binder/requirements.txt`` does not install."""


class Installed(PathFinder):
    """Finds no package of `ABSENT`."""

    @classmethod
    def find_spec(cls, name: str, path=None, target=None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in ABSENT else PathFinder.find_spec(name, path, target)


def main(profile: str, *chosen: str) -> None:
    sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
    for notebook in sorted(Path("notebooks").glob("*.ipynb")):
        variables = {"__name__": notebook.stem}
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                tree = ast.parse("".join(cell["source"]))
                if chosen and notebook.stem[:2] not in chosen:
                    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
                exec(compile(tree, f"{notebook.stem}/{cell['id']}", "exec"), variables)
            if "parameters" in cell["metadata"].get("tags", ()):
                variables["config"] = profile
        print(notebook.stem, flush=True)
    assert not {name.partition(".")[0] for name in sys.modules} & {*ABSENT}


if __name__ == "__main__":
    main(*sys.argv[1:])
