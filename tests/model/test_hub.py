"""Models on the Hub are fetched whole and checked, or told in a line; nothing else of a repository is ever asked for.

What is pushed and comes back is tests/study/test_push.py's; here a repository is written file by file.
"""

import hashlib
import json
import pickle
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from made_hub import TOKEN, Hub, Repo

from pipeline.model import hub as rooms
from pipeline.model.hub import Config, HubError, Place, fetch, weights_beside
from pipeline.scoring.scorer import find_checkpoint

MODEL, TOWERS = b"a checkpoint", b"its towers"


def config_of(held: dict[str, bytes], **changed: object) -> bytes:
    said = {name: {"sha256": hashlib.sha256(content).hexdigest()} for name, content in held.items()}
    whole = {"format": "agiqa-hub-1", "dataset": "photos", "method": "probe", "files": said}
    return json.dumps(whole | changed).encode()


def refused(said: str) -> AbstractContextManager[pytest.ExceptionInfo[HubError]]:
    return pytest.raises(HubError, match=said)


@pytest.fixture
def repo(hub: Hub) -> Repo:
    """Return a repository with a model on towers of its own, and what nobody should fetch."""
    made = hub.repos["me/model"] = Repo()
    files = {"model.safetensors": MODEL, "backbone.safetensors": TOWERS}
    others = {"README.md": b"# card", "card.json": b"{}", "run.py": b"import os", "old/weights.bin": b"x"}
    made.commit("main", files | others | {"config.json": config_of(files)}, "first")
    return made


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("hf:me/model", "me/model", None),
        ("hf:me/model@v1.2", "me/model", "v1.2"),
        ("hf:a-b/c.d_e@refs/pr/3", "a-b/c.d_e", "refs/pr/3"),
    ],
)
def test_a_place_is_owner_name_and_revision(text: str, repo: str, revision: str | None) -> None:
    place = Place.of(text)
    assert (place.repo, place.revision, str(place)) == (repo, revision, text)


@pytest.mark.parametrize(
    "text", ["hf:model", "hf:", "hf:a/b/c", "hf:me/model@", "hf://me/model", "hf:../x", "hf:me/m o"]
)
def test_what_is_no_place_says_how_one_is_written(text: str) -> None:
    with refused(r"names no model on the Hub: write hf:OWNER/NAME, or hf:OWNER/NAME@REVISION"):
        fetch(text)


def test_a_model_comes_with_its_towers_and_nothing_else(hub: Hub, repo: Repo) -> None:
    path = find_checkpoint("hf:me/model")
    assert path == fetch("hf:me/model")
    assert path.read_bytes() == MODEL
    assert weights_beside(path).read_bytes() == TOWERS
    assert {file.name for file in path.parent.iterdir()} == {"config.json", "model.safetensors", "backbone.safetensors"}
    fetched = {line.rsplit("/", 1)[1] for line in hub.asked if line.startswith("GET") and "/resolve/" in line}
    assert fetched == {"config.json", "model.safetensors", "backbone.safetensors"}


