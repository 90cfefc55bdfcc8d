"""Typed, strict view of params.yaml, and its only reader.

Every stage loads its values here and hands plain arguments to the library, so no other module knows the file. A key
that is unknown, missing, wrongly typed or out of range stops the study at once: DVC itself accepts any key, and a
misspelt `lrr: 0.001` would otherwise train silently with the old rate.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import AgiqaError

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$")]
Attribute = Literal["quality", "alignment", "authenticity"]
Reader = Literal["demo", "agiqa3k", "agiqa1k", "aigciqa2023", "folder"]
BaselineName = Literal["clip_iqa", "linear_probe", "handcrafted"]
ProblemKind = Literal[
    "missing", "unlabelled", "unreadable", "duplicate_name", "duplicate_image", "bad_label", "no_spread"
]
BASELINES: tuple[str, ...] = get_args(BaselineName)


class ParamsError(AgiqaError):
    """params.yaml holds a key or value that the study cannot use."""


class Section(BaseModel):
    """A section of params.yaml: keys are fixed, types are not guessed, values do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Study(Section):
    """What is run: every data set x method x round."""

    name: Name
    datasets: Annotated[list[Name], Field(min_length=1)]
    variants: list[Name]
    baselines: list[BaselineName]
    rounds: Annotated[list[NonNegative], Field(min_length=1)]
    audit: list[Name]

    @property
    def methods(self) -> list[str]:
        """Variants, then baselines."""
        return [*self.variants, *self.baselines]

    def run_names(self) -> set[str]:
        """Return every run as `<dataset>/<method>/round-<r>`, the audit's as `<dataset>/<variant>/random-<r>`."""
        which = [("round", method) for method in self.methods] + [("random", variant) for variant in self.audit]
        return {f"{d}/{m}/{split}-{r}" for d in self.datasets for split, m in which for r in self.rounds}

    @model_validator(mode="after")
    def _no_repeats(self) -> "Study":
        for key in ("datasets", "variants", "baselines", "rounds", "audit"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise ValueError(f"{key} names an entry twice: {values}")
        if not self.methods:
            raise ValueError("variants and baselines are both empty: name at least one method")
        absent = [name for name in self.audit if name not in self.variants]
        if absent:
            raise ValueError(f"audit names {absent[0]!r}, which is none of variants {self.variants}")
        return self


class Dataset(Section):
    """Where one data set comes from and who reads it."""

    reader: Reader
    source: str | None
    archive: str | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    google_drive_id: str | None
    labels: str | None
    scale: Annotated[list[float], Field(min_length=2, max_length=2)] | None
    allow_problems: list[ProblemKind]

    @model_validator(mode="after")
    def _keys_fit_reader(self) -> "Dataset":
        for key in ("labels", "scale"):
            if self.reader != "folder" and getattr(self, key) is not None:
                raise ValueError(f"{key} is for `reader: folder`; the reader {self.reader} knows its own: null")
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale is {self.scale}: give the lowest, then the highest possible score")
        return self


class Demo(Section):
    """The generator of the embedded demo data set."""

    seed: NonNegative
    prompts: Annotated[int, Field(ge=10)]
    size: Annotated[int, Field(ge=64)]


class Split(Section):
    """The split rule; `random` leaks generation prompts between subsets, and exists to measure what that is worth."""

    rule: Literal["grouped", "random"]
    test_fraction: Fraction
    validation_fraction: Fraction
    seed: NonNegative


class Backbone(Section):
    """The frozen CLIP: an open_clip name with a pretrained tag, a weights file, or neither (random weights)."""

    name: str
    config: str | None
    pretrained: str | None
    file: str | None
    origin: Literal["pretrained", "in-house"] | None
    activation: Literal["quickgelu", "gelu"] | None
    seed: NonNegative

    @model_validator(mode="after")
    def _one_source(self) -> "Backbone":
        if self.pretrained is not None and self.file is not None:
            raise ValueError("pretrained and file are both set: give the tag or the file, not both")
        if self.file is not None and self.origin is None:
            raise ValueError("file is set without origin: say `pretrained` (published weights) or `in-house`")
        if self.file is not None and self.config is None and self.activation is None:
            raise ValueError(
                "activation is null with a weights file: say `quickgelu` (OpenAI's weights) or `gelu`, the one that "
                "the weights were trained with"
            )
        if self.file is None and self.origin is not None:
            raise ValueError("origin describes a weights file; with a tag or random weights it must be null")
        return self


class Texts(Section):
    """The two class texts of each task: the better one first."""

    main: Annotated[list[str], Field(min_length=2, max_length=2)]
    auxiliary: Annotated[list[str], Field(min_length=2, max_length=2)]


class Mpa(Section):
    """Multi-modal Prompt Attention."""

    shared: bool


class Adapter(Section):
    """Image Adapter."""

    reduction: Positive
    residual_ratio: Annotated[float, Field(ge=0, le=1)]
    shared: bool


class Model(Section):
    """Sizes of what is learned; which parts a variant uses stands in `variants`."""

    prompt_depth: Positive
    prompt_length: Positive
    prompt_std: Annotated[float, Field(gt=0)]
    texts: Texts
    mpa: Mpa
    adapter: Adapter


class Images(Section):
    """How pixels become model input, in training, validation and scoring alike."""

    normalisation: Literal["clip", "imagenet"]
    stride: Positive
    cover: Literal["all", "reference"]


class Targets(Section):
    """Which mean opinion score each task learns."""

    main: Attribute
    auxiliary: Attribute
    fallback: Literal["none", "main"]


class Train(Section):
    """Optimisation; any key here may be overridden for one variant under `variants.<name>.train`."""

    optimiser: Literal["adam"]
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    schedule: Literal["constant", "cosine"]
    warmup_epochs: NonNegative
    weight_decay: Annotated[float, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=2)]
    micro_batch: Literal["auto"] | Positive
    epochs: Positive
    patience: Positive | None
    auxiliary_weight: Annotated[float, Field(ge=0)]
    flip: bool
    seed: NonNegative
    device: Literal["auto", "cpu", "cuda"]
    amp: Literal["auto", "off"]
    compile: Literal["auto", "off"]
    threads: Positive | None
    select_on: Literal["validation", "test"]

    @model_validator(mode="after")
    def _warmup_fits(self) -> "Train":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, which leaves none of {self.epochs} epochs")
        return self


