"""Modules import each other in one direction: no circle, imports within functions counted, type checking's not."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (ROOT / "fastddpm", ROOT / "kernels" / "fastddpm_kernels", ROOT / "benchmarks" / "fastddpm_bench")


class Imports(ast.NodeVisitor):
    """The absolute names that a module imports, and the package and names of its `from` imports."""

    def __init__(self):
        self.names: list[str] = []

    def visit_If(self, node):
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node):
        self.names += [alias.name for alias in node.names]

    def visit_ImportFrom(self, node):
        assert node.level == 0, "relative"
        for alias in node.names:
            self.names += [f"{node.module}.{alias.name}", node.module]


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """For each module the modules that it imports; of `from package import module`, the module."""
    found = {}
    for name, source in sources.items():
        seen = Imports()
        seen.visit(ast.parse(source))
        wanted = set()
        for one in seen.names:
            is_package_of_another = any(
                other.startswith(one + ".") and other in sources for other in seen.names
            )
            if one in sources and one != name and not is_package_of_another:
                wanted.add(one)
        found[name] = wanted
    return found


def modules() -> dict[str, str]:
    """The source of every module, by its name."""
    found = {}
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            parts = path.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return found


def test_no_circle():
    sources = modules()
    assert len(sources) > 250
    TopologicalSorter(graph(sources)).prepare()


def test_a_circle_is_found_wherever_it_is_imported():
    sources = {"a": "def f():\n    from b import g", "b": "import c", "c": "if 1:\n    from a import f"}
    with pytest.raises(CycleError):
        TopologicalSorter(graph(sources)).prepare()
    sources["c"] = "if TYPE_CHECKING:\n    from a import f"
    TopologicalSorter(graph(sources)).prepare()
