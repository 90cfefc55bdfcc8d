"""Which of our modules a script runs, found from its imports. Imports pipeline.files."""

import ast
from pathlib import Path

from pipeline.files import file_md5

# MLflow mirrors the files and changes none of them, so an edit of the mirror makes no result stale.
EXEMPT = frozenset({"pipeline/tracking.py"})


def imported(path: Path, root: Path) -> set[str]:
    """Return our modules that one file imports anywhere in it, late imports included, as paths relative to `root`.

    Raises:
        ValueError: If the file imports ours in a way that cannot be followed (relative, or a name that is no module).
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}, line {node.lineno}: relative import; write `from pipeline import ...`")
            is_package = node.module in ("pipeline", "stages")
            names = [f"{node.module}.{alias.name}" for alias in node.names] if is_package else [str(node.module)]
        for name in names:
            if name.split(".")[0] in ("pipeline", "stages") and "." in name:
                module = name.replace(".", "/") + ".py"
                if not (root / module).is_file():
                    raise ValueError(f"{path}, line {node.lineno}: {name} is no module of ours ({module})")
                found.add(module)
    return found


def code_of(script: Path) -> dict[str, str]:
    """Return the md5 of a script and of every module that it imports, directly or not, by path.

    A file that is named as a module, such as page.html.j2 beside page.py, is part of it.

    Args:
        script: Relative to the repository root, which is the working folder, such as stages/train.py.
    """
    root, waiting, found = Path(), [script.as_posix()], {}
    while waiting:
        name = waiting.pop()
        if name not in found and name not in EXEMPT:
            path = root / name
            found |= {part.as_posix(): file_md5(part) for part in path.parent.glob(f"{path.stem}.*") if part.is_file()}
            waiting += imported(root / name, root)
    return dict(sorted(found.items()))
