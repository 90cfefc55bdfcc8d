"""pipeline.serving.served through MLflow alone: loaded in Python, and served by another process far from here."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_runs import mlflow_at
from made_server import free_port
from PIL import Image

from pipeline import layout
from pipeline.files import write_json
from pipeline.scoring.scorer import Scorer, load_scorer
from pipeline.tracking import models, store

pytestmark = [
    pytest.mark.slow,  # MLflow itself is started
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
RECORD = {
    "dataset": "demo", "method": "dcmpln", "round": 0, "target": "quality", "kind": "variant", "selected_epoch": 1,
    "leaks": [], "shuffled_labels": False, "backbone": {"name": "demo-vit", "origin": "in-house"},
    "validation": {"srcc": 0.63},
}  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ["raw", "mos", "low", "high", "unfamiliar"]


def write_train(root: Path, checkpoint: Path) -> Path:
    folder = root / layout.run_folder("demo", "dcmpln", 0) / "train"
    write_json(folder / "record.json", RECORD)
    write_json(folder / "run.json", {"run_id": "0" * 32})
    layout.checkpoint_path(folder, 1).parent.mkdir(exist_ok=True)
    shutil.copy(checkpoint, layout.checkpoint_path(folder, 1))
    return folder


@pytest.fixture(scope="module")
def study(demo_checkpoint: Path, program_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a root whose MLflow store has a champion, logged twice."""
    root = tmp_path_factory.mktemp("a study #1")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)  # a user's own store is none for tests
        patch.setenv("MLFLOW_TRACKING_URI", store.tracking_uri(root))
        train = write_train(root, demo_checkpoint)
        calls = []

        def make_program(checkpoint: Path, path: Path) -> None:
            calls.append(checkpoint)
            shutil.copy(program_file, path)

        assert [models.log_champion(root, "small", train, make_program) for _ in range(2)] == ["1", "1"]
        assert calls == [train / "checkpoints" / "epoch-001.safetensors"]
        yield root


@pytest.fixture(scope="module")
def model(study: Path) -> Iterator[Any]:
    import mlflow

    with mlflow_at(store.tracking_uri(study)):
        yield mlflow.pyfunc.load_model("models:/agiqa-demo@champion")


def test_paths_bytes_and_base64_score_as_the_scorer(model: Any, demo_scorer: Scorer, pictures: list[Path]) -> None:
    expected = demo_scorer.score(pictures)
    contents = [path.read_bytes() for path in pictures]
    for column in (
        [str(path) for path in pictures],
        contents,
        [base64.b64encode(content).decode() for content in contents],
        [str(pictures[0]), *contents[1:]],
    ):
        found = model.predict(pd.DataFrame({"image": column}, index=range(7, 7 + len(column))))
        assert list(found.columns) == COLUMNS
        assert list(found.index) == list(range(7, 7 + len(column)))
        np.testing.assert_allclose(found["raw"], expected.raw, atol=1e-5)
        for name in ("mos", "low", "high"):
            np.testing.assert_allclose(found[name], getattr(expected, name), atol=1e-4)
        assert found["unfamiliar"].tolist() == expected.unfamiliar.tolist()
    assert model.predict(pd.DataFrame({"image": pd.Series([], dtype=object)})).empty


def test_a_champion_without_a_network_is_served_too(tmp_path: Path, pictures: list[Path]) -> None:
    """The model that comes with the repository: no program lies beside its checkpoint. MLflow is one for a process."""
    folder = tmp_path / layout.run_folder("demo", "handcrafted", 0) / "train"
    about = {"method": "handcrafted", "kind": "baseline", "selected_epoch": 0, "validation": {"srcc": 0.7}}
    write_json(folder / "record.json", RECORD | about)
    write_json(folder / "run.json", {"run_id": "1" * 32})
    checkpoint = layout.checkpoint_path(folder, 0)
    checkpoint.parent.mkdir()
    shutil.copy(ROOT / "models" / "agiqa3k" / "handcrafted.safetensors", checkpoint)
    script = (
        "import sys, mlflow.pyfunc, pandas\n"
        "from pipeline.tracking.models import log_champion\n"
        "assert log_champion('.', 'small', sys.argv[1], lambda checkpoint, program: None) == '1'\n"
        "model = mlflow.pyfunc.load_model('models:/agiqa-demo@champion')\n"
        "model.predict(pandas.DataFrame({'image': sys.argv[2:]})).to_json('found.json')\n"
    )
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": uri, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-W", "ignore", "-c", script, folder, *pictures]
    subprocess.run(words, check=True, cwd=tmp_path, env=environment, timeout=180)
    found = pd.read_json(tmp_path / "found.json")
    expected = load_scorer(checkpoint).score(pictures)
    for name in ("raw", "mos", "low", "high"):
        np.testing.assert_allclose(found[name], getattr(expected, name), atol=1e-6)
    assert found["unfamiliar"].tolist() == expected.unfamiliar.tolist()


