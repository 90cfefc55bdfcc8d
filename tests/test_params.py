"""The strict view of params.yaml: every fault is named with its key, value and remedy."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from dvc.utils.serialize import parse_yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline.params import Params, ParamsError, Section, load_params, parse_params


@pytest.fixture
def raw() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params" / "demo.yaml").read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_ready_made_set_loads(path: Path) -> None:
    params = load_params(path)
    assert params.train.select_on == "validation"
    assert params.split.rule == "grouped"


def test_params_yaml_is_valid() -> None:
    """Whichever data set a user has switched to; that a clone starts with the demo is a check of CI."""
    load_params(ROOT / "params.yaml")


def sections(kind: type[Section] = Section) -> list[type[Section]]:
    return [found for child in kind.__subclasses__() for found in (child, *sections(child))]


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_key_has_a_description(section: type[Section]) -> None:
    for name, field in section.model_fields.items():
        assert re.fullmatch(r"[^.].{5,110}\.", field.description or ""), name


def test_the_full_study_has_the_papers_values() -> None:
    params = load_params(ROOT / "params" / "full.yaml")
    train, model = params.train, params.model
    assert (train.learning_rate, train.batch_size, train.epochs, train.auxiliary_weight) == (1e-4, 64, 50, 0.1)
    assert (model.prompt_depth, model.prompt_length, params.backbone.name) == (12, 8, "ViT-B-32")
    assert len(params.study.rounds) == 10
    assert set(params.study.datasets) == {"agiqa3k", "agiqa1k", "aigciqa2023"}
    assert len(params.study.variants) == 5


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        raw = raw[section]
    raw[last] = value


def own(raw: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {**raw["datasets"]["demo"], "reader": "folder", "source": "photos", "scale": [0, 5], **changed}


def test_a_data_set_of_ones_own_has_labels_and_scale(raw: dict[str, Any]) -> None:
    put(raw, "datasets.mine", own(raw, labels="mos.csv"))
    put(raw, "study.datasets", ["mine"])
    mine = parse_params(raw).datasets["mine"]
    assert (mine.labels, mine.scale, mine.raters) == ("mos.csv", [0, 5], None)
    put(raw, "datasets.mine.raters", "simulated")
    assert parse_params(raw).datasets["mine"].raters == "simulated"
    del raw["datasets"]["mine"]["raters"]  # as files of earlier versions have it
    assert parse_params(raw).datasets["mine"].raters is None


def test_a_data_set_of_ones_own_is_three_lines(raw: dict[str, Any]) -> None:
    whole = own(raw, source="photos", scale=[1, 5])
    put(raw, "datasets.mine", whole)
    expected = parse_params(raw)
    put(raw, "datasets.mine", {"reader": "folder", "source": "photos", "scale": [1, 5]})
    assert parse_params(raw) == expected
    assert expected.datasets["mine"].model_dump() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: put(raw, "train.lrr", 0.1), "unknown key 'train.lrr'; did you mean"),
        (lambda raw: put(raw, "train.learning_rates", 0.1), "did you mean 'learning_rate'?"),
        (lambda raw: put(raw, "train.learning-rate", 0.1), "'train.learning-rate'; did you mean 'learning_rate'?"),
        (
            lambda raw: put(raw, "train.weight_decay", float("inf")),
            "train.weight_decay = inf: input should be a finite",
        ),
        (lambda raw: raw["train"].pop("epochs"), "missing key 'train.epochs'"),
        (lambda raw: put(raw, "train.epochs", "6"), "train.epochs = '6': input should be a valid integer"),
        (lambda raw: put(raw, "train.epochs", 0), "train.epochs = 0: input should be greater than or equal to 1"),
        (lambda raw: put(raw, "train.flip", 1), "train.flip = 1: input should be a valid boolean"),
        (lambda raw: put(raw, "split.rule", "groped"), "split.rule = 'groped': input should be 'grouped' or 'random'"),
        (lambda raw: put(raw, "study.variants", ["dcmpln", "dcmplm"]), "names 'dcmplm', which section 'variants'"),
        (lambda raw: put(raw, "study.rounds", [0, 0]), "rounds names an entry twice: [0, 0]"),
        (lambda raw: put(raw, "datasets.demo.scale", [0, 5]), "scale is for `reader: folder`; the reader demo knows"),
        (
            lambda raw: put(raw, "datasets.demo.raters", "people"),
            "raters is for `reader: folder`; the reader demo knows",
        ),
        (
            lambda raw: put(raw, "datasets.demo", own(raw, raters="humans")),
            "datasets.demo.raters = 'humans': input should be 'people' or 'simulated'",
        ),
        (lambda raw: put(raw, "datasets.demo", own(raw, scale=[5, 1])), "scale is [5.0, 1.0]: give the lowest, then"),
        (lambda raw: put(raw, "variants.dcmpln.auxiliary", False), "mpa is true without auxiliary"),
        (lambda raw: put(raw, "variants.dcmpln.train", {"lr": 0.1}), "unknown key 'variants.dcmpln.train.lr'"),
        (lambda raw: put(raw, "variants.dcmpln.train", {"epochs": -1}), "variants.dcmpln.train.epochs = -1"),
        (lambda raw: put(raw, "backbone.pretrained", "openai"), "pretrained and file are both set"),
        (lambda raw: put(raw, "targets.auxiliary", "quality"), "targets.auxiliary is 'quality', the same as"),
        (lambda raw: put(raw, "train.warmup_epochs", 4), "warmup_epochs is 4, which leaves none of 4 epochs"),
        (lambda raw: put(raw, "datasets.demo.sha256", "abc"), "datasets.demo.sha256 = 'abc'"),
        (lambda raw: raw["datasets"]["demo"].pop("reader"), "missing key 'datasets.demo.reader'"),
        (lambda raw: put(raw, "datasets.demo.sourc", "x"), "unknown key 'datasets.demo.sourc'; did you mean 'source'?"),
    ],
)
def test_faults_are_named(raw: dict[str, Any], change: Callable[[dict[str, Any]], Any], message: str) -> None:
    change(raw)
    with pytest.raises(ParamsError, match=re.escape(message)):
        parse_params(raw)


def test_all_faults_come_at_once(raw: dict[str, Any]) -> None:
    put(raw, "train.epochs", 0)
    put(raw, "evaluate.galery", 5)
    with pytest.raises(ParamsError) as error:
        parse_params(raw)
    heading, *lines = str(error.value).splitlines()
    assert heading == "params.yaml:"
    assert [line.split(" ", 3)[2] for line in lines] == ["train.epochs", "unknown"]
    assert lines[1] == "  unknown key 'evaluate.galery'; did you mean 'gallery'?"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.epoch", 3, "params.yaml: unknown key 'train.epoch'; did you mean 'epochs'?"),
        ("study.datasets", ["dem"], "params.yaml: study.datasets names 'dem', which section 'datasets' does not hold; "
         "did you mean 'demo'?"),
    ],
)  # fmt: skip
def test_one_fault_is_one_line(raw: dict[str, Any], key: str, value: Any, message: str) -> None:
    put(raw, key, value)
    with pytest.raises(ParamsError) as error:
        parse_params(raw)
    assert str(error.value) == message


def test_a_data_set_is_asked_for_by_its_name(raw: dict[str, Any]) -> None:
    params = parse_params(raw)
    assert params.dataset("agiqa3k") == params.datasets["agiqa3k"]
    with pytest.raises(ParamsError, match="section 'datasets' holds no 'agiqa3'; did you mean 'agiqa3k'"):
        params.dataset("agiqa3")


def written(tmp_path: Path, old: str, new: str) -> Path:
    """Return params in which one place of the demo's is written otherwise."""
    text = (ROOT / "params" / "demo.yaml").read_text()
    assert text.count(old) == 1
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(old, new))
    return path


