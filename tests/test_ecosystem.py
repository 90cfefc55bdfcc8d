"""The page on installs, containers, notebook and editor: each of its commands exists as it is written there.

What they do is tested where they belong: test_extras, test_dockerfile, test_examples, test_params_schema.
"""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

from pipeline.cli import make_parser

PAGE = (ROOT / "docs" / "ecosystem.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
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
        case ["agiqa", *rest]:
            make_parser(rest[0]).parse_args(rest)
        case ["python", "-m", module]:
            assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
        case _:
            pytest.fail(f"nobody checks {line!r}")


def test_the_extras_of_the_page_are_those_of_the_project() -> None:
    told = re.search(r"^\| extra \|.*?\n\n", PAGE, re.M | re.S)[0]
    assert {name for name in EXTRAS if f"`{name}`" in told} == set(EXTRAS)


def test_the_python_of_the_page_runs(tmp_path: Path) -> None:
    (script,) = (text for text in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "jsonschema" in text)
    for name in ("params.yaml", "params.schema.json"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    (tmp_path / "params.yaml").write_text((tmp_path / "params.yaml").read_text().replace("epochs:", "epoch:", 1))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Additional properties are not allowed ('warmup_epoch' was unexpected)" in done.stderr
