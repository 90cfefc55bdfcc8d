"""README and docs: every block is run or held to the real parser, every link leads somewhere, nothing is left out.

A fenced block says what it is by its language. One of commands may say above it, in a comment, how it is tested:

    <!-- run -->                        the default: run in an empty folder with images, every command must end with 0
    <!-- run; ends with: 1 -->
    <!-- run against the server -->     with `agiqa serve` behind 127.0.0.1:8000
    <!-- parsed: WHY -->                every command exists and its arguments are understood; WHY it is not run, or the
                                        test elsewhere that runs it, which must exist
                                        (a Python block is compiled, params are taken, text is left to that test)
    <!-- output of: COMMAND -->         of text: what the command prints, to the letter
    <!-- answer of: /score -->          of JSON: the keys of the server's answer

A block that none of this covers fails.
"""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from dvc.cli import DvcParserError
from dvc.cli import parse_args as parse_dvc
from markdown_it import MarkdownIt
from PIL import Image

from pipeline.cli import main, make_parser
from pipeline.params import parse_params
from pipeline.yaml_file import read_yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "making"))
sys.path.insert(0, str(ROOT / "benchmarks"))

import marked  # noqa: E402
import parameters  # noqa: E402
import speed_table  # noqa: E402

import results  # noqa: E402

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
# Pages that people read outside the site, or in it through a snippet; they mark code by indentation.
OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
OTHERS += sorted((ROOT / "models").glob("*/README.md"))
MARKDOWN = MarkdownIt("commonmark").enable("table")
OPERATORS = {"&&", "||", "|", ";", "&"}
SERVER = "127.0.0.1:8000"


class Block(NamedTuple):
    """A block of code: where it stands, its language, its text, and what the comment above it says."""

    page: Path
    line: int
    language: str
    text: str
    said: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    said = ""
    for token in MARKDOWN.parse(page.read_text(encoding="utf-8")):
        comment = re.fullmatch(r"<!-- (.*?) -->\s*", token.content, re.S) if token.type == "html_block" else None
        if token.type in ("fence", "code_block"):
            yield Block(page, token.map[0] + 1, token.info.strip(), token.content, said)
        said = comment[1] if comment else ""


BLOCKS = [block for page in PAGES for block in blocks(page)]


def of(*languages: str, said: str = "") -> Any:
    """Parametrise a test by the blocks of some languages whose comment begins so."""
    found = [block for block in BLOCKS if block.language in languages and re.match(said, block.said)]
    return pytest.mark.parametrize("block", found, ids=str)


def test_no_block_is_left_out() -> None:
    tested = {
        "bash": r"$|run$|run; ends with: \d$|run against the server$|parsed: \S", "python": r"$|run$|parsed: tests/",
        "yaml": r"$|parsed: tests/",
        "csv": r"$", "json": r"answer of: /\w+$", "text": r"output of: \S|parsed: tests/",
    }  # fmt: skip
    for block in BLOCKS:
        assert block.language in tested, f"{block} is in {block.language or 'no language'}: no test runs it"
        assert re.match(tested[block.language], block.said), f"{block}: no test knows what {block.said!r} means"
        for name in re.findall(r"tests/[\w/]+\.py", block.said):
            assert (ROOT / name).is_file(), f"{block}: {name} does not exist"


# Parsed: commands that exist, with arguments that they understand


def commands(text: str) -> Iterator[list[str]]:
    """Give the words of every command of a shell's text, without redirections."""
    text = text.replace("\\\n", " ").replace("<this repository>", "https://example.org/repository")
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="<>|&;")
        lexer.whitespace_split = True
        words: list[str] = []
        found = iter([*lexer, ";"])
        for word in found:
            if word in OPERATORS:
                if words and words[0] not in ("while", "done"):  # of a loop, what stands in it
                    yield words
                words = []
            elif word in (">", ">>", "<"):
                next(found)
            elif words or not (word == "do" or re.match(r"[A-Z_]+=", word)):
                words.append(word)


