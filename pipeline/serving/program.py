"""The folded scorer as a program that needs nothing of ours: for PyTorch (.pt2) and for every ONNX runtime (.onnx).

Both take `windows`, normalised pixels (N, 3, H, W) in float32 with any N, and give `scores`, raw, (N,), and `features`,
(N, E), by which familiar images are told from others. Only the image tower is inside: no text tower, no tokenizer. How
a picture becomes windows, and what a raw score means, stands in the file itself under the name `agiqa`, as JSON: see
`preprocessing`.
"""

import argparse
import copy
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import AgiqaError
from pipeline.extras import advice

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.model.folded import FoldedScorer
    from pipeline.scoring.scorer import Scorer

KEY = "agiqa"  # of the preprocessing record: an ONNX metadata property, a torch.export extra file
SUFFIXES = (".pt2", ".onnx")
TOLERANCE = 1e-4  # of a score, against PyTorch

# The lowest opset that has all that the tower needs (17 brought LayerNormalization) and that torch's exporter writes
# without converting afterwards. Newer ones would shut out older runtimes and gain nothing.
OPSET = 18

STEPS = (
    "Turn the image as its EXIF orientation says, convert it from the profile that it embeds, if any, to sRGB "
    "(relative colorimetric), lay transparent pixels on white, and make it RGB, 8 bits a channel.",
    "Where shorter_side is given, resize the image (bicubic, antialiased) so that its short side is that and the "
    "long one in proportion, rounded. If a side is then shorter than window_size, do likewise up to window_size.",
    "Cut windows of window_size pixels at every stride from the top left; with cover `all` add a last row and column "
    "flush with the bottom and right edges where the stride does not reach them.",
    "Divide pixels by 255, subtract mean, divide by std, per channel, and put channels first: (N, 3, H, W).",
    "The image's raw score is the mean of its windows' scores; where `deviation_weights` is given, add its dot product "
    "with the standard deviation of the windows' features.",
    "With the numbers of `calibration`, its score on the MOS scale is low + (high - low) / (1 + exp(-(offset + slope "
    "raw))); its band at 50 + i percent is that minus and plus half_widths[i], cut to low..high, and the whole scale "
    "where that is null. Without `calibration`, mos_low + raw (mos_high - mos_low) ranks images and means no more.",
)


class ExportError(AgiqaError):
    """A scorer that cannot be exported, or a program that does not score as the scorer does."""


def preprocessing(scorer: "Scorer") -> dict[str, Any]:
    """Return the record that a program carries: the checkpoint's own, and the steps from a picture to its score."""
    weights = None if scorer.folded is None else scorer.folded.deviation_weights
    return {
        **scorer.record, "steps": list(STEPS), "deviation_weights": None if weights is None else weights.tolist()
    }  # fmt: skip


