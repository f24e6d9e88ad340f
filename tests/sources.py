"""The modules of jukesep that a source file imports, found without running it."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


@cache
def imports(path: Path, types: bool = True) -> tuple[tuple[str, ...], ...]:
    """The modules that a file imports, anywhere in it, each as its parts.

    `types` off leaves out what it imports for a type checker alone.
    """
    return tuple(_imports(path, types))


def _imports(path: Path, types: bool) -> Iterator[tuple[str, ...]]:
    package = path.relative_to(ROOT).parent.parts
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), types):
        if not isinstance(node, ast.ImportFrom):
            continue
        start = package[: len(package) - node.level + 1] if node.level else ()
        module = (*start, *(node.module or "").split(".")) if node.module else start
        if module[0] != "jukesep":
            continue
        for name in node.names:
            whole = ROOT.joinpath(*module, name.name)
            is_module = whole.with_suffix(".py").is_file() or whole.is_dir()
            yield (*module, name.name) if is_module else module


def _nodes(tree: ast.AST, types: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if types or not guard:
            yield node
            yield from _nodes(node, types)


def closure(path: Path) -> set[str]:
    """The files of jukesep that run when a file does, itself included: paths below the project.

    What a function imports counts as well.
    """
    found: set[str] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        name = file.relative_to(ROOT).as_posix()
        if name in found:
            continue
        found.add(name)
        for module in imports(file, types=False):
            for end in range(1, len(module) + 1):
                place = ROOT.joinpath(*module[:end])
                waiting.append(
                    place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
                )
    return found
