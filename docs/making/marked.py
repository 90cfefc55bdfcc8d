"""Texts between markers: a script writes them into a page, and a test finds them there."""

from pathlib import Path


def markers(owner: str) -> tuple[str, str]:
    """Return the two comments around what a script owns; each stands once in a page."""
    return f"<!-- begin: {owner} writes this -->", f"<!-- end: {owner} -->"


def read(page: Path, owner: str) -> str:
    """Return what stands between a script's markers.

    Raises:
        ValueError: If the page lacks one of them.
    """
    return _parts(page, owner)[1].strip()


def write(page: Path, owner: str, text: str) -> None:
    """Put a text between a script's markers.

    Raises:
        ValueError: If the page lacks one of them.
    """
    before, _, after = _parts(page, owner)
    begin, end = markers(owner)
    page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")


def _parts(page: Path, owner: str) -> tuple[str, str, str]:
    begin, end = markers(owner)
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    inner, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} lacks the lines {begin!r} and {end!r}, between which {owner} writes")
    return before, inner, after
