"""Which of our modules a script runs, found from its imports."""

import ast
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import AgiqaError
from pipeline.files import file_md5

# MLflow mirrors the files and changes none of them, so an edit of the mirror makes no result stale.
EXEMPT = ("pipeline/tracking/", "pipeline/serving/register.py")
# What belongs to a module of the same name beside it. Nothing else does: not page.py~, nor page.html.j2.orig.
COMPANIONS = (".html", ".html.j2")
OURS = ("pipeline", "stages")


def imported(path: Path, root: Path, *, typing: bool = False) -> set[str]:
    """Return our modules that one file imports anywhere in it, late imports included, as paths relative to `root`.

    Args:
        path: Of the file.
        root: Holds pipeline/ and stages/.
        typing: Also what stands under `if TYPE_CHECKING`, which never runs.

    Raises:
        AgiqaError: If the file imports ours in a way that cannot be followed (relative, or a name that is no module).
    """
    found: set[str] = set()
    for node in _imports(ast.parse(path.read_text(encoding="utf-8"), str(path)), typing):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.level:
            raise AgiqaError(f"{path}, line {node.lineno}: relative import; write `from pipeline import ...`")
        else:
            # `from pipeline.data import demo` means a module, `from pipeline.data.demo import draw` a name in one.
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if _file_of(name, root) else str(node.module) for name in within]
        for name in names:
            if name.split(".")[0] in OURS:
                module = _file_of(name, root)
                if module is None or (module.endswith("__init__.py") and isinstance(node, ast.ImportFrom)):
                    asked = name if module is None else f"{name}.{node.names[0].name}"
                    raise AgiqaError(f"{path}, line {node.lineno}: {asked} is no module of ours")
                found.add(module)
    return found


def _imports(node: ast.AST, typing: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif typing or not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield from _imports(child, typing)


def _file_of(name: str, root: Path) -> str | None:
    """Return the file of a dotted name of ours, or None if it names none."""
    path = name.replace(".", "/")
    return next((file for file in (f"{path}.py", f"{path}/__init__.py") if (root / file).is_file()), None)


def _ancestors(name: str) -> list[str]:
    """Return the `__init__.py` files that run before a module does."""
    return [f"{folder.as_posix()}/__init__.py" for folder in Path(name).parents if folder.name]


def code_of(script: Path, root: Path = Path()) -> dict[str, str]:
    """Return the md5 of a script and of every module that it runs, directly or not, by path.

    The `__init__.py` of every folder on the way counts, and so do the templates beside a module.

    Args:
        script: Relative to `root`, such as stages/train.py.
        root: Of the repository.
    """
    waiting, found = [script.as_posix()], {}
    while waiting:
        name = waiting.pop()
        if name in found or name.startswith(EXEMPT) or not (root / name).is_file():
            continue
        parts = [name, *(name.removesuffix(".py") + suffix for suffix in COMPANIONS)]
        found |= {part: file_md5(root / part) for part in parts if (root / part).is_file()}
        waiting += [*_ancestors(name), *imported(root / name, root)]
    return dict(sorted(found.items()))
