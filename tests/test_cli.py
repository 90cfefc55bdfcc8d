"""The command as a user types it: a thousand images and forty broken files, kills, pipes, and what it refuses."""

import csv
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from pipeline import load_scorer
from pipeline.cli import main

Run = Callable[..., int]


@pytest.fixture
def agiqa(tiny_checkpoint: Path) -> Run:
    """Return what runs a scoring command with the tiny checkpoint in this process."""
    return lambda *arguments: main([*map(str, arguments), "--checkpoint", str(tiny_checkpoint), "--device", "cpu"])


def encoded(seed: int, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32 + seed % 5, 32 + seed % 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def bomb() -> bytes:
    """Return a PNG of 1 kB that claims 400 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 1,000 images, some of odd names, and 40 files that are none."""
    folder = tmp_path_factory.mktemp("crowd") / "images"
    forms = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}
    for number in range(1000):
        suffix = list(forms)[number % 5]
        place = folder / f"part {number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:04d}{suffix}").write_bytes(encoded(number % 50, forms[suffix]))
    odd = [b"\xff\xfe.png", b"line\nbreak.png", "名前 🙂.png".encode(), b"-rf.png", b"'quoted\".png", b"*[a].png"]
    for number, name in enumerate(odd):  # these are images, too: they take the place of the first ones
        os.rename(
            folder / f"part {number % 3}" / f"{number:04d}{list(forms)[number % 5]}", os.fsencode(folder) + b"/" + name
        )
    whole = encoded(7, "JPEG")
    for number in range(8):
        (folder / f"truncated {number}.jpg").write_bytes(whole[: 200 + 40 * number])
        (folder / f"empty {number}.png").write_bytes(b"")
        (folder / f"page {number}.jpg").write_bytes(b"<!DOCTYPE html><html>404</html>")
    for number in range(6):
        (folder / f"text {number}.webp").write_text("no image at all")
    for number in range(4):
        (folder / f"bomb {number}.png").write_bytes(bomb())
        os.mkfifo(folder / f"pipe {number}.png")
    os.symlink("loop.png", folder / "loop.png")
    os.symlink("..", folder / "part 0" / "up")
    return folder


def test_a_thousand_images_and_forty_broken_files(
    agiqa: Run, crowd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path
) -> None:
    out = tmp_path / "scores.csv"
    assert agiqa("score", crowd, "--out", out) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1,000 images scored" in captured.err
    assert "40 could not be" in captured.err
    table = pd.read_csv(out)
    good = table[table["error"].isna()]
    assert (len(table), len(good)) == (1040, 1000)
    assert table["image"].is_unique
    reasons = table["error"].dropna().str.split(":").str[0]
    assert reasons.value_counts().to_dict() == {
        "is cut off": 8,
        "is empty (0 bytes)": 8,
        "is a web page saved under an image's name, not an image of pixels": 8,
        "is no image in a format that is read here, or its beginning is damaged": 6,
        "may be a decompression bomb": 4,
        "is no plain file (a pipe, a socket or a device)": 4,
        "is a link that leads in a circle": 1,
        "is a link that leads in a circle, back to a folder that it lies in": 1,
    }
    assert f"{crowd}/\\xff\\xfe.png" in set(table["image"])
    scorer = load_scorer(tiny_checkpoint, device="cpu")
    for row in good.iloc[::200].itertuples():
        if "\\x" not in row.image:
            assert row.score == pytest.approx(scorer.score(row.image).mos[0], abs=1e-5)
            assert row.score == pytest.approx(1 + 4 * row.raw, abs=1e-5)
    assert list(tmp_path.iterdir()) == [out]  # no journal is left


def command(checkpoint: Path, *arguments: object) -> list[str]:
    rest = [*map(str, arguments), "--checkpoint", str(checkpoint), "--device", "cpu"]
    return [sys.executable, "-m", "pipeline.cli", *rest]


