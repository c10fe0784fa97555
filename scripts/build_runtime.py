"""Builds fastddpm-runtime, the distribution without torch: `python scripts/build_runtime.py OUT`.

It holds what `fastddpm.onnx` and the command `fastddpm-onnx` import, found by following their imports, under
the name `fastddpm_onnx`; what runtime/ has stands in the place of ours. A module that would load anything but
numpy, ONNX Runtime and the standard library stays out; where one is imported at the top of a module that is
needed, the build fails.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOTS = ("fastddpm.onnx", "fastddpm.cli.onnx_command")
ALLOWED = {"numpy", "onnxruntime", "typing_extensions"}
"""Packages that a module may load; what it imports in functions is not loaded."""
PACKAGE = "fastddpm_onnx"


def main() -> None:
    """Writes the wheel and the source distribution, or the source tree alone."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("out", type=Path, help="folder for the wheel and the source distribution")
    options.add_argument("--tree", action="store_true", help="write the source tree there and build nothing")
    options.add_argument(
        "--wheel", action="store_true", help="build the wheel alone, with the setuptools here"
    )
    given = options.parse_args()
    if given.tree:
        write_tree(given.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "fastddpm-runtime"
        write_tree(tree)
        words = ["--wheel", "--no-isolation"] if given.wheel else []
        build = [sys.executable, "-m", "build", *words, "--outdir", str(given.out), str(tree)]
        sys.exit(subprocess.run(build, check=False).returncode)


def write_tree(tree: Path) -> None:
    """A source tree that setuptools can build.

    Raises:
        SystemExit: a module that is needed would load another package.
    """
    shutil.copytree(ROOT / "runtime", tree, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", tree)
    (tree / PACKAGE / "py.typed").touch()
    modules = gathered()
    for name in modules:
        target = tree / place_of(name)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(renamed(path_of(name).read_text(), modules))
    version = re.search(r"^__version__ = .*$", path_of("fastddpm").read_text(), re.MULTILINE)
    assert version is not None
    with (tree / PACKAGE / "__init__.py").open("a") as file:
        file.write(f"\n\n{version[0]}\n")


def gathered() -> set[str]:
    """The modules that are needed, with the packages that they lie in."""
    found: set[str] = set()
    waiting = [*ROOTS]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        if others := loaded(name) - ALLOWED:
            sys.exit(f"{name} would load {', '.join(sorted(others))}; {', '.join(sorted(ALLOWED))} may be")
        found.add(name)
        at_top, later = imports(name)
        waiting += at_top
        waiting += [other for other in later if not loaded(other) - ALLOWED]
    return found


@cache
def loaded(name: str) -> frozenset[str]:
    """The packages, others than the standard library and ours, that importing a module loads."""
    seen: set[str] = set()
    packages: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        waiting += imports(one)[0]
        packages |= {top for top in foreign(one) if top not in sys.stdlib_module_names}
    return frozenset(packages)


@cache
def imports(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """Our modules that a module imports: at its top, with the packages that it lies in, and in functions."""
    parts = name.split(".")
    above = {".".join(parts[:count]) for count in range(1, len(parts))}
    at_top, later = (
        {one for wanted in names(name, in_functions) for one in ours(wanted)}
        for in_functions in (False, True)
    )
    return frozenset(at_top | above - {"fastddpm"}) - {name}, frozenset(later)


@cache
def foreign(name: str) -> frozenset[str]:
    """The names at the top of what else it imports when it is loaded."""
    return frozenset(wanted.partition(".")[0] for wanted in names(name, False) if not is_ours(wanted))


def ours(wanted: str) -> list[str]:
    """The module that a dotted name is or lies in, and the packages above, but for fastddpm itself."""
    parts = wanted.split(".")
    found = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return [one for one in found if is_ours(one) and one != "fastddpm" and path_of(one).exists()]


def is_ours(wanted: str) -> bool:
    """Whether a dotted name begins with a package of ours."""
    return wanted.partition(".")[0] in ("fastddpm", "fastddpm_kernels")


def names(name: str, in_functions: bool) -> Iterator[str]:
    """The dotted names that a module imports: in its functions, or else when it is loaded."""
    package = name if path_of(name).name == "__init__.py" else name.rpartition(".")[0]
    for node, inside in walked(ast.parse(path_of(name).read_text()), False):
        if inside != in_functions:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def walked(node: ast.AST, inside: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Nodes, and whether each is in a function; without those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child, inside
        is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from walked(child, inside or is_function)


def path_of(name: str) -> Path:
    """Of a module of ours, there or not."""
    folder = ROOT / "kernels" if name.startswith("fastddpm_kernels") else ROOT
    path = folder.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def place_of(name: str) -> Path:
    """Of the same module in the tree."""
    path = path_of(name)
    if name.startswith("fastddpm_kernels"):
        return Path(PACKAGE, "kernels") / path.relative_to(ROOT / "kernels" / "fastddpm_kernels")
    return Path(PACKAGE) / path.relative_to(ROOT / "fastddpm")


def renamed(source: str, modules: set[str]) -> str:
    """A module's text, with the modules that are here under their new names; others keep theirs."""
    tops = sorted({name.split(".")[1] for name in modules if name.startswith("fastddpm.")})
    source = re.sub(r"\bfastddpm_kernels\b", f"{PACKAGE}.kernels", source)
    source = re.sub(rf"\bfastddpm\.(?=(?:{'|'.join(tops)})\b)", f"{PACKAGE}.", source)
    source = re.sub(r"^( *)from fastddpm import", rf"\1from {PACKAGE} import", source, flags=re.MULTILINE)
    return re.sub(r"^( *)import fastddpm$", rf"\1import {PACKAGE} as fastddpm", source, flags=re.MULTILINE)


if __name__ == "__main__":
    main()
