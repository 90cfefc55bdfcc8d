"""The library of the AGIQA study: everything that the stages call.

To score images of your own:

    from pipeline import load_scorer

    scorer = load_scorer()  # the champion of this study; or a checkpoint file, hf:owner/name, or an MLflow URI
    scores = scorer.score(["one.png", "two.jpg"])
    scores.mos  # on the data set's MOS scale; scores.raw is in 0..1
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.data.decoding import ImageError as ImageError
    from pipeline.data.decoding import open_image as open_image
    from pipeline.scoring.mean_score import MeanScore as MeanScore
    from pipeline.scoring.scorer import Scorer as Scorer
    from pipeline.scoring.scorer import Scores as Scores
    from pipeline.scoring.scorer import load_scorer as load_scorer

# Where each public name lives; as text, since what stands here as an import would count as code of every stage.
_PUBLIC = {
    "ImageError": "pipeline.data.decoding",
    "MeanScore": "pipeline.scoring.mean_score",
    "Scorer": "pipeline.scoring.scorer",
    "Scores": "pipeline.scoring.scorer",
    "load_scorer": "pipeline.scoring.scorer",
    "open_image": "pipeline.data.decoding",
}


def __getattr__(name: str) -> Any:
    """Import what scores images when it is first asked for: torch costs a second that most stages need not pay."""
    if name == "__version__":
        from importlib.metadata import version

        return version("agiqa-study")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