class Validation(Section):
    """How the validation images are scored after each epoch."""

    windows: Positive


class Variant(Section):
    """One model of the study by its switches."""

    auxiliary: bool
    mpa: bool
    layer_f: bool
    adapter: bool
    shuffle_labels: bool
    train: dict[str, Any]

    @model_validator(mode="after")
    def _switches_fit(self) -> "Variant":
        for switch in ("mpa", "layer_f"):
            if getattr(self, switch) and not self.auxiliary:
                raise ValueError(f"{switch} is true without auxiliary: it reads the auxiliary prompts")
        if self.auxiliary and not self.layer_f:
            raise ValueError("auxiliary is true without layer_f: nothing would carry it into the main task's score")
        return self


class LinearProbe(Section):
    """Ridge regression on frozen image features."""

    alphas: Annotated[list[float], Field(min_length=1)]


class Handcrafted(Section):
    """Gradient boosting on hand-crafted statistics."""

    learning_rate: Annotated[float, Field(gt=0)]
    max_iterations: Positive
    max_depth: Positive


class Baselines(Section):
    """The baselines' own values."""

    seed: NonNegative
    clip_iqa_texts: Annotated[list[str], Field(min_length=2, max_length=2)]
    linear_probe: LinearProbe
    handcrafted: Handcrafted


class Evaluate(Section):
    """What is shown of the test images."""

    gallery: NonNegative


