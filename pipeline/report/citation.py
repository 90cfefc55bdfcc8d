"""How to cite the study, and which state of it a report belongs to."""

import hashlib
from pathlib import Path
from typing import Any

import yaml

from pipeline.layout import locked_stages


def lock_md5(path: str | Path) -> str | None:
    """Return the md5 of dvc.lock's entries without those of the report and of the mirror, which runs after it.

    A page inside the report cannot name its own entry, nor one that is made when it is finished.

    Args:
        path: Of dvc.lock.

    Returns:
        The md5 of the remaining stages as YAML with sorted keys; None where there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        return None
    kept = {stage: entry for stage, entry in locked_stages(path).items() if stage not in ("report", "mirror")}
    return hashlib.md5(yaml.safe_dump(kept, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def bibtex(citation: str) -> str:
    """Return the BibTeX of a CITATION.cff: the software, and the article that it prefers.

    Args:
        citation: The file's text.
    """
    software = yaml.safe_load(citation)
    entries = [("software", "agiqa_study", software)]
    if "preferred-citation" in software:
        article = software["preferred-citation"]
        entries.append(("article", f"{_authors(article)[0]}{article['year']}".lower(), article))
    found = []
    for kind, key, entry in entries:
        fields = {"title": f"{{{entry['title']}}}", "author": " and ".join(_authors(entry))}
        fields |= {"journal": entry.get("journal"), "volume": entry.get("volume"), "pages": entry.get("start")}
        fields |= {"version": entry.get("version"), "year": entry.get("year") or str(entry.get("date-released"))[:4]}
        fields |= {"doi": entry.get("doi"), "license": entry.get("license")}
        lines = [f"  {field} = {{{value}}}," for field, value in fields.items() if value is not None]
        found.append("\n".join([f"@{kind}{{{key},", *lines, "}"]))
    return "\n\n".join(found)


def _authors(entry: dict[str, Any]) -> list[str]:
    return [
        f"{{{author['name']}}}" if "name" in author else ", ".join(
            author[key] for key in ("family-names", "given-names") if key in author
        )
        for author in entry["authors"]
    ]  # fmt: skip