def test_what_is_in_the_cache_needs_no_network(hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch("hf:me/model")
    hub.asked.clear()
    assert fetch("hf:me/model") == path
    assert hub.asked == ["GET /api/models/me/model"]  # whether there is a newer one
    hub.close()
    assert fetch("hf:me/model") == path
    assert fetch(f"hf:me/model@{repo.refs['main']}") == path
    for place in ("hf:me/other", f"hf:me/other@{'a' * 40}", "hf:me/model@v2"):
        with refused(r"the Hub cannot be reached \(ConnectError\), and this machine holds no copy"):
            fetch(place)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch("hf:me/model") == path
    with refused(r"cannot be reached \(HF_HUB_OFFLINE is set\)"):
        fetch("hf:me/other")


def test_a_revision_stays_what_it_was(hub: Hub, repo: Repo) -> None:
    repo.refs["v1"] = first = repo.refs["main"]
    newer = {"model.safetensors": b"a better one"}
    repo.commit("main", newer | {"config.json": config_of(newer)}, "second")
    assert fetch("hf:me/model").read_bytes() == b"a better one"
    assert weights_beside(fetch("hf:me/model")) is None
    for revision in ("v1", first):
        assert fetch(f"hf:me/model@{revision}").read_bytes() == MODEL
    with refused(r"^me/model has no revision 'v3': name a branch, a tag or a commit$"):
        fetch("hf:me/model@v3")


@pytest.mark.parametrize("name", ["model.safetensors", "backbone.safetensors"])
def test_a_tampered_file_is_refused(repo: Repo, name: str) -> None:
    repo.change(name, b"something else")
    with refused(rf"^{name} of hf:me/model has SHA-256 .* tampered with, or damaged .* delete \S+ "):
        fetch("hf:me/model")


def test_damage_in_the_cache_is_seen(repo: Repo) -> None:
    path = fetch("hf:me/model")
    path.resolve().write_bytes(b"flipped")
    with refused("damaged on the way; delete") as error:
        fetch("hf:me/model")
    Path(str(error.value).split("delete ")[1].split(" to fetch")[0]).unlink()
    assert fetch("hf:me/model").read_bytes() == MODEL


def test_a_repository_without_a_config_is_no_model_of_ours(repo: Repo) -> None:
    repo.change("config.json", None)
    repo.change("old/weights.bin", None)
    with refused(r"^hf:me/model holds no config.json, so it is no model that `agiqa push` wrote$"):
        fetch("hf:me/model")


def test_a_pickle_is_never_loaded(hub: Hub, repo: Repo, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'harm')!r}, 'w')",))

    repo.change("model.safetensors", None)
    repo.change("model.pt", pickle.dumps(Harm()))
    with refused(r"holds no model.safetensors, .*; it holds model.pt, a pickle, .* is never loaded$"):
        fetch("hf:me/model")
    assert not [line for line in hub.asked if "model.pt" in line]
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "cannot be trusted: it says it: "),
        (
            config_of({"model.safetensors": MODEL}, format="other"),
            "cannot be trusted: it says format: ",
        ),
        (config_of({"backbone.safetensors": TOWERS}), "cannot be trusted: .*files does not name model.safetensors"),
        (config_of({"model.safetensors": MODEL, "../x": b""}), "cannot be trusted: it says files"),
        (
            config_of({}, files={"model.safetensors": {"sha256": "x"}}),
            "cannot be trusted: it says files.model.safetensors.sha256: ",
        ),
    ],
)
def test_a_config_that_says_other_things_is_refused(repo: Repo, content: bytes, said: str) -> None:
    repo.change("config.json", content)
    with refused(f"^config.json of hf:me/model {said}"):
        fetch("hf:me/model")


def test_sizes_are_looked_at_before_anything_is_fetched(hub: Hub, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rooms.MOST_BYTES, "model.safetensors", 5)
    with refused(r"^model.safetensors of hf:me/model has 12 bytes, and 5 are taken at most$"):
        fetch("hf:me/model")
    assert not [line for line in hub.asked if line.startswith("GET") and line.endswith("model.safetensors")]


def test_a_private_model_wants_a_token(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.private = True
    assert fetch("hf:me/model").read_bytes() == MODEL
    monkeypatch.delenv("HF_TOKEN")
    with refused(r"^hf:me/model does not exist, or is private: .* a token that may read it \(`hf "):
        fetch("hf:me/model")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with refused(r"does not let you read hf:me/model \(401: Invalid credentials in Authorization"):
        fetch("hf:me/model")


def test_a_gated_model_says_that_it_has_terms(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.gated = True
    monkeypatch.delenv("HF_TOKEN")
    with refused("is open to those alone who accept its terms"):
        fetch("hf:me/model")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch("hf:me/model").read_bytes() == MODEL


def test_the_client_is_imported_by_those_who_ask_for_it() -> None:
    assert Config.model_fields.keys() == {"format", "dataset", "method", "files"}
    assert "huggingface_hub" in sys.modules  # by the tests above; by the room only in its functions
    head = Path(rooms.__file__).read_text().partition("class HubError")[0]
    assert "\nfrom huggingface_hub" not in head
