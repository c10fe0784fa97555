"""Modules import each other in one direction; imports in functions count, those for type checking do not."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "fastddpm", ROOT / "kernels" / "fastddpm_kernels", ROOT / "benchmarks" / "fastddpm_bench")


class Imports(ast.NodeVisitor):
    """The absolute names that a module imports, and the package and names of its `from` imports."""

    def __init__(self, package):
        self.names: list[str] = []
        self.package = package

    def visit_If(self, node):
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node):
        self.names += [alias.name for alias in node.names]

    def visit_ImportFrom(self, node):
        parts = self.package.split(".")
        base = [] if node.level == 0 else parts[: len(parts) - node.level + 1]
        module = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            self.names += [f"{module}.{alias.name}", module]


def graph(sources: dict[str, str], packages: frozenset[str] = frozenset()) -> dict[str, set[str]]:
    """For each module the modules that it imports; of `from package import module`, the module alone.

    Args:
        sources: the text of each, by its name.
        packages: the names among them that are packages' own.
    """
    found = {}
    for name, source in sources.items():
        seen = Imports(name if name in packages else name.rpartition(".")[0])
        seen.visit(ast.parse(source))
        wanted = {one for one in seen.names if one in sources and one != name}
        found[name] = {one for one in wanted if not any(other.startswith(f"{one}.") for other in wanted)}
    return found


def modules() -> tuple[dict[str, str], frozenset[str]]:
    """The source of every module, by its name, and the names of the packages."""
    found, packages = {}, set()
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
            if path.name == "__init__.py":
                name = name.removesuffix(".__init__")
                packages.add(name)
            found[name] = path.read_text()
    return found, frozenset(packages)


def test_no_circle():
    sources, packages = modules()
    assert len(sources) > 250
    TopologicalSorter(graph(sources, packages)).prepare()


def test_a_circle_is_found_wherever_it_is_imported():
    sources = {"a": "def f():\n    from b import g", "b": "import c", "c": "if 1:\n    from a import f"}
    with pytest.raises(CycleError):
        TopologicalSorter(graph(sources)).prepare()
    sources["c"] = "if TYPE_CHECKING:\n    from a import f"
    TopologicalSorter(graph(sources)).prepare()
