"""How the study is cited, and by which name its state goes."""

from pathlib import Path

from conftest import ROOT

from pipeline.report import citation


def test_the_lock_is_named_without_what_runs_last(tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    assert citation.lock_md5(lock) is None
    lock.write_text("schema: '2.0'\nstages:\n  train:\n    cmd: x\n  report:\n    cmd: y\n    outs: [1]\n")
    name = citation.lock_md5(lock)
    lock.write_text("schema: '2.0'\nstages:\n  report:\n    cmd: y\n    outs: [2]\n  train:\n    cmd: x\n")
    assert citation.lock_md5(lock) == name
    lock.write_text(lock.read_text() + "  mirror:\n    cmd: w\n")  # after the report
    assert citation.lock_md5(lock) == name
    lock.write_text("schema: '2.0'\nstages:\n  train:\n    cmd: z\n")
    assert citation.lock_md5(lock) != name


def test_the_citation_names_software_and_paper() -> None:
    text = citation.bibtex((ROOT / "CITATION.cff").read_text())
    assert text.startswith("@software{agiqa_study,\n  title = {{AGIQA study")
    assert "@article{lu2025," in text
    assert "  author = {Lu and Han and Zhou and Yang and Zhang and Jin and Jiang and Xu}," in text
    assert "  doi = {10.1016/j.displa.2025.103208}," in text
