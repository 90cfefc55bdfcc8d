"""The library of the AGIQA study: everything that the stages call.

To score images of your own:

    from pipeline import load_scorer

    scorer = load_scorer()  # the champion of this study; or a checkpoint file, or an MLflow URI
    scores = scorer.score(["one.png", "two.jpg"])
    scores.mos  # on the data set's MOS scale; scores.raw is in 0..1
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.images import ImageError as ImageError
    from pipeline.images import open_image as open_image
    from pipeline.scoring import Scorer as Scorer
    from pipeline.scoring import Scores as Scores
    from pipeline.scoring import load_scorer as load_scorer

_SCORING = ("ImageError", "Scorer", "Scores", "load_scorer", "open_image")


def __getattr__(name: str) -> Any:
    """Import what scores images when it is first asked for: torch costs a second that most stages need not pay."""
    if name in _SCORING:
        from pipeline import scoring

        return getattr(scoring, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
