"""The page on installs, containers, notebook and editor: what no parser here knows exists as it is written there.

Commands of this project's own are checked with all other pages' in test_docs. What they do is tested where it belongs:
test_extras, test_dockerfile, test_examples, test_params_schema, test_elsewhere.
"""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "ecosystem.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
COMMANDS = [line for line in COMMANDS if line.split()[0] in ("pip", "docker", "jupyter")]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_exists(line: str) -> None:
    words = shlex.split(line.split(" > ")[0])
    match words:
        case ["pip", "install", wanted, *rest]:
            assert wanted == "." or set(re.fullmatch(r"\.\[(.+)\]", wanted)[1].split(",")) <= set(EXTRAS)
            assert rest in ([], ["jupyterlab"])
        case ["docker", "build", "-t", _, *options, "."]:
            for name, value in zip(options[::2], options[1::2], strict=True):
                if name == "--target":
                    assert f" AS {value}\n" in DOCKERFILE
                else:
                    assert name == "--build-arg"
                    assert f"\nARG {value.split('=')[0]}=" in DOCKERFILE
        case ["docker", "run", "--rm", *options]:
            image = next(word for word in options if word.startswith("agiqa"))
            built = {re.search(r"-t (\S+)", one)[1] for one in COMMANDS if one.startswith("docker build")}
            assert image in built
            mounted = [word.split(":")[1] for word in options if word.startswith("$PWD:")]
            assert all(f"\nWORKDIR {folder}\n" in DOCKERFILE for folder in mounted)
        case ["jupyter", "lab", path]:
            assert (ROOT / path).is_file()
        case _:
            pytest.fail(f"nobody checks {line!r}")


def test_the_extras_of_the_page_are_those_of_the_project() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", PAGE, re.M)
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row)} == set(EXTRAS) - {"s3-test"}


def test_any_validator_finds_a_misspelt_key(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(import json\n.*?)```", PAGE, re.S)
    for name in ("params.yaml", "params.schema.json"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    (tmp_path / "params.yaml").write_text((tmp_path / "params.yaml").read_text().replace("epochs:", "epoch:", 1))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Additional properties are not allowed ('warmup_epoch' was unexpected)" in done.stderr