RATE = "learning_rate: 0.005"


@pytest.mark.parametrize("text", ["1e-4", "5E-4", "1_0e-3", "+.5", "0.5e-2", "4.e-3"])
def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path, text: str) -> None:
    """YAML 1.1 would read 1e-4 as text."""
    path = written(tmp_path, RATE, f"learning_rate: {text}")
    assert load_params(path).train.learning_rate == parse_yaml(path.read_text(), path)["train"]["learning_rate"]


def test_the_number_that_yaml_1_1_has_for_text(tmp_path: Path) -> None:
    assert load_params(written(tmp_path, RATE, "learning_rate: 5e-4")).train.learning_rate == 5e-4
    with pytest.raises(ParamsError, match=r"train\.learning_rate = '1e': input should be a valid number"):
        load_params(written(tmp_path, RATE, "learning_rate: 1e"))


@pytest.mark.parametrize(("text", "seed"), [("010", 10), ("017", 17), ("0o10", 8), ("0x10", 16), ("1_000", 1000)])
def test_whole_numbers_are_those_of_yaml_1_2(tmp_path: Path, text: str, seed: int) -> None:
    path = written(tmp_path, "  seed: 7", f"  seed: {text}")
    assert load_params(path).demo.seed == parse_yaml(path.read_text(), path)["demo"]["seed"] == seed


