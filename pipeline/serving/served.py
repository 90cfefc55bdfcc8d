"""The champion as MLflow loads and serves it: `mlflow.pyfunc.load_model(uri).predict(table)`, `mlflow models serve`.

MLflow copies this file into the model and runs it there (models from code), so it is the one module beside
pipeline.tracking that imports MLflow. Beside it lie a copy of our package and the scorer as a torch.export program: no
text tower, no open_clip, no repository and no network are needed.

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
    """Scores images: raw in 0..1, and on the MOS scale of the data set that the model was trained on."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the program and what it says of itself."""
        from pipeline.errors import AgiqaError
        from pipeline.serving.program import load_program

        self.program, self.record = load_program(context.artifacts["program"])
        self.read_paths = (context.model_config or {}).get("read_paths", "locally")
        if self.read_paths not in ("locally", "never", "always"):
            raise AgiqaError(f"read_paths is {self.read_paths!r}, and should be locally, never or always")

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return a row an image: `raw` in (0, 1), and `mos` on the data set's scale.

        Args:
            context: Unused; `load_context` has read it.
            model_input: Column `image`: bytes, base64 or (not on a server) paths.
            params: Unused.

        Raises:
            MlflowException: With a 400 for its status, if an image cannot be scored; names its row.
        """
        from pipeline.model.folded import image_scores
        from pipeline.model.windows import WindowRule

        rule = WindowRule.from_record(self.record["windows"])
        images = self._opened(model_input["image"], rule)
        raw = image_scores(self.program, images, len(model_input), rule) if len(model_input) else np.zeros(0)
        low, high = self.record["mos_low"], self.record["mos_high"]
        return pd.DataFrame({"raw": raw, "mos": low + raw * (high - low)}, index=model_input.index)

    def _opened(self, column: pd.Series, rule: Any) -> Iterator[np.ndarray]:
        from pipeline.data.decoding import ImageError, open_image
        from pipeline.model.windows import resized_sides

        for number, image in enumerate(column):
            try:
                pixels = open_image(self._bytes_or_path(image), max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)
                if np.prod(resized_sides(*pixels.shape[:2], rule)) > MAX_PIXELS:
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
