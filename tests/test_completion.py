"""What the shells complete, asked of bash itself where it can be."""

import subprocess

import pytest

from pipeline.cli import make_parser
from pipeline.completion import script


@pytest.fixture(scope="module")
def of_bash() -> str:
    return script(make_parser("completion"), "bash")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sco"], {"score"}),
        (["score", "--che"], {"--checkpoint"}),
        (["score", "--device", ""], {"auto", "cpu", "cuda"}),
        (["serve", "--por"], {"--port"}),  # of a command in a module of its own
        (["score", "pyproj"], {"pyproject.toml"}),
        (["score", "--out", "pyproj"], {"pyproject.toml"}),
    ],
)
def test_bash_completes(of_bash: str, words: list[str], expected: set[str]) -> None:
    typed = " ".join(repr(word) for word in ["agiqa", *words])
    code = (
        f"{of_bash}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words)}; _shtab_agiqa; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_every_shell_has_a_script(shell: str) -> None:
    written = script(make_parser("completion"), shell)
    for word in ("score", "audit-split", "quality-map", "max-pixels"):
        assert word in written