def test_off_is_a_word_and_true_is_not(tmp_path: Path) -> None:
    """YAML 1.1 would read off as false; `dvc exp run -S` writes the file without quotes."""
    train = load_params(written(tmp_path, "  amp: auto", "  amp: off")).train
    assert (train.amp, train.compile, train.flip) == ("off", "off", True)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "  epochs: 4\n", "  epochs: 4\n  epochs: 7\n")
    line = path.read_text().splitlines().index("  epochs: 7") + 1
    with pytest.raises(ParamsError) as error:
        load_params(path)
    assert str(error.value) == f"{path}: key 'epochs' stands twice (again in line {line}): keep one"


@pytest.mark.parametrize(
    "content", [b"a: [", b"a: \0", b"a: 2024-13-45", b"a: \x01", b"a: !!python/object:os.system x", b"--- 1\n--- 2"]
)
def test_what_is_no_yaml_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ParamsError) as error:
        load_params(path)
    assert re.fullmatch(rf"{re.escape(str(path))} is not valid YAML: \S.*", str(error.value))


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="does not exist: run from the repository root"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(ParamsError, match="is not valid YAML"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match="must be a mapping of sections, and is a list"):
        parse_params([])


def test_a_variants_own_training_values_win(raw: dict[str, Any]) -> None:
    put(raw, "variants.clip_agiqa.train", {"learning_rate": 0.02})
    params = parse_params(raw)
    assert params.train_for("clip_agiqa").learning_rate == 0.02
    assert params.train_for("dcmpln") == params.train


def test_params_of_earlier_versions_load_and_say_what_does_nothing(
    raw: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    expected = parse_params(raw)
    assert caplog.text == ""
    put(raw, "evaluate.bootstrap", 1000)
    put(raw, "evaluate.seed", 0)
    assert parse_params(raw) == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"params.yaml: evaluate.{key} does nothing any more, since intervals are no longer drawn at random: delete it"
        for key in ("bootstrap", "seed")
    ]
    assert raw["evaluate"]["bootstrap"] == 1000  # the caller's own mapping is left alone


def test_a_baseline_is_one_of_ours_or_a_metric_of_pyiqas(raw: dict[str, Any]) -> None:
    names = ["handcrafted", "pyiqa_piqe", "pyiqa_clipiqa+_vitL14_512", "pyiqa_musiq-ava"]
    put(raw, "study.baselines", names)
    assert parse_params(raw).study.baselines == names
    assert (
        "photos/pyiqa_piqe/round-0"
        in parse_params(raw).study.model_copy(update={"datasets": ["photos"], "rounds": [0]}).run_names()
    )


