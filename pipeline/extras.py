"""Which of this project's extras brings a package that is not installed."""

import re

NAME = "agiqa-study"
# Packages that are called otherwise than what is imported, and those that come with another.
_BROUGHT_BY = {
    "sklearn": "scikit-learn",
    "multipart": "python-multipart",
    "ruamel": "ruamel.yaml",
    "yaml": "pyyaml",
    "markupsafe": "jinja2",
    "psutil": "dvc",
    "dvc_data": "dvc",
    "networkx": "dvc",
    "voluptuous": "dvc",
    "alembic": "mlflow",
    "starlette": "fastapi",
    "anyio": "fastapi",
}


def advice(error: ImportError) -> str | None:
    """Return in one line what to install where a package is missing; None where it belongs to none of our extras.

    Args:
        error: Of an import that failed.
    """
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    if (extra := extra_of(package)) is None:
        return None
    return (
        f"this needs {_BROUGHT_BY.get(package, package)}, which comes with the extra {extra!r}: pip install "
        f"'{NAME}[{extra}]' (in a clone: pip install '.[{extra}]')"
    )


def extra_of(package: str) -> str | None:
    """Return the first extra that brings what is imported as `package`; None if none does."""
    brought = _plain(_BROUGHT_BY.get(package, package))
    for line in _wanted():
        found = re.match(r"""([\w.-]+)[^;]*;.*\bextra == ["']([\w-]+)["']""", line)
        if found and _plain(found[1]) == brought:
            return found[2]
    return None


def _wanted() -> list[str]:
    """Return what the installed project says that it needs; nothing where it was never installed."""
    from importlib.metadata import PackageNotFoundError, requires  # imported here: few processes need it

    try:
        return requires(NAME) or []
    except PackageNotFoundError:
        return []


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