class Params(Section):
    """All of params.yaml."""

    study: Study
    datasets: dict[Name, Dataset]
    demo: Demo
    split: Split
    backbone: Backbone
    model: Model
    images: Images
    targets: Targets
    train: Train
    validation: Validation
    variants: dict[Name, Variant]
    baselines: Baselines
    evaluate: Evaluate

    def train_for(self, variant: str) -> Train:
        """Return the training section with the variant's own overrides applied."""
        return Train.model_validate({**self.train.model_dump(), **self.variants[variant].train})


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads words as YAML 1.2 and DVC do: `1e-4` is a number, and `off` is a word, not False.

    YAML 1.1 would have both the other way round, and DVC drops the quotes of `"off"` when `dvc exp run -S` writes the
    file. It also refuses a key that stands twice, of which YAML would silently keep the last.
    """


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_FLOAT, re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise ParamsError(f"key {key!r} stands twice (again in line {key_node.start_mark.line + 1}): keep one")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats)


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml.

    Args:
        path: The file.

    Returns:
        The checked, immutable parameters.

    Raises:
        ParamsError: If the file is missing, is not YAML, or any key is unknown, missing, wrongly typed or out of
            range. All faults are listed at once, each with its key, its value and, for an unknown key, its nearest
            known neighbour.
    """
    path = Path(path)
    if not path.is_file():
        raise ParamsError(f"{path} does not exist: run from the repository root, where params.yaml stands")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from None
    except ParamsError as error:
        raise ParamsError(f"{path}: {error}") from None
    return parse_params(raw, str(path))


def parse_params(raw: Any, origin: str = "params.yaml") -> Params:
    """Check an already read mapping; see `load_params`."""
    if not isinstance(raw, Mapping):
        raise ParamsError(f"{origin} must be a mapping of sections, and is a {type(raw).__name__}")
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        faults = [_fault(raw, dict(item)) for item in error.errors()]
        raise ParamsError(f"{origin}:\n  " + "\n  ".join(faults)) from None
    faults = _cross_faults(params)
    if faults:
        raise ParamsError(f"{origin}:\n  " + "\n  ".join(faults))
    return params


def _nearest(word: str, known: list[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.3)
    return f"; did you mean {match[0]!r}?" if match else f"; known: {', '.join(sorted(known))}"


def _fault(raw: Any, item: dict[str, Any]) -> str:
    """Turn one pydantic finding into a sentence that names key, value and remedy."""
    # pydantic marks a bad table key as `[key]`, and the branch of a choice of types as `literal[...]` or such
    location = [part for part in item["loc"] if re.fullmatch(r"[\w.]+", str(part))]
    key = ".".join(str(part) for part in location)
    if item["type"] == "extra_forbidden":
        return f"unknown key {key!r}" + _nearest(str(location[-1]), _known_keys(location[:-1]))
    if item["type"] == "missing":
        return f"missing key {key!r}"
    message = item["msg"].removeprefix("Value error, ")
    value = item["input"]
    shown = "" if isinstance(value, Mapping) else f" = {value!r}"
    return f"{key}{shown}: {message[0].lower()}{message[1:]}"


def _known_keys(location: list[Any]) -> list[str]:
    """Return the keys that the section at `location` may hold."""
    section: Any = Params
    for part in location:
        is_table = get_origin(section) is dict  # of named entries, as `variants`: any part is an entry's name
        section = get_args(section)[1] if is_table else section.model_fields[part].annotation
    return list(section.model_fields)


def _cross_faults(params: Params) -> list[str]:
    """Check what one section says of another."""
    faults = [
        f"study.{kind} names {name!r}, which section {kind!r} does not hold" + _nearest(name, list(section))
        for kind, section in (("datasets", params.datasets), ("variants", params.variants))
        for name in getattr(params.study, kind)
        if name not in section
    ]
    for name, variant in params.variants.items():
        if name in BASELINES:
            faults.append(f"variants.{name} carries a baseline's name: choose another")
        for key in variant.train:
            if key not in Train.model_fields:
                faults.append(f"unknown key 'variants.{name}.train.{key}'" + _nearest(key, list(Train.model_fields)))
        if all(key in Train.model_fields for key in variant.train):
            try:
                params.train_for(name)
            except ValidationError as error:
                faults += [f"variants.{name}.train." + _fault(variant.train, dict(item)) for item in error.errors()]
    if params.targets.auxiliary == params.targets.main:
        faults.append(f"targets.auxiliary is {params.targets.main!r}, the same as targets.main: name another score")
    return faults