def check(words: list[str]) -> None:
    """Fail unless a command exists and understands its arguments."""
    name, *rest = words
    CHECKS[Path(name).name if name != "." else "."](rest)


def check_agiqa(words: list[str]) -> None:
    make_parser(words[0]).parse_args(words)


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, given, _ = word.partition("=")
        assert re.search(rf"^{name} \?=" if given else rf"^{name}:", makefile, re.M), word


def check_dvc(words: list[str]) -> None:
    parse_dvc(words)


PARSE_MLFLOW = """
import sys
from mlflow.cli import cli
command, words = cli, sys.argv[1:]
while hasattr(command, "commands"):
    command = command.commands[words.pop(0)]
command.make_context(command.name, words)
"""


def check_mlflow(words: list[str]) -> None:
    """Parse in a process of its own, since MLflow's command warns and changes what others in this one see of it."""
    done = subprocess.run([sys.executable, "-c", PARSE_MLFLOW, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_git(words: list[str]) -> None:
    assert subprocess.run(["git", words[0], "-h"], capture_output=True, cwd=ROOT).returncode == 129, words


def check_python(words: list[str]) -> None:
    if words[0] == "-m":
        path = words[1].replace(".", "/")
        assert (ROOT / f"{path}.py").is_file() or (ROOT / path / "__init__.py").is_file(), words
        return
    script = ROOT / words[0]
    assert script.is_file(), script
    told = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    for word in words[1:]:
        assert not word.startswith("-") or word.split("=")[0] in told, word


def check_curl(words: list[str]) -> None:
    assert words[-1].startswith("http://127.0.0.1:"), words
    if "-d" in words:
        json.loads(words[words.index("-d") + 1])


def check_torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(words)
    check_python([*(["-m"] if options.module else []), options.training_script])


def check_xargs(words: list[str]) -> None:
    check(words[next(place for place, word in enumerate(words) if word in CHECKS) :])


def check_files(words: list[str]) -> None:
    for word in words[: max(1, len(words) - 1)]:
        assert (ROOT / word).exists(), word


def check_export(words: list[str]) -> None:
    assert words, "export names nothing"
    assert all(re.fullmatch(r"[A-Z_]+=\S+", word) for word in words), words


def check_folder(words: list[str]) -> None:
    assert len(words) == 1


def check_activation(words: list[str]) -> None:
    assert words == [".venv/bin/activate"]


def check_programs(words: list[str]) -> None:
    pins = (ROOT / "constraints.txt").read_text()
    assert f"\n{words[0].replace('_', '-')}==" in pins, words


CHECKS = {
    "agiqa": check_agiqa, "make": check_make, "dvc": check_dvc, "mlflow": check_mlflow, "git": check_git,
    "python": check_python, "curl": check_curl, "cp": check_files, "$EDITOR": check_files, "export": check_export,
    "sbatch": lambda words: check_files(words[-1:]), "torchrun": check_torchrun, "xargs": check_xargs,
    "cd": check_folder, ".": check_activation, "pre-commit": lambda words: check_programs(["pre-commit"]),
}  # fmt: skip


@of("bash", said="parsed: ")
def test_commands_are_understood(block: Block) -> None:
    """A command that no parser here knows is left to the test that the block names."""
    elsewhere = re.search(r"tests/[\w/]+\.py", block.said)
    for words in commands(block.text):
        known = words[0] == "." or Path(words[0]).name in CHECKS
        assert known or elsewhere, f"{block}: nobody checks {words[0]!r}"
        if known:
            check(words)


@pytest.mark.parametrize("block", [block for page in OTHERS for block in blocks(page)], ids=str)
def test_commands_of_other_pages_are_understood(block: Block) -> None:
    for words in commands(block.text):
        check(words)


WRONG = (
    "agiqa scor x", "agiqa score --nope", "make nothing", "make NOTHING=1", "dvc nothing", "mlflow models nothing",
    "git nothing", "python docs/nothing.py", "python docs/making/results.py --nothing", "cp nothing params.yaml",
    "nothing", "curl http://example.org", "export nothing",
)  # fmt: skip


@pytest.mark.parametrize("line", WRONG)
def test_a_command_that_is_wrong_is_found(line: str) -> None:
    (words,) = commands(line)
    with pytest.raises((SystemExit, AssertionError, KeyError, DvcParserError)):
        check(words)


def test_a_shell_s_text_is_taken_apart() -> None:
    text = "a 'b c' && d > e # f\n# i\nK=1 g & h | while read -r x; do j $x; done"
    assert list(commands(text)) == [["a", "b c"], ["d"], ["g"], ["h"], ["j", "$x"]]


# Run


def draw(path: Path, seed: int, side: int = 96) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path)


def write_table(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all that the pages' commands speak of."""
    folder = tmp_path_factory.mktemp("workshop")
    for seed in range(3):
        draw(folder / f"photos/{seed}.webp", seed)
        draw(folder / f"my-images/{seed}.png", seed)
    draw(folder / "one.png", 1)
    draw(folder / "two.jpg", 2)
    for group in ("a fox", "a hen"):
        for seed in range(5):
            draw(folder / f"samples/{group}/{seed}.png", 10 + seed)
    for seed in range(7):
        draw(folder / f"model_a/{seed}.png", 20 + seed)
        draw(folder / f"model_b/{seed}.png", 30 + seed)
    write_table(folder / "prompts.csv", ["image", "prompt"], [["one.png", "a fox"], ["two.jpg", "a fox"]])
    names = [f"{seed}.png" for seed in range(6)]
    for seed, name in enumerate(names):
        draw(folder / "images" / name, seed)
    write_table(folder / "train.csv", ["name", "prompt"], [[name, f"a {name}"] for name in names[:4]])
    write_table(folder / "test.csv", ["name", "prompt"], [[name, f"a {name}"] for name in names[3:]])
    make_my_images(folder / "my_images")
    for name in ("examples", "models", "backbones", "params.yaml", "params.schema.json"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    for name, module in (("agiqa", "-m pipeline.cli"), ("python", "")):
        shim = folder / "bin" / name
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        shim.chmod(0o755)
    return folder


def make_my_images(folder: Path) -> None:
    """Make the data set of the page on data of one's own: 240 rows, of which three are wrong."""
    rows = []
    for number in range(1, 241):
        name = f"img/{number:04}.png"
        if number not in (12, 31):
            draw(folder / name, 1000 + number, side=20)
        rows.append([name, 9 if number == 7 else 1 + number % 40 / 10, f"prompt {number % 30}", "sdxl"])
    (folder / "img/0012.png").write_bytes(b"")
    draw(folder / "img/031.png", 31, side=20)
    write_table(folder / "ratings.csv", ["image", "mos", "prompt", "generator"], rows)


def environment(workshop: Path) -> dict[str, str]:
    return {
        **os.environ, "PATH": f"{workshop / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "HOME": str(workshop / "home"),
    }  # fmt: skip


def run_bash(text: str, workshop: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=workshop, env=environment(workshop), capture_output=True,
        encoding="utf-8", timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@of("bash", said=r"$|run$|run; ends with")
def test_commands_run(
    block: Block, workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plain `agiqa` is called in this process, where its imports are paid for once; all else goes to bash."""
    if "onnxruntime" in block.text:
        pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    monkeypatch.chdir(workshop)
    wanted = int((re.search(r"ends with: (\d)", block.said) or [0, 0])[1])
    (workshop / "home").mkdir(exist_ok=True)
    for line in block.text.replace("\\\n", " ").splitlines():
        bare = line.partition(" #")[0]
        if bare.startswith("agiqa ") and not set("|<>&;$") & set(bare):
            try:
                status = main(shlex.split(bare)[1:])
            except SystemExit as end:  # of --version
                status = end.code
            assert (status or 0) == wanted, f"{block}: {line}\n{capsys.readouterr()}"
        else:
            run_bash(line, workshop)


@of("python")
def test_python_runs(block: Block, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile(block.text, str(block), "exec")
    if block.said.startswith("parsed"):
        return
    monkeypatch.chdir(workshop)
    with Image.open("two.jpg") as opened:
        picture = opened.copy()
    known: dict[str, Any] = {
        "pil_image": picture, "array": np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8),
    }  # fmt: skip
    exec(code, known)
    if "scores" in known:
        assert known["scores"].mos.shape == (3,)


@of("text", said="output of: ")
def test_outputs_are_what_is_printed(
    block: Block, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if "photos" in block.said:
        request.getfixturevalue("agiqa_data")
        terminal = pytest.importorskip("terminal", reason="the extra `docs` is not installed")
        terminal.photos(tmp_path / "photos", ("glide_normal_003.jpg", "sd1.5_highcorr_187.jpg"))
        monkeypatch.chdir(tmp_path)
    else:
        monkeypatch.chdir(workshop)
    assert main(shlex.split(block.said)[3:]) == 1
    printed = capsys.readouterr()
    assert printed.out.rstrip() == block.text.rstrip()
    if "check" in block.said:
        assert f"`{printed.err.splitlines()[-1]}`" in block.page.read_text(encoding="utf-8")


@of("yaml")
def test_params_are_taken(block: Block, tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text(block.text)

    def merged(whole: Any, part: Any) -> Any:
        if not isinstance(part, dict) or not isinstance(whole, dict):
            return part
        return {**whole, **{key: merged(whole.get(key), value) for key, value in part.items()}}

    parse_params(merged(dict(read_yaml(ROOT / "params.yaml")), dict(read_yaml(tmp_path / "part.yaml"))))


@of("csv")
def test_tables_are_taken(block: Block, tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(block.text)
    for seed, row in enumerate(csv.DictReader(block.text.splitlines())):
        draw(tmp_path / row["image"], seed)
    assert main(["check", str(tmp_path), "--scale", "1", "5"]) == 0


@pytest.fixture(scope="module")
def server(workshop: Path) -> Iterator[str]:
    """Give the address of the server that the page on HTTP starts, on a free port."""
    (block,) = [block for block in BLOCKS if block.page.name == "http-api.md" and "serve --checkpoint" in block.text]
    command = shlex.split(block.text.replace("--port 8000", "--port 0"))[1:]
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *command], cwd=workshop, env=environment(workshop), text=True,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            line = next(line for line in process.stderr if "http://" in line)
            yield re.search(r"http://([\d.]+:\d+)", line)[1]
        finally:
            process.terminate()


@of("bash", said="run against the server")
def test_requests_are_answered(block: Block, workshop: Path, server: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    for line in block.text.replace("\\\n", " ").splitlines():
        assert SERVER in line, line
        answer = json.loads(run_bash(line.replace(SERVER, server).replace("curl ", "curl -s "), workshop))
        assert "detail" not in answer, answer


@of("json")
def test_answers_have_these_keys(block: Block, workshop: Path, server: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    answer = json.loads(run_bash(f"curl -s -F images=@one.png http://{server}/score", workshop))
    said = json.loads(block.text)
    assert list(said) == list(answer)
    assert list(said["scores"][0]) == list(answer["scores"][0])


# Links


def slug(text: str) -> str:
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def anchors(page: Path) -> set[str]:
    tokens = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    return {slug(after.content.replace("`", "")) for token, after in pairwise(tokens)
            if token.type == "heading_open"}  # fmt: skip


def links(page: Path) -> Iterator[str]:
    for token in MARKDOWN.parse(page.read_text(encoding="utf-8")):
        for inner in token.children or []:
            if inner.type in ("link_open", "image"):
                yield inner.attrs.get("href") or inner.attrs["src"]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?://", str(link)):
            continue
        target, _, anchor = str(link).partition("#")
        found = page.parent / target if target else page
        assert found.is_file(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(found), f"{page.name}: {link}"


def test_pictures_are_small_and_used() -> None:
    pictures = [path for path in (DOCS / "images").iterdir() if path.is_file()]
    assert all(path.stat().st_size <= 150_000 for path in pictures)
    assert sum(path.stat().st_size for path in pictures) <= 1_500_000
    used = {(page.parent / str(link)).resolve() for page in PAGES for link in links(page)}
    assert {path.resolve() for path in pictures} <= used


# Nothing is left out, and what scripts write is what they would write


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1200


def told() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def test_every_command_is_told() -> None:
    (group,) = [action for action in make_parser()._actions if action.dest == "==SUPPRESS==" and action.choices] or [
        action for action in make_parser()._actions if hasattr(action, "add_parser")
    ]
    for name in group.choices:
        assert re.search(rf"agiqa {name}\b", told()), f"no page tells of `agiqa {name}`"


def test_every_door_of_make_is_told() -> None:
    for name in re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.M):
        assert f"`make {name}`" in told(), f"no page tells of `make {name}`"


def test_every_parameter_is_told() -> None:
    said = marked.read(parameters.PAGE, parameters.OWNER)
    assert said == parameters.text().strip(), f"{parameters.OWNER} would write other tables: run it"
    raw = read_yaml(ROOT / "params.yaml")

    def keys(value: Any, name: str) -> Iterator[str]:
        if isinstance(value, dict) and not name.endswith(".train"):
            for key, inner in value.items():
                named = name in ("datasets", "variants")
                yield from keys(inner, f"{name}.<name>" if named else f"{name}.{key}".lstrip("."))
        else:
            yield name

    for key in set(keys(dict(raw), "")):
        assert f"`{key}`" in said, f"docs/params.md lacks {key}"


def test_the_table_of_speed_is_of_its_numbers() -> None:
    said = marked.read(speed_table.PAGE, speed_table.OWNER)
    rows = speed_table.read()
    assert said == speed_table.table(rows)
    lines = [line for line in said.splitlines() if line.startswith("| ")][2:]
    assert len(lines) == len(rows) >= 3
    for line, row in zip(lines, rows, strict=True):
        cells = dict(zip(speed_table.COLUMNS, [cell.strip() for cell in line.strip("|").split("|")], strict=True))
        assert (cells["what"], cells["threads"]) == (row["what"], row["threads"])
        assert row["machine"] in said
        assert float(cells["load"]) == pytest.approx(float(row["load"]), abs=0.06)
        if row["vs_open_clip"]:
            assert float(cells["vs_open_clip"].removesuffix(" x")) == pytest.approx(
                float(row["vs_open_clip"]), abs=0.006
            )


def test_results_are_of_the_reports() -> None:
    names = [folder.name for folder in sorted(results.RESULTS.iterdir())]
    assert "agiqa3k" in names
    for name in names:
        quoted = results.quotes(name)
        assert results.DOCS / "results.md" in quoted
        for page, text in quoted.items():
            assert marked.read(page, results.owner(name)) == text.strip(), f"{page.name}: run docs/making/results.py"
        (best, *_) = results.rows(name)
        assert f"{float(best['srcc']):.3f}" in quoted[results.DOCS / "results.md"]


def test_the_picture_of_the_terminal_shows_what_is_printed(agiqa_data: Path) -> None:
    terminal = pytest.importorskip("terminal", reason="the extra `docs` is not installed")
    assert terminal.PICTURE.read_text(encoding="utf-8") == terminal.drawn(terminal.printed())


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", out], cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_the_site_has_every_page(site: Path) -> None:
    for page in DOCS.glob("*.md"):
        assert (site / page.with_suffix(".html").name).is_file(), page
    assert not (site / "making").exists()
    api = (site / "python-api.html").read_text(encoding="utf-8")
    assert "Ends of the band that holds the MOS" in api  # from a docstring


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    """Links are followed by people; what a browser follows by itself must lie in the site."""
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", text):
            if not re.search(r'rel="?canonical', tag):
                assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), f"{page.name}: {tag}"
        assert 'class="mermaid"' not in text, f"{page.name}: the theme fetches mermaid from another host"
    for sheet in (*site.rglob("*.css"), *site.rglob("*.svg")):
        assert not re.search(r"(?:@import|url\()[\"' ]*(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
