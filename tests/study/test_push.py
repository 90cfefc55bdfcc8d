"""What is pushed was verified, and comes back as it was, with equal bytes and scores; the rest is told in a line."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_hub import TOKEN, Hub
from made_published import published_study

from pipeline.cli import main
from pipeline.files import file_md5
from pipeline.layout import StudyError
from pipeline.model.checkpoint_file import read_checkpoint, write_checkpoint
from pipeline.model.hub import HubError, Place
from pipeline.scoring.scorer import find_checkpoint, load_scorer
from pipeline.study.push import push

# huggingface_hub's own, when it uploads a large file
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "models" / "agiqa3k"


@pytest.fixture
def finished(in_tmp: Path) -> Path:
    """Return a finished study with a dvc.lock that names two of its files."""
    published_study(in_tmp)
    names = ["data/prepared/photos/card.json", "runs/photos/handcrafted/round-1/train/record.json"]
    stages = {str(n): {"outs": [{"path": name, "md5": file_md5(name)}]} for n, name in enumerate(names)}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    return in_tmp


def front_matter(card: bytes) -> dict[str, object]:
    _, metadata, text = card.decode().split("---\n", 2)
    assert text.startswith("\n# ")
    return yaml.safe_load(metadata)


@pytest.mark.parametrize("method", ["dcmpln", "handcrafted"])
def test_a_shipped_model_scores_as_before_after_its_journey(hub: Hub, pictures: list[Path], method: str) -> None:
    place = f"hf:me/{method}"
    assert main(["push", place, "--checkpoint", str(SHIPPED / f"{method}.safetensors"), "--tag", "v1"]) == 0
    fetched = load_scorer(f"{place}@v1", device="cpu")
    assert fetched.path == find_checkpoint(place)
    assert fetched.path.read_bytes() == (SHIPPED / f"{method}.safetensors").read_bytes()
    before = load_scorer(SHIPPED / f"{method}.safetensors", device="cpu").score(pictures[1:3])
    after = fetched.score(pictures[1:3])
    for name in ("raw", "mos", "low", "high", "unfamiliar"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    held = hub.files(f"me/{method}")
    towers = {"backbone.safetensors"} if method == "dcmpln" else set()
    assert held.keys() == {".gitattributes", "README.md", "config.json", "card.json", "model.safetensors"} | towers
    if towers:
        assert held["backbone.safetensors"] == (ROOT / "backbones/agiqa-vit/weights.safetensors").read_bytes()


def test_towers_come_from_the_hub_where_the_repository_is_not(
    hub: Hub, in_tmp: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    push(Place("me/model"), str(SHIPPED / "dcmpln.safetensors"), ROOT)
    expected = load_scorer(SHIPPED / "dcmpln.safetensors", device="cpu").score(pictures[2])
    for module in ("pipeline.scoring.scorer", "pipeline.study.champion", "pipeline.study.push"):
        monkeypatch.setattr(f"{module}.HOME", in_tmp)
    assert load_scorer("hf:me/model", device="cpu", root=in_tmp).score(pictures[2]).mos == expected.mos


def test_the_card_says_what_the_hub_wants_to_know(hub: Hub) -> None:
    assert main(["push", "hf:me/model", "--checkpoint", str(SHIPPED), "--license", "cc-by-4.0", "--message", "hi"]) == 0
    held = hub.files("me/model")
    said = front_matter(held["README.md"])
    assert (said["license"], said["library_name"]) == ("cc-by-4.0", "agiqa-study")
    assert said["metrics"] == ["spearmanr", "pearsonr", "mae"]
    card = json.loads((SHIPPED / "card.json").read_text())
    best = max(card["models"], key=lambda model: model["validation"]["srcc"])  # of the models there, push takes it
    assert {"image-quality-assessment", "agiqa3k", best["method"]} <= set(said["tags"])
    (result,) = said["model-index"][0]["results"]
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values == {
        "SRCC": pytest.approx(best["test"]["srcc"], abs=1e-4),
        "PLCC": pytest.approx(best["test"]["plcc"], abs=1e-4),
        "MAE": pytest.approx(best["test"]["mae_calibrated"], abs=1e-4),
    }
    text = held["README.md"].decode()
    for words in (
        'load_scorer("hf:me/model")', "## What it is worth", "agiqa score photos/ --checkpoint hf:me/model",
        f"| {best['method']} | {best['test']['srcc']:.3f} (", "that is alignment, and it predicts quality",
    ):  # fmt: skip
        assert words in text
    config = json.loads(held["config.json"])
    assert config["files"]["model.safetensors"]["sha256"] == hashlib.sha256(held["model.safetensors"]).hexdigest()
    (model,) = json.loads(held["card.json"])["models"]
    assert model == {**best, "file": "model.safetensors"}
    assert hub.repos["me/model"].messages == ["initial commit", "hi"]


def test_the_champion_of_a_finished_study_goes(hub: Hub, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "hf:me/model", "--private"]) == 0
    said = capsys.readouterr().err
    assert f"pushed handcrafted, trained on photos, verified: {hub.url}/me/model/commit/" in said
    assert "agiqa score PATH --checkpoint hf:me/model" in said
    assert hub.repos["me/model"].private
    record, arrays = read_checkpoint(find_checkpoint("hf:me/model"))
    told, held = read_checkpoint("runs/photos/handcrafted/round-1/train/checkpoints/epoch-000.safetensors")
    assert record == told | {"generator_error": record["generator_error"], "generators": 2}  # as `agiqa publish`
    for name, values in held.items():
        np.testing.assert_array_equal(arrays[name], values)
    assert main(["push", "hf:me/other", "--checkpoint", "auto:photos:probe"]) == 0
    assert read_checkpoint(find_checkpoint("hf:me/other"))[0]["method"] == "probe"


@pytest.mark.parametrize("name", ["data/prepared/photos/card.json", "dvc.lock"])
def test_a_study_that_cannot_be_verified_is_not_pushed(
    hub: Hub, finished: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "dvc.lock":
        Path(name).unlink()
        said = "dvc.lock does not exist: nothing was recorded here; run the study first (`make study`)"
    else:
        Path(name).write_text(Path(name).read_text() + " ")
        said = f"1 of the hashes that the study recorded no longer match, such as {name}, which has md5"
    assert main(["push", "hf:me/model"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("agiqa: error")]
    assert said in line
    assert hub.repos == {}


def copied(folder: Path) -> Path:
    folder.mkdir()
    for file in SHIPPED.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_model_that_is_not_the_one_on_its_card_is_not_pushed(hub: Hub, in_tmp: Path) -> None:
    folder = copied(in_tmp / "models")
    (folder / "handcrafted.safetensors").write_bytes((folder / "dcmpln.safetensors").read_bytes())
    with pytest.raises(StudyError, match=r"handcrafted\.safetensors is not the model on its card: write both anew"):
        push(Place("me/model"), str(folder / "handcrafted.safetensors"), in_tmp)
    (folder / "card.json").write_text("{}")
    with pytest.raises(StudyError, match=r"card\.json is damaged \('models'\): write it anew with `agiqa publish`"):
        push(Place("me/model"), str(folder), in_tmp)
    lonely = in_tmp / "lonely.safetensors"
    lonely.write_bytes(b"")
    with pytest.raises(StudyError, match=r"has no card\.json beside it, so nothing says what it is worth"):
        push(Place("me/model"), str(lonely), in_tmp)
    with pytest.raises(StudyError, match=r"nowhere does not exist"):
        push(Place("me/model"), str(in_tmp / "nowhere"), in_tmp)
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"leaks": ["epoch selected on test"]}, "is not to be given away: epoch selected on test"),
        ({"calibration": None, "generator_error": None, "generators": None}, "was never calibrated"),
    ],
)
def test_what_leaks_or_means_nothing_is_not_pushed(
    hub: Hub, in_tmp: Path, changed: dict[str, object], said: str
) -> None:
    folder = copied(in_tmp / "models")
    path = folder / "handcrafted.safetensors"
    record, arrays = read_checkpoint(path)
    write_checkpoint(path, arrays, record | changed)
    card = json.loads((folder / "card.json").read_text())
    for model in card["models"]:
        model["md5"] = file_md5(folder / model["file"])
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(StudyError, match=said):
        push(Place("me/model"), str(path), in_tmp)
    assert hub.repos == {}


def test_a_second_push_replaces_the_first_and_takes_away_what_is_of_no_use(hub: Hub) -> None:
    place = Place("me/model")
    push(place, str(SHIPPED / "dcmpln.safetensors"), ROOT)
    hub.repos["me/model"].change("notes.txt", b"mine")
    push(place, str(SHIPPED / "handcrafted.safetensors"), ROOT)
    held = hub.files("me/model")
    assert "backbone.safetensors" not in held
    assert held["notes.txt"] == b"mine"
    assert load_scorer("hf:me/model").record["method"] == "handcrafted"


def test_a_branch_is_made_and_main_stays(hub: Hub) -> None:
    push(Place("me/model", "trial"), str(SHIPPED / "handcrafted.safetensors"), ROOT)
    assert hub.files("me/model").keys() == {".gitattributes"}
    assert load_scorer("hf:me/model@trial").record["method"] == "handcrafted"
    with pytest.raises(HubError, match=r"hf:me/model holds no config\.json"):
        load_scorer("hf:me/model")


def test_what_the_hub_refuses_is_told_in_a_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("me/model")
    with pytest.raises(HubError, match=r'^the Hub refuses the card: .* "license" must be one of a list$'):
        push(place, str(SHIPPED), ROOT, licence="nonsense")
    with pytest.raises(HubError, match=r"^me/model is there and public: make it private in its settings"):
        push(place, str(SHIPPED), ROOT, private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"^the Hub does not let you write hf:me/new \(401.*\): log in with a "):
        push(Place("me/new"), str(SHIPPED), ROOT)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.refuses_objects = True
    with pytest.raises(HubError, match=r"^the Hub does not let you write hf:me/full \(403.*\): log in"):
        push(Place("me/full"), str(SHIPPED), ROOT)
    hub.close()
    with pytest.raises(HubError, match=r"^hf:me/model: the Hub cannot be reached \(ConnectError\)$"):
        push(place, str(SHIPPED), ROOT)


def test_processes_of_their_own_push_and_score(hub: Hub, in_tmp: Path, pictures: list[Path]) -> None:
    """As in the docs, by the environment alone."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def agiqa(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=in_tmp)

    done = agiqa("push", "hf:me/model", "--checkpoint", "auto:agiqa3k:handcrafted")
    assert done.returncode == 0, done.stderr
    hub.close()
    assert agiqa("push", "hf:me/model").returncode == 2
    environment |= {"HF_HUB_OFFLINE": "1"}
    failed = agiqa("score", str(pictures[0]), "--checkpoint", "hf:me/model")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "hf:me/model: the Hub cannot be reached (HF_HUB_OFFLINE is set), and this machine holds no" in failed.stderr
