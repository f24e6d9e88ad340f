"""docs/layout.md: its tree is true, and has every module of the package."""

from pathlib import Path

from documents import ROOT, blocks, made_by_the_pipeline, read


def _tree():
    """The paths of the tree: two blanks indent, and the texts begin in column 22."""
    (tree,) = blocks(read("docs/layout.md"), "")
    folders = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = line.split() if not line[:22].endswith(" ") else line[:22].split()
        yield from (Path(*folders[:depth], name).as_posix() for name in names)
        folders[depth:] = names[:1]


PATHS = set(_tree())


def test_what_the_tree_names_is_there():
    made = made_by_the_pipeline()
    assert not [path for path in PATHS if path not in made and not (ROOT / path).exists()]


def test_the_tree_has_every_module():
    """An `__init__.py` too, where it has more than its docstring's line."""
    for folder in ("jukesep", "stages"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = path.read_text(encoding="utf-8").count("\n")
            entry = path.parent if path.name == "__init__.py" and lines < 2 else path
            assert entry.relative_to(ROOT).as_posix() in PATHS