def test_it_says_what_it_needs_and_holds_it(model: Any, study: Path, demo_checkpoint: Path) -> None:
    assert model.metadata.signature.inputs.to_dict() == [{"type": "binary", "name": "image", "required": True}]
    assert [entry["name"] for entry in model.metadata.signature.outputs.to_dict()] == COLUMNS
    (folder,) = study.glob("mlartifacts/small/models/*/artifacts")
    assert 0 < model.predict(model.input_example)["raw"][0] < 1
    requirements = (folder / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[a-z]+==\d[\d.]*", line) for line in requirements)
    assert f"mlflow=={version('mlflow')}" in requirements
    (checkpoint,) = folder.rglob("*.safetensors")
    assert checkpoint.read_bytes() == demo_checkpoint.read_bytes()
    assert models.fetch_checkpoint("models:/agiqa-demo@champion", study).read_bytes() == checkpoint.read_bytes()
    assert not list(folder.rglob("*.pyc"))


def test_what_cannot_be_scored_is_named(model: Any, pictures: list[Path]) -> None:
    from mlflow.exceptions import MlflowException

    from pipeline.serving.served import MAX_PIXELS  # imported here: brings in MLflow, which warns

    good, narrow = pictures[0].read_bytes(), io.BytesIO()
    Image.new("RGB", (16, MAX_PIXELS // 256 + 1)).save(narrow, "PNG")  # 64 wide, it is four times as long
    for image, reason in (
        (b"<html>", "is a web page saved under an image's name, not an image of pixels"),
        ("no-such-file.png", "is neither base64 nor the path of a file"),
        ("%%%", "is neither base64 nor the path of a file"),
        (None, "is NoneType: give bytes, base64 or a path"),
        (good[:500], "is cut off"),
        (narrow.getvalue(), f"is too narrow: {MAX_PIXELS:,} pixels are allowed once it is enlarged to a window"),
    ):
        with pytest.raises(MlflowException, match=re.escape(f"image in row 1: {reason}")):
            model.predict(pd.DataFrame({"image": [good, image]}))


def test_paths_are_read_only_where_they_may_be(
    study: Path, model: Any, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    table = pd.DataFrame({"image": [str(pictures[0])]})
    refused = re.escape("image in row 0: is not base64, and paths are not read here")
    never = mlflow.pyfunc.load_model("models:/agiqa-demo@champion", model_config={"read_paths": "never"})
    with pytest.raises(MlflowException, match=refused):
        never.predict(table)
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    with pytest.raises(MlflowException, match=refused):
        model.predict(table)
    with pytest.raises(ValueError, match="read_paths is 'maybe', and should be locally, never or always"):
        mlflow.pyfunc.load_model("models:/agiqa-demo@champion", model_config={"read_paths": "maybe"})


def test_another_checkpoint_becomes_the_next_version(
    study: Path, model: Any, demo_checkpoint: Path, program_file: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(demo_checkpoint.read_bytes() + b" ")  # other bytes are enough: it is not read here
    copy = lambda checkpoint, path: shutil.copy(program_file, path)  # noqa: E731
    assert models.log_champion(study, "small", write_train(tmp_path, changed), copy) == "2"
    assert models.log_champion(study, "small", write_train(study, demo_checkpoint), copy) == "3"


def test_the_registry_says_what_the_champion_is_worth(study: Path) -> None:
    with store.open_store(study) as client:
        version = client.get_model_version_by_alias("agiqa-demo", "champion")
        assert version.tags["validation_srcc"] == "0.6300"
        assert version.description.startswith("Validation SRCC 0.6300: demo/dcmpln/round-0, epoch 1, trained on the ")
        told = client.get_registered_model("agiqa-demo").description
        assert told == f"Scorers trained on demo, rated by people. The champion is version {version.version}. " + (
            version.description
        )


def test_mlflow_serves_it_outside_the_repository(
    study: Path, demo_scorer: Scorer, pictures: list[Path], tmp_path: Path
) -> None:
    port = free_port()
    programs = Path(sys.executable).parent
    command = [programs / "mlflow", "models", "serve", "--env-manager", "local", "--workers", "1"]
    # As in an active environment; MLflow starts uvicorn by its name.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    log = tmp_path / "log.txt"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [*command, "-m", "models:/agiqa-demo@champion", "-p", str(port)],
            cwd=tmp_path, env=environment, stdout=stream, stderr=stream, start_new_session=True,
        )  # fmt: skip

    def ask(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
        texts = [base64.b64encode(path.read_bytes()).decode() for path in pictures]
        status, answer = ask({"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}})
        assert status == 200
        expected = demo_scorer.score(pictures).raw
        np.testing.assert_allclose([row["raw"] for row in answer["predictions"]], expected, atol=1e-5)
        for body in (
            {"dataframe_records": [{"image": str(pictures[0])}]},
            {"inputs": {"image": [str(pictures[0])]}},
            {"instances": [{"image": str(pictures[0])}]},
            {"dataframe_records": [{"image": base64.b64encode(b"<html>").decode()}]},
            {"dataframe_records": [{"picture": texts[0]}]},
        ):
            assert ask(body)[0] == 400, body
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)
