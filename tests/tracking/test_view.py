"""The link to a study's runs, the view that it names in the store, and when it is told and opened."""

import http.server
import json
import threading
from pathlib import Path

import pytest
from made_runs import STUDY, client_of, experiment_of, make_record, train_live

from pipeline.tracking import store, view


@pytest.fixture
def address() -> str:
    """Return the address of a server that says it is well, as MLflow's does once it has started."""

    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_link_names_a_view_that_the_store_holds(root: Path) -> None:
    train_live(root, make_record())
    client, experiment = client_of(root), experiment_of(root)
    link = view.link("http://127.0.0.1:5000", experiment)
    key = link.partition("viewStateShareKey=")[2].partition("&")[0]
    tags = client.get_experiment(experiment).tags
    held = json.loads(tags[f"mlflow.sharedViewState.{key}"])
    (best, *_) = client.search_runs([experiment], order_by=[f"{held['orderByKey']} DESC"])  # MLflow takes it
    for column in held["selectedColumns"]:
        kind, _, name = column.partition(".")
        assert name.strip("`") in getattr(best.data, kind)
    for group in held["groupBy"]["groupByKeys"]:
        assert group["groupByData"] in best.data.tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_store_of_an_earlier_version_gets_the_view(root: Path) -> None:
    client_of(root).create_experiment(STUDY, artifact_location=(root / "mlartifacts").as_uri())
    train_live(root, make_record())
    tags = client_of(root).get_experiment(experiment_of(root)).tags
    assert {key: tags[key] for key in view.EXPERIMENT_TAGS} == view.EXPERIMENT_TAGS


def test_the_link_is_told_and_opened_once_the_server_answers(
    root: Path, address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(view, "repository_root", lambda: root)
    monkeypatch.setattr(view.webbrowser, "open", opened.append)
    params = Path(__file__).parents[2] / "params.yaml"
    words = ["--params", str(params), "--address", address]
    caplog.set_level("INFO")
    view.main(words)
    assert "MLflow has no runs of study" in caplog.text
    assert f"{address}/#/experiments\n" in caplog.text
    with store.open_store(root) as client:
        experiment = client.create_experiment(view.load_params(params).study.name)
    monkeypatch.setattr(view, "has_display", lambda: True)
    view.main(words)
    assert opened == [view.link(address, experiment)]
    assert opened[0] in caplog.text


def test_nobody_waits_for_a_server_that_does_not_come() -> None:
    assert not view.answers("http://127.0.0.1:9", seconds=0.1)


def test_no_window_opens_without_a_terminal_or_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(view.sys.stdout, "isatty", lambda: True, raising=False)
    assert not view.has_display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert view.has_display()
    monkeypatch.setattr(view.sys.stdout, "isatty", lambda: False, raising=False)
    assert not view.has_display()