@pytest.mark.slow
def test_killed_half_way_it_ends_with_the_same_file(
    agiqa: Run, crowd: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    whole, broken = tmp_path / "whole.csv", tmp_path / "broken.csv"
    arguments = ("score", crowd / "part 1", "--batch", 2)  # 333 images, slow enough to be hit half way
    assert agiqa(*arguments, "--out", whole) == 0
    journal = tmp_path / "broken.csv.journal"
    killed = subprocess.Popen(
        command(tiny_checkpoint, *arguments, "--out", broken), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:  # the head and three of eleven blocks
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not broken.exists()
    assert 32 * 3 <= 32 * (journal.read_bytes().count(b"\n") - 1) < 333
    assert agiqa(*arguments, "--out", broken) == 0
    assert broken.read_bytes() == whole.read_bytes()
    assert not journal.exists()


@pytest.fixture
def folders(in_tmp: Path) -> Path:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        for number in range(4):
            Path(folder, f"{number}.png").write_bytes(encoded(number + 10 * (folder == "b")))
    return in_tmp


def test_exit_status_and_pipes(agiqa: Run, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert agiqa("score", "a", "b/0.png") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["image"] for row in rows] == ["a/0.png", "a/1.png", "a/2.png", "a/3.png", "b/0.png"]
    assert agiqa("score", "a/0.png", "none.png", "--format", "json") == 1
    document = json.loads(capsys.readouterr().out)
    assert [image["error"] for image in document["images"]] == [None, "does not exist"]
    for arguments, message in {
        ("score", "*.gif"): "no file matches '*.gif'",
        ("score", "a", "--out", "scores.xls"): "its name must end in .csv, .json, .parquet",
        ("rank", "a", "--by", "prompt"): "a column that not every image has; columns: none, since no CSV is given",
    }.items():
        assert agiqa(*arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "agiqa: error: " in captured.err
        assert message in captured.err
    assert main(["score", "a", "--checkpoint", "none.safetensors"]) == 2
    assert "none.safetensors does not exist" in capsys.readouterr().err
    for arguments in (
        ["score", "a", "--batch", "0"],
        ["nonsense"],
        [],
        ["score", "a", "--out", "x.csv", "--format", "csv"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2


def test_a_list_on_standard_input_and_a_reader_that_stops(folders: Path, tiny_checkpoint: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    names = b"".join(os.fsencode(f"a/{number}.png") + b"\n" for number in range(4)) * 60
    ran = subprocess.Popen(
        command(tiny_checkpoint, "score", "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment,
    )  # fmt: skip
    ran.stdin.write(names)
    ran.stdin.close()
    assert ran.stdout.readline().startswith(b"image,score,low")
    ran.stdout.close()  # as head does
    assert b"Traceback" not in ran.stderr.read()
    ran.stderr.close()
    assert ran.wait() == 0


def test_rank_and_compare(agiqa: Run, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert agiqa("score", "a", "b") == 0
    scores = {row["image"]: float(row["score"]) for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    best = {folder: max((name for name in scores if name.startswith(folder)), key=scores.get) for folder in "ab"}
    assert agiqa("rank", "a", "b", "--top", 1) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["group"], row["place"], row["image"]) for row in rows] == [
        ("a", "1", best["a"]),
        ("b", "1", best["b"]),
    ]
    table = pd.DataFrame({"image": [f"{f}/{n}.png" for f in "ab" for n in range(4)], "prompt": ["cat", "dog"] * 4})
    table.to_csv("list.csv", index=False)
    assert agiqa("rank", "list.csv", "--by", "prompt", "--top", 1, "--format", "json") == 0
    ranked = json.loads(capsys.readouterr().out)["images"]
    for prompt, group in table.groupby("prompt"):
        assert {"group": prompt, "image": max(group["image"], key=scores.get)}.items() <= next(
            entry for entry in ranked if entry["group"] == prompt
        ).items()
    with pytest.MonkeyPatch.context() as patch:  # bands so wide that every image is within that of the first
        patch.setattr("pipeline.scoring.scorer.Scorer.band", lambda self, mos: (mos - 9, mos + 9))
        assert agiqa("rank", "a", "b", "--top", 3) == 0
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert [(row["order"], row["place"], row["tie"]) for row in rows] == [(n, "1", "True") for n in "123"] * 2
    for folder in "ab":
        assert f"agiqa: {folder}: 1 more not shown, whose place is that of one shown" in captured.err
    Path("b/broken.png").write_bytes(b"")
    Path("a/broken.png").write_bytes(encoded(3))
    assert agiqa("compare", "a", "b", "--format", "json") == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)["comparison"][0]
    assert "b/broken.png: is empty (0 bytes)" in captured.err
    assert (found["images_a"], found["images_b"], found["paired"]) == (4, 4, True)
    means = {folder: np.mean([value for name, value in scores.items() if name.startswith(folder)]) for folder in "ab"}
    assert found["difference"] == pytest.approx(means["a"] - means["b"], abs=1e-5)
    assert found["conclusion"] == "not shown"
    assert "agiqa: Conclusion: not shown which is better: A - B is " in captured.err
    assert agiqa("compare", "a", "b", "--format", "table") == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].startswith("Conclusion: not shown which is better: A - B is ")
    assert captured.out.splitlines()[-1].endswith("; fewer than 6 pairs of a set")
    assert "Conclusion" not in captured.err
    table.to_csv("list.csv", index=False)
    assert agiqa("compare", "list.csv", "list.csv", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)["comparison"][0]
    assert (found["grouped_by"], found["groups_a"], found["images_a"]) == ("column", 2, 8)
    assert found["method"] == "t interval over the 2 prompts of both sets (column prompt)"
    assert agiqa("compare", "a", "b", "--by", "folder") == 2
    assert "--by is folder, and 10 of the images lie in no folder below" in capsys.readouterr().err


def test_compare_quotes_the_error_by_generator_of_its_run(
    folders: Path, demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path("runs/photos/dcmpln/round-0")
    checkpoint = run / "train" / "checkpoints" / "epoch-000.safetensors"
    checkpoint.parent.mkdir(parents=True)
    shutil.copyfile(demo_checkpoint, checkpoint)
    (run / "train" / "record.json").write_text(json.dumps({"selected_epoch": 0, "validation": {"srcc": 0.5}}))
    (run / "evaluate").mkdir()
    means = {name: {"mos_mean": 3.0, "score_mean": 3.0 + error} for name, error in (("x", 0.3), ("y", -0.3))}
    (run / "evaluate" / "metrics.json").write_text(json.dumps({"validation": {"srcc": 0.5}, "generator": means}))
    assert main(["compare", "a", "b", "--format", "table", "--checkpoint", str(checkpoint), "--device", "cpu"]) == 0
    assert "misjudged a generator's mean by 0.30 typically (2 generators)" in capsys.readouterr().out


def test_quality_maps_are_drawn(agiqa: Run, folders: Path) -> None:
    assert agiqa("score", "a", "--quality-map", "maps", "--out", "s.csv") == 0
    assert pd.read_csv("s.csv")["quality_map"].tolist() == [f"maps/{number}.png.png" for number in range(4)]
    assert len(list(Path("maps").iterdir())) == 4


def test_a_second_run_scores_no_maps_of_the_first(
    agiqa: Run, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert agiqa("score", "a", "--quality-map", "a/maps", "--out", "s.csv") == 0
        assert pd.read_csv("s.csv")["image"].tolist() == [f"a/{number}.png" for number in range(4)]
    assert "passed over, since hidden, a system's own or quality maps: 1 (a/maps)" in capsys.readouterr().err
    assert agiqa("score", "a", "--out", "t.csv") == 0
    assert pd.read_csv("t.csv")["image"].tolist() == [f"a/{number}.png" for number in range(4)]


def test_rank_takes_a_column_in_letters_of_any_size(
    agiqa: Run, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("up.csv").write_text("Image,Prompt\na\\0.png,x\na\\1.png,x\nb\\0.png,y\n")
    assert agiqa("rank", "up.csv", "--by", "prompt") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["group"] for row in rows] == ["x", "x", "y"]
    assert agiqa("rank", "up.csv", "--by", "promt") == 2
    assert "columns: Image, Prompt; is it 'Prompt'?" in capsys.readouterr().err


def test_check_speaks_row_by_row(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{number}.png" for number in range(4)]
    table = pd.DataFrame({"image": names, "mos": [1, 2, 3, 4], "prompt": ["cat", "cat", "dog", "dog"]})
    table.to_csv("a/labels.csv", index=False)
    assert main(["check", "a", "--scale", "1", "5"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no problem; 4 images can be used, in 2 prompt groups; MOS 1 to 4 on the scale 1 to 5" in captured.err
    Path("a/2.png").write_bytes(b"")
    table.assign(mos=[1, 2, 3, 9]).to_csv("a/labels.csv", index=False)
    assert main(["check", "a/labels.csv", "--scale", "1", "5"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "bad_label        3.png: row 5: mos is 9, not in 1..5",
        "unreadable       2.png: 2.png is empty (0 bytes)",
    ]
    assert "2 problems; 2 images can be used" in captured.err
    assert main(["check", "a"]) == 2
    assert "nothing says on which scale `mos` is" in capsys.readouterr().err
    assert main(["check", "none"]) == 2


def test_audit_split_ends_as_the_split_is(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0: it shares nothing; 1: it leaks; 2: it cannot be told."""
    Path("train.csv").write_text("name,prompt\na.png,A red fox\nb.png,a cat\n")
    for prompt, status in {"a dog": 0, "a  red FOX.": 1, "": 2}.items():
        Path("test.csv").write_text(f"name,prompt\nc.png,{prompt}\n")
        assert main(["audit-split", "--train", "train.csv", "--test", "test.csv"]) == status
        told = capsys.readouterr()
        assert ("1 of 1 test prompts also stand in train" in told.out) == (status == 1)
        assert told.err == ("agiqa: error: test.csv: column 'prompt' is empty: name another with --prompt-column\n"
                            if status == 2 else "")  # fmt: skip


def test_a_released_checkpoint_that_is_not_whole_is_refused(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-release", "x.pth", "--out", "y.safetensors", "--dataset", "a", "--scale", "0", "5",
                 "--backbone-file", "none.pt"]) == 2  # fmt: skip
    assert "backbone.file is none.pt, which does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "~no such user/a.png", "--checkpoint", "~no such user/c"], "~no such user/c does not exist"),
        (["compare", "a", "c"], "c has no image with a score"),
        (["check", "table.csv"], "table.csv is no UTF-8 text"),
        (["audit-split", "c"], "c holds no split: two tables whose paths differ in the word train"),
        (["audit-split", "--train", "table.csv", "--test", "c/empty.png"], "table.csv is no UTF-8 text"),
        (["check", "folder"], "mos_low must hold one value in all rows"),
        (["export", "out.txt"], "out.txt ends in '.txt': name it .pt2 (torch.export) or .onnx"),
    ],
)
def test_a_users_mistake_is_one_line(
    folders: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    for name in ("c", "folder"):
        Path(name).mkdir()
    Path("c/empty.png").touch()
    Path("table.csv").write_bytes(b"\xff")
    Path("folder/labels.csv").write_text("image,mos,mos_low,mos_high\na.png,2,1,5\nb.png,2,0,5\n")
    if arguments[0] == "compare":
        arguments = [*arguments, "--checkpoint", str(tiny_checkpoint), "--device", "cpu"]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    told = [line for line in captured.err.splitlines() if line.startswith("agiqa: error: ")]
    assert len(told) == 1
    assert message in told[0]
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("fault", [ValueError("shapes differ"), RuntimeError("shapes differ"), KeyError("ctx")])
def test_a_fault_of_ours_keeps_its_traceback(folders: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr("pipeline.data.prepare.check", fail)
    with pytest.raises(type(fault)) as error:
        main(["check", "a"])
    assert error.value is fault


def test_numbers_are_finite(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("inf", "nan", "five"):
        with pytest.raises(SystemExit) as stop:
            main(["check", "a", "--scale", "0", text])
        assert stop.value.code == 2
        assert f"argument --scale: '{text}' is no number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["scroe", "a"], r"agiqa: error: .*'scroe'.*; did you mean 'score'\? \(agiqa --help says more\)"),
        (
            ["score", "a", "--chekpoint", "x"],
            r"agiqa score: error: .*: --chekpoint x; did you mean '--checkpoint'\? .*",
        ),
        (["serve", "--prot=80"], r"agiqa serve: error: .*: --prot=80; did you mean '--port'\? .*"),
        (["score", "a", "--device", "cdua"], r"agiqa score: error: .*; did you mean 'cuda'\? .*"),
        (["xyzzy"], r"agiqa: error: (?!.*did you mean).*"),
        (["score", "a", "--xyzzy"], r"agiqa score: error: unrecognized arguments: --xyzzy \(.*"),
        (["score", "a", "--out", "x.csv", "--format", "csv"], r"agiqa score: error: --format is for standard output.*"),
        ([], r"agiqa: error: the following arguments are required: COMMAND .*"),
    ],
)
def test_a_misspelt_word_is_told_in_a_line(capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(told + "\n", captured.err)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    expected = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    assert capsys.readouterr().out == f"agiqa {expected}\n"


def test_completion_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    assert "_shtab_agiqa" in capsys.readouterr().out


HEAVY = {"numpy", "torch", "pandas", "PIL", "scipy", "mlflow", "matplotlib", "pydantic"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["score", "--help"], ["check", "--help"], ["nonsense"]]
)
def test_help_costs_nothing_that_is_slow_to_import(arguments: list[str]) -> None:
    """Help may take a fifth of a second of the processor, which any two of HEAVY pass."""
    code = "import runpy, sys, atexit\n"
    code += "atexit.register(lambda: print('imported', *sys.modules))\n"
    code += f"sys.argv[1:] = {arguments}\nrunpy.run_module('pipeline.cli', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (2 if arguments == ["nonsense"] else 0), done.stderr
    imported = done.stdout.splitlines()[-1].split()
    assert imported[0] == "imported"
    assert not HEAVY & set(imported)
    ours = {f"pipeline.{name}" for name in ("arguments", "errors", "extras", "startup")}
    assert {name for name in imported if name.startswith("pipeline.")} == ours


@pytest.fixture
def statistics_checkpoint(tmp_path: Path) -> Path:
    """Return a checkpoint of trees over statistics, which needs no network."""
    from pipeline.model.checkpoint_file import write_checkpoint
    from pipeline.training import baselines
    from pipeline.training.statistics import NAMES

    rng = np.random.default_rng(0)
    train = rng.standard_normal((60, len(NAMES))), rng.uniform(size=60)
    model = baselines.fit_handcrafted(train, learning_rate=0.1, max_iterations=5, max_depth=3, seed=0)
    record = {
        "method": "handcrafted", "dataset": "demo", "target": "quality", "leaks": [], "texts": [], "mos_low": 0.0,
        "mos_high": 5.0, "raters": "simulated", "backbone": None, "windows": None, "prompt_depth": 0,
        "prompt_length": 0, "residual_ratio": None, "statistics": list(NAMES),
    }  # fmt: skip
    path = tmp_path / "trees.safetensors"
    write_checkpoint(path, baselines.arrays("handcrafted", model, np.zeros((2, 2))), record)
    return path


@pytest.mark.parametrize("kind", ["demo_checkpoint", "statistics_checkpoint"])
def test_a_single_image_costs_what_runs_for_it(kind: str, request: pytest.FixtureRequest, folders: Path) -> None:
    """Each of these takes a quarter of a second of the processor or more, torch's compiler two."""
    code = "import atexit, runpy, sys\natexit.register(lambda: print('imported', *sys.modules))\n"
    code += f"sys.argv[1:] = ['score', 'a/0.png', '--checkpoint', {str(request.getfixturevalue(kind))!r}]\n"
    code += "runpy.run_module('pipeline.cli', run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    imported = set(last.split())
    assert table[1].startswith("a/0.png,")
    assert "numpy" in imported
    assert not imported & {
        "torch._dynamo", "torch._inductor", "sympy", "timm", "scipy.stats", "scipy.optimize", "pandas", "mlflow",
        "sqlite3", "sklearn", "matplotlib", "transformers",
    }  # fmt: skip
    if kind == "statistics_checkpoint":
        assert not imported & {"torch", "torchvision", "open_clip"}
    else:
        assert "open_clip" in imported
        assert "scipy.ndimage" not in imported


def test_the_package_imports_nothing_but_itself() -> None:
    code = "import sys; before = set(sys.modules); import pipeline; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = done.stdout.split()
    assert "pipeline" in imported
    assert len(imported) < 60  # of the standard library
    assert not HEAVY & set(imported)


def test_help_reads_well() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for word in (
        "score",
        "rank",
        "compare",
        "check",
        "fetch-release",
        "import-release",
        "serve",
        "export",
        "audit-split",
        "init-data",
        "plan",
        "completion",
        "examples:",
    ):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 115