def export_scorer(scorer: "Scorer", path: str | Path) -> None:
    """Write the scorer as a program, after checking that the program gives the same scores.

    Args:
        scorer: From `load_scorer`.
        path: Ends in .pt2 (torch.export) or .onnx; replaced as a whole.

    Raises:
        ExportError: If the suffix is another one, the tower cannot be traced, a package for .onnx is missing, or a
            score differs by more than 1e-4.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ExportError(_unknown_suffix(path))
    import torch

    from pipeline.files import write_atomically

    if scorer.folded is None:
        raise ExportError(
            f"{scorer.record['method']} is no network, so there is no program to write: choose a variant with "
            f"--checkpoint, such as auto:{scorer.record['dataset']}:dcmpln"
        )
    size = scorer.rule.size
    module = window_scorer(scorer.folded)
    windows = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(0))
    make = _program_bytes if path.suffix == ".pt2" else _onnx_bytes
    with _quiet_exporters():
        data, run = make(module, windows, json.dumps(preprocessing(scorer), sort_keys=True))
    for count in (5, 1):  # not the batch that was traced alone
        with torch.no_grad():
            gap = max(
                float((found - expected).abs().max())
                for found, expected in zip(run(windows[:count]), module(windows[:count]), strict=True)
            )
        if not gap <= TOLERANCE:  # NaN, too
            raise ExportError(f"{path.name} would score {gap:g} off PyTorch, and {TOLERANCE:g} is allowed")
    write_atomically(path, data)


def _unknown_suffix(path: Path) -> str:
    return f"{path} ends in {path.suffix or 'nothing'!r}: name it .pt2 (torch.export) or .onnx"


def load_program(path: str | Path) -> "tuple[Run, dict[str, Any]]":
    """Return a .pt2 program as a function from windows to scores and features, and its preprocessing record.

    Args:
        path: From `export_scorer`. Load none from a stranger: PyTorch's format is not made for untrusted files.

    Raises:
        ExportError: If the file carries no record of ours.
    """
    import torch

    found: dict[str, Any] = {f"{KEY}.json": ""}
    with _quiet_exporters():
        module = torch.export.load(path, extra_files=found).module()
    if not found[f"{KEY}.json"]:
        raise ExportError(f"{path} carries no {KEY}.json: it was not written by `agiqa export`")
    return module, json.loads(found[f"{KEY}.json"])


def window_scorer(folded: "FoldedScorer") -> "nn.Module":
    """Return a copy of the folded scorer on the CPU with its image tower inside, so that it can be traced whole.

    The tower is the folded one, or the plain one where the backbone has no folded one.
    """
    from torch import nn

    from pipeline.model.dcmpln import score_features
    from pipeline.model.image_side import image_features

    class WindowScorer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = copy.deepcopy(folded.backbone.visual if tower is None else tower)
            self.adapter = copy.deepcopy(folded.adapter)
            self.register_buffer("prompts", folded.visual_prompts.clone())
            self.register_buffer("scale", folded.backbone.logit_scale.detach().clone())
            for name in ("text_features", "probe_weights", "probe_bias"):
                held = getattr(folded, name)
                self.register_buffer(name, None if held is None else held.clone())

        def forward(self, windows: "Tensor") -> "tuple[Tensor, Tensor]":
            if tower is None:
                features = image_features(self.tower, windows, self.prompts if len(self.prompts) else None)
            else:
                features = self.tower(self.tower.tokens(self.tower.embed(windows)), self.prompts[None])
            if self.probe_weights is not None:
                return features @ self.probe_weights[: features.shape[1]] + self.probe_bias, features
            return score_features(features, self.text_features, self.scale, self.adapter), features

    tower = folded.backbone.fast_tower()
    return WindowScorer().cpu().eval().requires_grad_(False)


Run = Callable[["Tensor"], "tuple[Tensor, Tensor]"]


def _program_bytes(module: "nn.Module", windows: "Tensor", record: str) -> tuple[bytes, Run]:
    import torch

    batch = {"windows": {0: torch.export.Dim("batch")}}
    program = torch.export.export(module, (windows[:3],), dynamic_shapes=batch)
    data = io.BytesIO()
    torch.export.save(program, data, extra_files={f"{KEY}.json": record})
    data.seek(0)
    return data.getvalue(), torch.export.load(data).module()


def _onnx_bytes(module: "nn.Module", windows: "Tensor", record: str) -> tuple[bytes, Run]:
    import torch

    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it, and would say so less clearly)
    except ImportError as error:
        raise ExportError(advice(error) or f"ONNX needs a package that is missing: {error}") from None
    program = torch.onnx.export(
        module, (windows[:3],), dynamo=True, opset_version=OPSET, verbose=False, input_names=["windows"],
        output_names=["scores", "features"], dynamic_shapes={"windows": {0: torch.export.Dim("batch")}},
    )  # fmt: skip
    program.model.metadata_props[KEY] = record
    data = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda given: tuple(map(torch.from_numpy, session.run(None, {"windows": given.numpy()})))


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Silence what PyTorch and onnxscript say about their own code; the scores are checked afterwards."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `agiqa export` takes."""
    parser.add_argument(
        "out", type=Path, metavar="FILE", help="to write: .onnx for every ONNX runtime, .pt2 for torch.export"
    )
    parser.add_argument(
        "--checkpoint",
        default="auto",
        metavar="WHICH",
        help="a file, hf:OWNER/NAME, an MLflow URI, auto (default), auto:DATASET[:METHOD]",
    )
    parser.add_argument("--backbone-file", type=Path, metavar="FILE", help="the towers' weights, if they lie elsewhere")


def run(arguments: argparse.Namespace) -> int:
    """Do `agiqa export` and return its exit status; errors are raised."""
    from pipeline.scoring.scorer import load_scorer

    out = arguments.out
    if out.suffix not in SUFFIXES:  # before anything is loaded
        raise ExportError(_unknown_suffix(out))
    scorer = load_scorer(arguments.checkpoint, device="cpu", backbone_file=arguments.backbone_file)
    export_scorer(scorer, out)
    size, megabytes = scorer.rule.size, out.stat().st_size / 1e6
    sys.stderr.write(
        f"{out}, {megabytes:.1f} MB: windows (N, 3, {size}, {size}) -> scores (N,) and features, checked with PyTorch. "
        f"Its metadata `{KEY}` says how a picture becomes windows\n"
    )
    return 0
