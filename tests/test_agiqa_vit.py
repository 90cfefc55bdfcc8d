"""The pre-training of agiqa-vit: what it may read, that it can be stopped anywhere, and that its export is open_clip's.

Neither the teacher's packages nor the packed pictures are needed: a pack is drawn here, and the teacher is a stand-in.
"""

import hashlib
import io
import json
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "backbones" / "agiqa-vit"
QUALITY_SETS = re.compile(
    r"agiqa.?\d|aigciqa|aigiqa|koniq|kadid|tid.?20\d\d|\blive\b|livec|clive|\bspaq\b|\bcsiq\b|\bpipal\b|\bava\b|\bkadis\b"
    r"|flive|paq.?2|pick.?a.?pic|imagereward|hpd|richhf|\bcid\b",
    re.IGNORECASE,
)
MODULES = ("pretrain", "packing", "crops", "teacher", "towers", "shared", "distortions", "probe", "together")


@pytest.fixture(scope="module")
def pretrain() -> Iterator[ModuleType]:
    """Import the script as it imports itself: its own folder first. Its short names do not stay behind."""
    before, hidden = list(sys.path), {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    import pretrain

    yield pretrain
    sys.path[:] = before
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.modules.update(hidden)


@pytest.fixture(scope="module")
def manifest() -> dict[str, object]:
    return json.loads((FOLDER / "sources.json").read_text(encoding="utf-8"))


class StandIn:
    """Answers in the teacher's shapes, from nothing but the pixels; counts its crops."""

    def __init__(self) -> None:
        self.crops = 0

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        self.crops += len(pixels)
        grey = pixels.reshape(len(pixels), 3, 8, 16, 8, 16).mean((1, 3, 5)).astype(np.float32) / 255  # (B, 8, 8)
        weights = np.random.default_rng(1).normal(size=(64, 2272)).astype(np.float32)
        channels = np.linspace(-1, 1, 320, dtype=np.float32)[:, None, None]
        found = {
            "statistics": grey.reshape(len(grey), 64) @ weights,
            "map16": grey[:, None] * channels[:112],
            "map32": grey[:, None, :6, :6] * channels,
        }
        return {name: value.astype(np.float16) for name, value in found.items()}


@pytest.fixture
def packed(pretrain: ModuleType, tmp_path: Path) -> tuple[Path, Path]:
    """Return a pack of a few drawn pictures and its manifest."""
    packing = sys.modules["packing"]
    rng = np.random.default_rng(0)
    entries = []
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(40):
            source = ("caltech", "sheets", "photographs")[number % 3]
            label, subject, style = {
                "caltech": (("anchor", "an anchor", ""), ("ant", "an ant", ""))[number % 2],
                "sheets": ("", ("", "woman")[number % 2], "oil painting, style of Albrecht Durer (+ engraving)"),
                "photographs": ("", "a goldfish", ""),
            }[source]
            held_out = number >= 28
            entries.append(packing.Entry(f"{source}/{number}", source, label, subject, style, "0" * 64, held_out))
            buffer = io.BytesIO()
            coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((256, 200)).save(buffer, "PNG")
            archive.writestr(f"{number:06d}.png", buffer.getvalue())
        listing = {"kind": "png", "entries": [vars(entry) for entry in entries]}
        archive.writestr("listing.json", json.dumps(listing))
    known = tmp_path / "sources.json"
    sources = {"caltech": {}, "sheets": {}, "photographs": {}}
    known.write_text(json.dumps({"sources": sources, "listing_sha256": packing.digest(entries)}))
    return path, known


def leg(work: Path, packed: tuple[Path, Path], steps: int) -> list[str]:
    """Return the arguments of a short leg."""
    pack, manifest = packed
    return [
        *(
            "train",
            "--work",
            str(work),
            "--pack",
            str(pack),
            "--manifest",
            str(manifest),
            "--start",
            str(work / "none"),
        ),
        *("--device", "cpu", "--threads", "1", "--workers", "0", "--pool", "24", "--batch", "8", "--no-bf16"),
        *("--steps", str(steps), "--probe-crops", "8", "--calibration", "8", "--seed", "3"),
    ]


def run(pretrain: ModuleType, arguments: list[str], teacher: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `main` with a stand-in for the teacher, and the caller's thread count left as it was."""
    monkeypatch.setattr(sys.modules["teacher"], "Teacher", lambda *given: teacher)
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a ridge on eight pictures has something to say
            pretrain.main(arguments)
    finally:
        torch.set_num_threads(threads)


def test_the_manifest_names_no_quality_set(manifest: dict[str, object]) -> None:
    for name, facts in manifest["sources"].items():
        for value in (name, *map(str, facts.values())):
            assert not QUALITY_SETS.search(value), f"source {name} names a quality data set: {value}"
        assert facts["licence"]
        assert facts["captions"]
        assert facts["pictures"] > 0
        assert re.fullmatch("[0-9a-f]{40}", facts["commit"])


def test_the_manifest_covers_what_the_readers_and_the_planner_draw_from(
    pretrain: ModuleType, manifest: dict[str, object]
) -> None:
    assert set(manifest["sources"]) == set(sys.modules["packing"].READERS) == set(sys.modules["crops"].SOURCES)


def test_no_packed_picture_is_one_of_agiqa_3k(agiqa_data: Path, manifest: dict[str, object]) -> None:
    packed = set(np.load(FOLDER / "sources.npy").tolist())
    assert len(packed) > 10_000
    with zipfile.ZipFile(agiqa_data / "agiqa3k" / "AGIQA-3K.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        quality_set = {int(hashlib.sha256(archive.read(name)).hexdigest()[:16], 16) for name in names}
    assert len(quality_set) > 2_000
    assert not packed & quality_set


def test_a_picture_of_agiqa_3k_would_be_refused(pretrain: ModuleType, agiqa_data: Path) -> None:
    packing = sys.modules["packing"]
    archive = agiqa_data / "agiqa3k" / "AGIQA-3K.zip"
    refused = packing.hashes_within(archive)
    with zipfile.ZipFile(archive) as stored:
        name = next(name for name in stored.namelist() if name.endswith(".jpg"))
        sha256 = hashlib.sha256(stored.read(name)).hexdigest()
    with pytest.raises(ValueError, match="is a picture of a quality data set, which the backbone must not see"):
        packing.refuse_known("img/some.jpg", sha256, refused)


def test_a_refused_picture_is_found_wherever_it_stands_in_a_zip(pretrain: ModuleType, tmp_path: Path) -> None:
    packing = sys.modules["packing"]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("deep/down/1.jpg", b"a picture")
    refused = packing.hashes_within(tmp_path / "set.zip")
    packing.refuse_known("other.jpg", hashlib.sha256(b"another").hexdigest(), refused)
    with pytest.raises(ValueError, match=r"copy\.jpg \(sha256 [0-9a-f]{64}\) is a picture of a quality data set"):
        packing.refuse_known("copy.jpg", hashlib.sha256(b"a picture").hexdigest(), refused)


def test_a_repository_gives_what_the_manifest_allows_and_nothing_else(pretrain: ModuleType, tmp_path: Path) -> None:
    repository = sys.modules["packing"].Repository(tmp_path, "0" * 40, ["img", "src/data.js"])
    for path in ("LICENSE.md", "image/1.jpg", "src/data.js.txt", "src/other.js"):
        with pytest.raises(PermissionError, match=r"is not among what sources\.json allows to read: img, src/data\.js"):
            repository.read(path)


def test_a_pack_that_is_not_the_manifests_is_refused(pretrain: ModuleType, packed: tuple[Path, Path]) -> None:
    pack = sys.modules["packing"].Pack(packed[0])
    pretrain.check_pack(pack, packed[1])
    with pytest.raises(
        ValueError, match=r"holds 40 pictures with listing hash .*: pack it anew from the sources there"
    ):
        pretrain.check_pack(pack, FOLDER / "sources.json")


def test_training_opens_no_picture_beside_the_pack(
    pretrain: ModuleType, packed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    watching = [True]

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str):
            opened.append(arguments[0])

    sys.addaudithook(note)  # it cannot be taken away again, so it is told to sleep
    try:
        run(pretrain, leg(tmp_path / "work", packed, 1), StandIn(), monkeypatch)
    finally:
        watching.clear()
    pictures = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".zip", ".npz", ".csv", ".xlsx", ".parquet", ".tar")
    libraries = (sys.prefix, sys.base_prefix)
    found = {path for path in opened if path.lower().endswith(pictures) and not path.startswith(libraries)}
    assert found == {str(packed[0])}
    data = os.environ.get("AGIQA_DATA")
    assert data is None or not any(os.path.abspath(path).startswith(os.path.abspath(data) + os.sep) for path in opened)


@pytest.mark.slow
def test_two_steps_at_once_and_two_with_a_stop_between_give_the_same(
    pretrain: ModuleType, packed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    run(pretrain, leg(once, packed, 2), StandIn(), monkeypatch)
    run(pretrain, leg(twice, packed, 1), StandIn(), monkeypatch)
    teacher = StandIn()
    run(pretrain, leg(twice, packed, 2), teacher, monkeypatch)
    assert teacher.crops <= 16, "what the first leg had asked the teacher is remembered, but for the second batch"
    states = [torch.load(work / "state.pt", weights_only=True) for work in (once, twice)]
    assert states[0]["log"]["steps"] == states[1]["log"]["steps"] == 2
    for part in ("model", "average"):
        for name, value in states[0][part].items():
            torch.testing.assert_close(states[1][part][name], value, rtol=0, atol=0, msg=f"{part} {name} differs")


def test_an_export_is_open_clips_and_starts_another_machine(
    pretrain: ModuleType, packed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    work, out = tmp_path / "work", tmp_path / "out"
    out.mkdir()
    run(pretrain, leg(work, packed, 1), StandIn(), monkeypatch)
    run(pretrain, ["export", "--work", str(work), "--out", str(out)], StandIn(), monkeypatch)
    weights = load_file(out / "weights.safetensors")
    rows = weights.pop("token_embedding.rows").long()
    open_clip = sys.modules["shared"].import_open_clip()
    towers = open_clip.create_model("agiqa-vit", pretrained=None).eval()
    full = torch.zeros_like(towers.state_dict()["token_embedding.weight"])
    full[rows] = weights["token_embedding.weight"].float()
    state = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    masks = {name: value for name, value in towers.state_dict().items() if name == "attn_mask"}
    towers.load_state_dict(state | masks | {"token_embedding.weight": full})

    average = torch.load(work / "state.pt", weights_only=True)["average"]
    model = pretrain.Pretraining(average["rows"], open_clip.SimpleTokenizer(context_length=32)).eval()
    pretrain.start_from(model, out)
    pixels = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (pretrain.MEAN, pretrain.STD))
    texts = ["Good photo.", "misaligned image."]
    with torch.no_grad():
        torch.testing.assert_close(
            model.embedding(model.tokens(pixels)), towers.encode_image((pixels / 255 - mean) / std), rtol=0, atol=1e-5
        )
        tokens = open_clip.SimpleTokenizer(context_length=32)(texts)
        torch.testing.assert_close(model.text_features(texts), towers.encode_text(tokens), rtol=0, atol=1e-5)

    elsewhere = tmp_path / "elsewhere"
    arguments = leg(elsewhere, packed, 2)
    arguments[arguments.index("--start") + 1] = str(out)
    run(pretrain, arguments, StandIn(), monkeypatch)
    log = json.loads((elsewhere / "pretraining.json").read_text())
    assert log["steps"] == 2
    assert [part["from_step"] for part in log["legs"]] == [0, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_take_the_step_of_the_mean_of_their_parts_gradients(
    pretrain: ModuleType, packed: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = pretrain.Settings(
        work=tmp_path, pack=packed[0], manifest=packed[1], start=tmp_path / "none", device="cpu", threads=1,
        processes=2, workers=0, pool=24, batch=8, rate=4e-4, seed=3, steps=1, hours=1.0, cooldown=0, bf16=False,
        probe_minutes=10, save_minutes=4, probe_crops=8, calibration=8,
    )  # fmt: skip
    log = pretrain.train(settings, StandIn())
    assert log["steps"] == 1
    assert log["crops"] == 8
    state = torch.load(tmp_path / "state.pt", weights_only=True)

    # The same step by hand: the same start and arithmetic, each half of the batch by itself.
    torch.manual_seed(settings.seed)
    pack = sys.modules["packing"].Pack(packed[0])
    tokenizer = sys.modules["shared"].import_open_clip().SimpleTokenizer(context_length=32)
    model = pretrain.Pretraining(pretrain.vocabulary(tokenizer, pack.entries), tokenizer)
    planner = pretrain.Planner(pack, settings.seed)
    memo = pretrain.Memo(tmp_path, planner.key(), settings.pool, pretrain.SHAPES, pretrain.teaching.KIND)
    feed = pretrain.Feed(pack, planner, memo, StandIn(), None)
    pretrain.calibrate(model, feed, settings.calibration, pretrain.TARGETS)
    model.clip.visual.to(memory_format=torch.channels_last)
    for block in model.clip.visual.trunk.blocks:
        block.attn.fused_attn = False
    indices = pretrain.indices_of(0, settings)
    for rank in (0, 1):
        rng = np.random.default_rng((settings.seed, 0, 7))
        mirror = rng.random(8) < 0.5
        batch = feed.batch(indices[rank::2], "cpu", mirror[rank::2])
        model.train()
        pairs = (0, 1, 2 + int(rng.integers(len(pretrain.ANTONYMS) - 2)))
        pretrain.losses(model, batch, rng, pairs, nullcontext())[0].backward()  # gradients add up
    parameters = [p for p in model.parameters() if p.ndim >= 2] + [p for p in model.parameters() if p.ndim < 2]
    for parameter in parameters:
        parameter.grad = parameter.grad / 2
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    moments = state["optimizer"]["state"]
    for number, parameter in enumerate(parameters):
        torch.testing.assert_close(moments[number]["exp_avg"], 0.1 * parameter.grad, rtol=1e-3, atol=1e-6)


def test_the_teacher_has_the_activation_that_its_weights_were_made_with(pretrain: ModuleType) -> None:
    teacher = sys.modules["teacher"]
    block, network = torch.nn.Module(), torch.nn.Module()
    block._swish, network._swish = torch.nn.ReLU6(), torch.nn.ReLU6()
    network._blocks = torch.nn.ModuleList([block])
    teacher.check(network)
    block._swish = torch.nn.SiLU()  # as the package's own set_swish leaves it
    with pytest.raises(ValueError, match="the teacher's activation is SiLU"):
        teacher.check(network)


def test_good_learns_what_the_teacher_tells_of_the_quality(
    pretrain: ModuleType, packed: tuple[Path, Path], tmp_path: Path
) -> None:
    pack = sys.modules["packing"].Pack(packed[0])
    tokenizer = sys.modules["shared"].import_open_clip().SimpleTokenizer(context_length=32)
    model = pretrain.Pretraining(pretrain.vocabulary(tokenizer, pack.entries), tokenizer)
    planner = pretrain.Planner(pack, 0)
    memo = pretrain.Memo(tmp_path, planner.key(), 64, pretrain.SHAPES)
    feed = pretrain.Feed(pack, planner, memo, StandIn(), None)
    pretrain.calibrate(model, feed, 64, pretrain.TARGETS)
    batch = feed.batch(range(64), "cpu")
    wanted = model.standardise("statistics", batch["statistics"])
    seen = model.seen_quality(wanted)
    # The ridge in its dual form, by hand.
    x, y = wanted.double(), batch["quality"].double()
    centred = x - x.mean(0)
    weight = centred.T @ torch.linalg.solve(centred @ centred.T + 8 * 64 * torch.eye(64).double(), y - y.mean())
    told = centred @ weight
    expected = y.mean() + told / told.std(unbiased=False) * y.std(unbiased=False)
    torch.testing.assert_close(seen.double(), expected.clamp(0, 1), rtol=0, atol=1e-3)
    pair = ("good", "bad", "quality")
    assert pretrain.target_of(pair, batch, seen) is seen
    sharp = next(pair for pair in pretrain.ANTONYMS if pair[0] == "sharp")
    assert not torch.equal(pretrain.target_of(sharp, batch, seen), seen)


def test_noise_beside_the_patches_stands_where_learned_prompts_will(pretrain: ModuleType) -> None:
    tokenizer = sys.modules["shared"].import_open_clip().SimpleTokenizer(context_length=32)
    model = pretrain.Pretraining(torch.arange(8), tokenizer).eval()
    pixels = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    drawn = [pretrain.noise_beside(model, rng, torch.device("cpu")) for _ in range(40)]
    assert 10 < sum(noise is None for noise in drawn) < 30
    assert {noise.shape[0] for noise in drawn if noise is not None} == {1, 2, 3, 4, 5, 6}
    with torch.no_grad():
        alone = model.tokens(pixels)
        beside = model.tokens(pixels, next(noise for noise in drawn if noise is not None))
        assert beside.shape == alone.shape
        assert not torch.allclose(beside, alone)
        torch.testing.assert_close(model.tokens(pixels, torch.zeros(0, 8, 192)), alone, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_export_that_knows_another_teacher_begins_its_heads_anew(
    pretrain: ModuleType, packed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out, elsewhere = tmp_path / "work", tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    run(pretrain, leg(work, packed, 1), StandIn(), monkeypatch)
    run(pretrain, ["export", "--work", str(work), "--out", str(out)], StandIn(), monkeypatch)
    before = torch.load(work / "state.pt", weights_only=True)["model"]
    monkeypatch.setattr(sys.modules["teacher"], "KIND", "another")
    arguments = leg(elsewhere, packed, 2)
    arguments[arguments.index("--start") + 1] = str(out)
    run(pretrain, arguments, StandIn(), monkeypatch)
    after = torch.load(elsewhere / "state.pt", weights_only=True)
    assert [part["teacher"] for part in after["log"]["legs"]][1:] == ["another"]
    moved = {
        name: float((after["model"][name] - before[name]).abs().mean()) for name in before if "head.weight" in name
    }
    assert moved["statistics_head.weight"] > 10 * moved["severity_head.weight"], "one step moves no head that far"
    with pytest.raises(ValueError, match="learned from another teacher: move it away"):
        run(pretrain, leg(work, packed, 2), StandIn(), monkeypatch)


def test_a_row_half_written_is_made_anew(pretrain: ModuleType, tmp_path: Path) -> None:
    memo = sys.modules["crops"].Memo(tmp_path, "key", 4, {"pixels": ("u1", (5,))})
    memo.put(2, {"pixels": np.arange(5)})
    assert memo.has(2)
    assert memo.get([2])["pixels"].tolist() == [[0, 1, 2, 3, 4]]
    assert memo.get([2, 3]) is None
    memo.rows[2]["pixels"][4] = 9  # as if the machine had gone down between the row and its checksum
    assert memo.get([2]) is None
    assert not memo.has(2)


def test_a_larger_pool_keeps_the_rows_of_the_smaller_one(pretrain: ModuleType, tmp_path: Path) -> None:
    crops = sys.modules["crops"]
    small = crops.Memo(tmp_path, "key", 2, {"pixels": ("u1", (5,))})
    small.put(1, {"pixels": np.full(5, 7)})
    large = crops.Memo(tmp_path, "key", 4, {"pixels": ("u1", (5,))})
    assert [large.has(k) for k in range(4)] == [False, True, False, False]
    assert large.get([1])["pixels"].tolist() == [[7] * 5]


def test_crops_follow_from_their_index(pretrain: ModuleType, packed: tuple[Path, Path]) -> None:
    crops, pack = sys.modules["crops"], sys.modules["packing"].Pack(packed[0])
    planner = crops.Planner(pack, 0)
    plans = [planner(k) for k in range(60)]
    assert sum(not plan.order for plan in plans) / 60 == pytest.approx(0.35, abs=0.15)
    assert {len(plan.order) for plan in plans} == {0, 1, 2}
    for plan in plans:
        assert plan.picture < 0 or not pack.entries[plan.picture].held_out
        pixels = crops.pixels_of(plan, pack)
        assert pixels.shape == (3, 128, 128)
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, crops.pixels_of(planner(plan.seed[2]), pack))
    held_out = crops.Planner(pack, 0, held_out=True)
    assert all(pack.entries[plan.picture].held_out for plan in map(held_out, range(20)) if plan.picture >= 0)
    assert held_out.key() != planner.key() != crops.Planner(pack, 1).key()


def test_the_rate_rises_holds_and_falls_at_the_end(pretrain: ModuleType) -> None:
    assert pretrain.rate_at(0, 0, 0.0, None) == 1 / 500
    assert pretrain.rate_at(10_000, 0, 3.0, None) == 1
    assert pretrain.rate_at(10_000, 10_000, 3.0, None) == 1 / 500, "a new optimiser warms up again"
    down = {"from": 3.0, "hours": 0.5}
    assert pretrain.rate_at(10_000, 0, 3.25, down) == 0.5
    assert pretrain.rate_at(10_000, 0, 3.6, down) == 0


def test_every_caption_is_in_the_vocabulary(pretrain: ModuleType, packed: tuple[Path, Path]) -> None:
    crops, pack = sys.modules["crops"], sys.modules["packing"].Pack(packed[0])
    tokenizer = sys.modules["shared"].import_open_clip().SimpleTokenizer(context_length=32)
    rows = set(pretrain.vocabulary(tokenizer, pack.entries).tolist())
    captions = {crops.Planner(pack, 0)(index).caption for index in range(300)}
    assert len(captions) > 50
    for text in captions | {
        f"{word} {noun}." for pair in pretrain.ANTONYMS for word in pair[:2] for noun in pretrain.NOUNS
    }:
        assert set(tokenizer(text)[0].tolist()) - {0} <= rows, text


def test_the_class_texts_in_any_case_are_in_the_vocabulary(pretrain: ModuleType) -> None:
    open_clip = sys.modules["shared"].import_open_clip()
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    rows = set(pretrain.vocabulary(tokenizer, []).tolist())
    assert torch.equal(tokenizer("Good photo."), tokenizer("good photo.")), "the tokenizer lowers all letters"
    for text in (
        *("Good photo.", "Bad photo.", "good image.", "aligned photo.", "misaligned photo.", "Excellent picture."),
        *("a photo of poor quality", "fair quality", "sharp image.", "blurry image.", "high quality photo."),
        *("perfect photo.", "an image that matches the text", "an image that does not match the prompt"),
    ):
        assert set(tokenizer(text)[0].tolist()) - {0} <= rows, text