@pytest.mark.parametrize("name", ["niqe", "pyiqa:niqe", "pyiqa_", "pyiqa_a/b", "pyiqa_a b", "handcraftd"])
def test_another_baseline_is_told_what_there_is(raw: dict[str, Any], name: str) -> None:
    put(raw, "study.baselines", ["clip_iqa", name])
    hint = "; did you mean 'handcrafted'?" if name == "handcraftd" else ""
    with pytest.raises(ParamsError) as error:
        parse_params(raw)
    assert str(error.value) == (
        f"params.yaml: study.baselines.1 = {name!r}: known are clip_iqa, linear_probe, handcrafted, and pyiqa_NAME for "
        f"the no-reference metric NAME of pyiqa, such as pyiqa_piqe{hint}"
    )


def test_a_variant_has_a_name_of_its_own(raw: dict[str, Any]) -> None:
    raw["variants"]["pyiqa_piqe"] = raw["variants"]["dcmpln"]
    with pytest.raises(ParamsError, match=r"variants\.pyiqa_piqe carries a baseline's name: choose another"):
        parse_params(raw)


# Keys that came after the first version: a file without them loads, and means what it meant.
LATER = {
    "train.windows": 1, "train.map_rate": 1.0, "train.visual_rate": 1.0, "train.ranking_weight": 0.0,
    "model.mpa.start": "random", "baselines.linear_probe.features": "mean", "images.shorter_side": None,
    "backbone.tokenizer": None,
}  # fmt: skip


def test_params_without_the_later_keys_mean_what_they_meant(raw: dict[str, Any]) -> None:
    expected = parse_params(raw)
    for key, value in LATER.items():
        *sections, last = key.split(".")
        place = raw
        for section in sections:
            place = place[section]
        assert place.pop(last) == value
    assert parse_params(raw) == expected


def floats(section: type[Section], above: str = "") -> list[str]:
    """Return every key below a section that holds a number with a fraction."""
    found = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found += floats(kind, f"{above}{name}.")
        elif "float" in str(kind) + str(field.metadata):
            found.append(above + name)
    return found


FLOATS = floats(Params)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("key", FLOATS)
def test_no_number_is_infinite(raw: dict[str, Any], key: str, value: float) -> None:
    assert len(FLOATS) > 8
    place = raw
    for section in key.split("."):
        place = place[section]
    put(raw, key, [value] if isinstance(place, list) else value)
    with pytest.raises(ParamsError, match=re.escape(key) + r"(\.0)? = -?(inf|nan): input should be a finite number"):
        parse_params(raw)


NUMBERS = st.floats(1e-12, 0.999)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_]{0,20}", fullmatch=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rate=NUMBERS, fraction=NUMBERS, seed=st.integers(0, 2**32 - 1), name=NAMES,
    texts=st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc", "Cn", "Co"))), min_size=2, max_size=2),
)  # fmt: skip
def test_params_that_a_program_writes_are_read_back(
    tmp_path: Path, rate: float, fraction: float, seed: int, name: str, texts: list[str]
) -> None:
    """As `dvc exp run -S` does, which writes the file anew by ruamel.yaml."""
    raw = yaml.safe_load((ROOT / "params" / "demo.yaml").read_text())
    put(raw, "train.learning_rate", rate)
    put(raw, "split.test_fraction", fraction)
    put(raw, "demo.seed", seed)
    put(raw, "model.texts.main", texts)
    raw["datasets"][name] = raw["datasets"]["demo"]
    path = tmp_path / "params.yaml"
    with path.open("w", encoding="utf-8") as stream:
        YAML().dump(raw, stream)
    params = load_params(path)
    assert (params.train.learning_rate, params.split.test_fraction, params.demo.seed) == (rate, fraction, seed)
    assert params.model.texts.main == texts
    assert params.dataset(name) == params.dataset("demo")
    assert parse_params(params.model_dump()) == params
