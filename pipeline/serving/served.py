"""The champion as MLflow loads and serves it: `mlflow.pyfunc.load_model(uri).predict(table)`, `mlflow models serve`.

MLflow copies this file into the model and runs it there (models from code), so it is the one module beside
pipeline.tracking that imports MLflow. Beside it lie a copy of our package, the checkpoint and, where the champion is a
network, the scorer as a torch.export program: no text tower, no open_clip, no repository and no connection are needed.

A table has a column `image` with, in each row, an image file's bytes, their base64, or a path. **A server reads no
path**: whoever can send it a request could otherwise have any file of its machine opened, and learn from the answer
whether it is there. Paths are read `locally`, which is wherever MLflow's scoring server is not running. A service of
your own around the model should load it with `load_model(uri, model_config={"read_paths": "never"})`; where every
client is trusted, `"always"` lets a server read paths, too.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

MAX_BYTES, MAX_PIXELS = 64 * 2**20, 64_000_000  # of one image


class ServedModel(PythonModel):
    """Scores images: raw, and calibrated on the MOS scale of the data set that the model was trained on."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the program and what it says of itself."""
        from pipeline.errors import AgiqaError
        from pipeline.model.checkpoint_file import calibration_of, familiarity_of, read_checkpoint, trees_of
        from pipeline.serving.program import load_program

        checkpoint = context.artifacts["checkpoint"]
        self.record, arrays = read_checkpoint(checkpoint)
        self.calibration = calibration_of(self.record)
        if "program" in context.artifacts:
            self.program, about = load_program(context.artifacts["program"])
            self.deviation_weights = about.get("deviation_weights")
            width = len(arrays["familiar.mean"]) if "familiar.mean" in arrays else 0
        else:
            width = len(self.record["statistics"])
            self.program, self.trees = None, trees_of(checkpoint, arrays, width)
        self.familiarity = familiarity_of(checkpoint, self.record, arrays, width)
        self.read_paths = (context.model_config or {}).get("read_paths", "locally")
        if self.read_paths not in ("locally", "never", "always"):
            raise AgiqaError(f"read_paths is {self.read_paths!r}, and should be locally, never or always")

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return a row an image: `raw`, `mos` on the data set's scale, its band's `low` and `high`, and `unfamiliar`.

        Args:
            context: Unused; `load_context` has read it.
            model_input: Column `image`: bytes, base64 or (not on a server) paths.
            params: Unused.

        Raises:
            MlflowException: With a 400 for its status, if an image cannot be scored; names its row.
        """
        from pipeline.calibration import told_mos

        raw, features = self._seen(model_input["image"]) if len(model_input) else (np.zeros(0), None)
        mos = told_mos(raw, self.calibration, self.record["mos_low"], self.record["mos_high"])
        nothing = np.full(len(raw), np.nan)
        low, high = (nothing, nothing) if self.calibration is None else self.calibration.band(mos)
        known = self.familiarity is not None and len(raw) > 0
        unfamiliar = self.familiarity.is_unfamiliar(features) if known else np.zeros(len(raw), dtype=bool)
        columns = {"raw": raw, "mos": mos, "low": low, "high": high, "unfamiliar": unfamiliar}
        return pd.DataFrame(columns, index=model_input.index)

    def _seen(self, column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        """Return each image's raw score, shape (n,), and what the model sees of it, shape (n, F)."""
        if self.program is None:
            from pipeline.training import statistics
            from pipeline.training.baselines import tree_scores

            features = np.stack([statistics.features(pixels) for pixels in self._opened(column, None)])
            return tree_scores(self.trees, features), features
        import torch

        from pipeline.model.folded import image_scores
        from pipeline.model.windows import WindowRule

        def both(windows: torch.Tensor) -> torch.Tensor:
            scores, features = self.program(windows)
            features = features.double()
            return torch.cat([scores[:, None].double(), features, features.square()], dim=1)

        rule = WindowRule.from_record(self.record["windows"])
        found = image_scores(both, self._opened(column, rule), len(column), rule)
        raw, (means, squares) = found[:, 0], np.split(found[:, 1:], 2, axis=1)
        if self.deviation_weights is not None:
            raw = raw + np.sqrt(np.maximum(squares - means**2, 0)) @ np.array(self.deviation_weights)
        return raw, means

    def _opened(self, column: pd.Series, rule: Any) -> Iterator[np.ndarray]:
        from pipeline.data.decoding import ImageError, open_image
        from pipeline.model.windows import resized_sides

        for number, image in enumerate(column):
            try:
                pixels = open_image(self._bytes_or_path(image), max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)
                if rule is not None and np.prod(resized_sides(*pixels.shape[:2], rule)) > MAX_PIXELS:
                    raise ImageError(
                        f"is too narrow: {MAX_PIXELS:,} pixels are allowed once it is enlarged to a window"
                    )
                yield pixels
            except ImageError as error:
                raise MlflowException.invalid_parameter_value(f"image in row {number}: {error.reason}") from None

    def _bytes_or_path(self, image: Any) -> bytes | str:
        from pipeline.data.decoding import ImageError, from_base64

        if isinstance(image, bytes | bytearray):
            return bytes(image)
        if isinstance(image, os.PathLike):
            image = os.fspath(image)
        if not isinstance(image, str):
            raise ImageError(f"is {type(image).__name__}: give bytes, base64 or a path")
        reads_paths = self.read_paths == "always" or (self.read_paths == "locally" and not _is_served())
        if reads_paths and os.path.isfile(image):
            return image
        try:
            return from_base64(image)
        except ImageError:
            raise ImageError(
                "is neither base64 nor the path of a file"
                if reads_paths
                else "is not base64, and paths are not read here"
            ) from None


def _is_served() -> bool:
    """Whether this process is MLflow's scoring server, which says so in its environment before the first request."""
    return os.environ.get("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "").lower() == "true"


set_model(ServedModel())
