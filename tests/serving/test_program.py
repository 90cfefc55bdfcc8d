"""Exported programs against PyTorch, read by runtimes that know nothing of ours."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_parts import RULE, SAID, TIMM_KINDS, model_of, timm_towers
from PIL import Image

from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import save_checkpoint
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.folded import fold
from pipeline.scoring.scorer import Scorer, load_scorer
from pipeline.serving import program
from pipeline.serving.program import TOLERANCE, ExportError, export_scorer, load_program, preprocessing, window_scorer

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("switches", [{}, {"adapter": False}, {"prompt_depth": 1}, {"prompt_depth": 2}])
def test_what_is_traced_scores_as_the_folded_scorer(tiny_backbone: Backbone, switches: dict[str, object]) -> None:
    torch.manual_seed(2)
    model = DCMPLN(tiny_backbone, **{"prompt_depth": 3, "prompt_length": 4, "prompt_std": 0.5, **switches})
    scorer, windows = fold(model), torch.randn(6, 3, 32, 32)
    module = window_scorer(scorer)
    torch.testing.assert_close(module(windows)[0], scorer(windows), atol=1e-6, rtol=0)


def test_onnx_scores_any_batch_as_pytorch(demo_scorer: Scorer, onnx_file: Path) -> None:
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    for count in (1, 2, 7, 40):
        windows = torch.randn(count, 3, 64, 64)
        found = session.run(None, {"windows": windows.numpy()})[0]
        assert found.shape == (count,)
        np.testing.assert_allclose(found, demo_scorer.folded(windows).numpy(), atol=TOLERANCE, rtol=0)
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [program.OPSET]
    record = json.loads({entry.key: entry.value for entry in model.metadata_props}["agiqa"])
    assert record["windows"] == demo_scorer.rule.record()
    assert (record["mos_low"], record["mos_high"], record["target"]) == (1.0, 5.0, "quality")
    assert record["backbone"]["weights_sha256"] == demo_scorer.folded.backbone.record()["weights_sha256"]


def test_a_torch_program_scores_any_batch_and_carries_its_record(demo_scorer: Scorer, program_file: Path) -> None:
    program, record = load_program(program_file)
    for count in (1, 2, 7, 40):
        windows = torch.randn(count, 3, 64, 64)
        scores, features = program(windows)
        torch.testing.assert_close(scores, demo_scorer.folded(windows), atol=TOLERANCE, rtol=0)
        expected = demo_scorer.folded.backbone.encode_image(windows, demo_scorer.folded.visual_prompts)
        torch.testing.assert_close(features, expected, atol=TOLERANCE, rtol=1e-4)
    assert record == preprocessing(demo_scorer)


def test_the_command_writes_what_the_suffix_says(
    demo_scorer: Scorer,
    demo_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(program, "_program_bytes", lambda module, windows, record: (record.encode(), module))
    parser = argparse.ArgumentParser()
    program.add_arguments(parser)
    out, wrong = tmp_path / "scorer.pt2", tmp_path / "model.bin"
    assert program.run(parser.parse_args([str(out), "--checkpoint", str(demo_checkpoint)])) == 0
    assert json.loads(out.read_text()) == program.preprocessing(demo_scorer)
    assert "windows (N, 3, 64, 64) -> scores (N,) and features, checked with PyTorch" in capsys.readouterr().err
    for refused in (
        lambda: program.run(parser.parse_args([str(wrong)])),
        lambda: export_scorer(demo_scorer, wrong),
    ):
        with pytest.raises(ExportError, match=r"ends in '\.bin': name it \.pt2 \(torch\.export\) or \.onnx"):
            refused()
    assert not wrong.exists()


def test_a_foreign_program_is_refused(tmp_path: Path) -> None:
    foreign = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
    torch.export.save(foreign, tmp_path / "foreign.pt2")
    with pytest.raises(ExportError, match=r"foreign\.pt2 carries no agiqa\.json: it was not written by `agiqa export`"):
        load_program(tmp_path / "foreign.pt2")


def test_the_example_scores_as_the_scorer(demo_scorer: Scorer, onnx_file: Path, pictures: list[Path]) -> None:
    script = ROOT / "examples" / "score_with_onnxruntime.py"
    text = script.read_text()
    assert len(text.splitlines()) <= 60
    roots = set(re.findall(r"^(?:from|import) (\w+)", text, re.M))
    assert roots <= {"numpy", "onnxruntime", "PIL", *sys.stdlib_module_names}
    done = subprocess.run(
        [sys.executable, "-I", script, onnx_file, *pictures], capture_output=True, text=True, check=True
    )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(path) for path in pictures]
    scores = demo_scorer.score(pictures)
    np.testing.assert_allclose([float(line[1].split()[1]) for line in lines], scores.raw, atol=1e-4, rtol=0)
    np.testing.assert_allclose([float(line[2].split()[1]) for line in lines], scores.mos, atol=5e-4, rtol=0)
    told = [re.fullmatch(r"MOS .* of 1\.\.5, 90 % band ([\d.]+) to ([\d.]+)", line[2]) for line in lines]
    np.testing.assert_allclose([float(row[1]) for row in told], scores.low, atol=5e-4, rtol=0)
    np.testing.assert_allclose([float(row[2]) for row in told], scores.high, atol=5e-4, rtol=0)
    assert np.ptp(scores.raw) > 0.01  # images that differ, so that the comparison means something


def test_the_example_reads_deep_greys_and_goes_on_after_a_bad_file(
    demo_scorer: Scorer, onnx_file: Path, tmp_path: Path
) -> None:
    grey = np.random.default_rng(0).integers(0, 65536, (90, 80)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "g16.png")
    Image.fromarray(grey).save(tmp_path / "g16.tif")
    Image.fromarray(grey / np.float32(65535)).save(tmp_path / "f01.tif")
    (tmp_path / "bad.png").write_bytes(b"none")
    Image.new("RGB", (9, 99)).save(tmp_path / "small.png")
    names = ["bad.png", "g16.png", "small.png", "g16.tif", "f01.tif"]
    done = subprocess.run(
        [sys.executable, "-I", ROOT / "examples" / "score_with_onnxruntime.py", onnx_file, *names],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["bad.png", "small.png"]
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["g16.png", "g16.tif", "f01.tif"]
    raw = demo_scorer.score([tmp_path / line[0] for line in lines]).raw
    np.testing.assert_allclose([float(line[1].split()[1]) for line in lines], raw, atol=1e-4, rtol=0)


def test_a_program_that_scores_otherwise_is_not_written(
    demo_scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = lambda module, windows, record: (b"", lambda given: tuple(part + 1 for part in module(given)))  # noqa: E731
    monkeypatch.setattr(program, "_program_bytes", off)
    with pytest.raises(ExportError, match=r"a\.pt2 would score 1 off PyTorch, and 0\.0001 is allowed"):
        export_scorer(demo_scorer, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", TIMM_KINDS)
def test_a_tower_of_timms_is_exported_folded_or_as_it_is(kind: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    folded = fold(model_of(timm_towers(tmp_path, kind)))
    assert (folded.backbone.fast_tower() is None) == (kind == "map")
    windows = torch.randn(6, 3, 32, 32)
    torch.testing.assert_close(window_scorer(folded)(windows)[0], folded(windows), atol=1e-6, rtol=0)
    save_checkpoint(tmp_path / "one.safetensors", folded, {"windows": RULE.record(), **SAID})
    scorer = load_scorer(tmp_path / "one.safetensors", device="cpu")
    export_scorer(scorer, tmp_path / "one.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 6):
        found = session.run(None, {"windows": windows[:count].numpy()})[0]
        np.testing.assert_allclose(found, folded(windows[:count]).numpy(), atol=TOLERANCE, rtol=0)
