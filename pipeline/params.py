"""Typed, strict view of params.yaml, and its only reader.

Every stage loads its values here and hands plain arguments to the library, so no other module knows the file. A key
that is unknown, missing, wrongly typed or out of range stops a stage at once: DVC itself accepts any key, and a
misspelt `lrr: 0.001` would otherwise train silently with the old rate.
"""

import difflib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from pipeline.layout import PYIQA, Raters
from pipeline.params_faults import fault, nearest, refusal
from pipeline.yaml_file import ParamsError, read_yaml

Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator takes for a seed


def plain_name(name: str) -> str:
    """Return the name of a data set or variant, of which DVC makes names of stages and keys of its own.

    Raises:
        ValueError: If it can be none; says what one has.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]{0,63}", name):
        raise ValueError(
            "a name has letters from A to Z, digits and _, at most 64 of them and _ not first: DVC takes a point for "
            "the start of another key, and joins names with -"
        )
    return name


Name = Annotated[str, AfterValidator(plain_name)]
Attribute = Literal["quality", "alignment", "authenticity"]
Reader = Literal["demo", "agiqa3k", "agiqa1k", "aigciqa2023", "folder"]
OwnBaseline = Literal["clip_iqa", "linear_probe", "handcrafted"]
ProblemKind = Literal[
    "missing", "unlabelled", "unreadable", "duplicate_name", "duplicate_image", "bad_label", "no_spread"
]
BASELINES: tuple[str, ...] = get_args(OwnBaseline)
METRIC = rf"{PYIQA}[A-Za-z0-9][A-Za-z0-9_+-]{{0,63}}"


def _baseline(name: str) -> str:
    """Return the name of a baseline: one of ours, or `pyiqa_` and a metric of pyiqa's, which its stage looks up."""
    if name not in BASELINES and not re.fullmatch(METRIC, name):
        near = difflib.get_close_matches(name, BASELINES, n=1)
        raise ValueError(
            f"known are {', '.join(BASELINES)}, and {PYIQA}NAME for the no-reference metric NAME of pyiqa, such as "
            f"{PYIQA}piqe" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return name


BaselineName = Annotated[
    str,
    AfterValidator(_baseline),
    WithJsonSchema({"anyOf": [{"enum": list(BASELINES)}, {"type": "string", "pattern": f"^{METRIC}$"}]}),
]
# Keys of earlier versions: section, key, and why it does nothing. A params file that has them still loads.
RETIRED = (
    ("evaluate", "bootstrap", "since intervals are no longer drawn at random"),
    ("evaluate", "seed", "since intervals are no longer drawn at random"),
)
logger = logging.getLogger(__name__)


class Section(BaseModel):
    """A section of params.yaml: keys are fixed, types are not guessed, values do not change, numbers are finite."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Study(Section):
    """What is run, every data set x method x round: what "the study" means everywhere."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = Field(
        description="What the experiment in MLflow and the report are called."
    )
    datasets: Annotated[list[Name], Field(min_length=1)] = Field(description="Entries of `datasets` to study.")
    variants: list[Name] = Field(description="Entries of `variants` to train.")
    baselines: list[BaselineName] = Field(
        description="Methods that train no prompts, to compare with; pyiqa_NAME is a no-reference metric of pyiqa's."
    )
    rounds: Annotated[list[NonNegative], Field(min_length=1)] = Field(
        description="Numbers of the rounds; each has a split and seeds of its own."
    )
    audit: list[Name] = Field(
        description="Variants on which to measure what random splits and test-picked epochs are worth."
    )

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

    reader: Reader = Field(description="Which layout of labels to expect; `folder` takes a data set of one's own.")
    source: str | None = Field(
        default=None,
        description="A folder or archive of your own; else $AGIQA_DATA is searched, then Google Drive.",
    )
    archive: str | None = Field(default=None, description="File name of the published archive.")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="Of the archive; null: recorded at first sight."
    )
    google_drive_id: str | None = Field(default=None, description="Of the published archive, to download it.")
    labels: str | None = Field(
        default=None, description="For `reader: folder`: the CSV, relative to the folder; null: the only one."
    )
    scale: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="For `reader: folder`: lowest and highest possible score; null: columns of the CSV say.",
    )
    raters: Raters | None = Field(
        default=None, description="For `reader: folder`: people (null), or simulated, where a formula gave the scores."
    )
    allow_problems: list[ProblemKind] = Field(
        default=[], description="Kinds of problems to go on with; any other stops the stage."
    )

    @model_validator(mode="after")
    def _keys_fit_reader(self) -> "Dataset":
        for key in ("labels", "scale", "raters"):
            if self.reader != "folder" and getattr(self, key) is not None:
                raise ValueError(f"{key} is for `reader: folder`; the reader {self.reader} knows its own: null")
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale is {self.scale}: give the lowest, then the highest possible score")
        return self


class Demo(Section):
    """The generator of the embedded demo data set."""

    seed: NonNegative = Field(description="Of all that is drawn and rated.")
    prompts: Annotated[int, Field(ge=10)] = Field(
        description="Captions; each of eight generators draws each of them once."
    )
    size: Annotated[int, Field(ge=64)] = Field(description="Side of the pictures in pixels.")


class Split(Section):
    """The split rule; `random` leaks generation prompts between subsets, and exists to measure what that is worth."""

    rule: Literal["grouped", "random"] = Field(
        description="grouped: no generation prompt and no image in two subsets; random: leaks, to measure it."
    )
    test_fraction: Fraction = Field(description="Of the prompt groups.")
    validation_fraction: Fraction = Field(description="Of the training groups.")
    seed: NonNegative = Field(description="Of all rounds.")


class Backbone(Section):
    """The frozen CLIP: an open_clip name with a pretrained tag, a weights file, or neither (random weights)."""

    name: str = Field(description="open_clip's name of the towers, such as ViT-B-32.")
    config: str | None = Field(description="An open_clip model configuration; null: one that open_clip knows by name.")
    pretrained: str | None = Field(description="An open_clip tag such as openai.")
    file: str | None = Field(description="A weights file.")
    origin: Literal["pretrained", "in-house"] | None = Field(
        description="Whose weights the file holds: pretrained (published) or in-house."
    )
    activation: Literal["quickgelu", "gelu"] | None = Field(
        description="quickgelu or gelu; null: as the tag or the config says."
    )
    tokenizer: str | None = Field(
        default=None, description="A folder with a Hugging Face tokenizer, as SigLIP's; null: from the hub."
    )
    seed: NonNegative = Field(description="Of random weights, when neither pretrained nor file is given.")

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

    main: Annotated[list[str], Field(min_length=2, max_length=2)] = Field(description="Of the main task.")
    auxiliary: Annotated[list[str], Field(min_length=2, max_length=2)] = Field(description="Of the auxiliary task.")


class Mpa(Section):
    """Multi-modal Prompt Attention."""

    shared: bool = Field(description="One attention for all depths.")
    start: Literal["random", "identity"] = Field(
        default="random", description="identity: deeper prompts start as copies of the first, which keeps them apart."
    )


class Adapter(Section):
    """Image Adapter."""

    reduction: Positive = Field(description="How much narrower its middle is than the features.")
    residual_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        description="Share of the adapted features; the rest are the tower's own."
    )
    shared: bool = Field(description="One adapter for both tasks.")


class Model(Section):
    """Sizes of what is learned; which parts a variant uses stands in `variants`."""

    prompt_depth: Positive = Field(description="Transformer layers that receive prompts; 12 in the paper.")
    prompt_length: Positive = Field(description="Learned tokens a layer.")
    prompt_std: Annotated[float, Field(gt=0)] = Field(description="Standard deviation of the first, random prompts.")
    texts: Texts = Field(description="What an image is compared with.")
    mpa: Mpa = Field(description="See Mpa.")
    adapter: Adapter = Field(description="See Adapter.")


class Images(Section):
    """How pixels become model input, in training, validation and scoring alike."""

    normalisation: Literal["clip", "imagenet", "siglip", "mobileclip"] = Field(
        description="siglip, mobileclip: of those backbones; imagenet reproduces the predecessor."
    )
    shorter_side: Positive | None = Field(
        default=None, description="Pixels that every image's shorter side is resized to first; null: as it is."
    )
    stride: Positive = Field(description="Of the scoring windows; 64 in the paper's lineage.")
    cover: Literal["all", "reference"] = Field(
        description="reference drops what the stride does not reach, as the predecessor does."
    )


class Targets(Section):
    """Which mean opinion score each task learns."""

    main: Attribute = Field(description="Of the main task: what every result is about.")
    auxiliary: Attribute = Field(description="Of the auxiliary task.")
    fallback: Literal["none", "main"] = Field(
        description="Where a data set has no auxiliary score: none masks the term, main learns the main score."
    )


class Train(Section):
    """Optimisation; any key here may be overridden for one variant under `variants.<name>.train`."""

    optimiser: Literal["adam"] = Field(description="The paper's.")
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = Field(description="At its highest.")
    schedule: Literal["constant", "cosine"] = Field(description="How the rate runs after the warm-up.")
    warmup_epochs: NonNegative = Field(description="In which the rate rises to its highest.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(description="Of the optimiser.")
    batch_size: Annotated[int, Field(ge=2)] = Field(description="Images a step.")
    map_rate: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Learning rate of MPA and Layer F, over that of text prompts and adapters."
    )
    visual_rate: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Learning rate of the visual prompts, over that of text prompts and adapters."
    )
    micro_batch: Literal["auto"] | Positive = Field(
        description="Images a pass; auto fits the device. The gradient is the whole batch's either way."
    )
    epochs: Positive = Field(description="At most.")
    patience: Positive | None = Field(description="Stop after so many epochs without a better validation SRCC.")
    auxiliary_weight: Annotated[float, Field(ge=0)] = Field(description="Of the auxiliary task's loss.")
    ranking_weight: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="Of 1 - Pearson's correlation of a batch's main scores with its targets, a further loss.",
    )
    windows: Positive = Field(
        default=1, description="Random crops of an image a step; their scores are averaged before the loss."
    )
    flip: bool = Field(description="Mirror half of the crops.")
    seed: NonNegative = Field(description="Of prompts, order and crops.")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: a GPU if there is one.")
    amp: Literal["auto", "off"] = Field(description="bfloat16 on GPUs; float32 on CPU either way.")
    compile: Literal["auto", "off"] = Field(
        description="auto: torch.compile on GPUs; each training pays a minute for it at its start."
    )
    processes: Literal["auto"] | Positive = Field(
        default=1, description="That share one training; auto: one a GPU. Results are equal but for rounding."
    )
    threads: Positive | None = Field(description="Of the CPU, a process; null: all, shared among the processes.")
    select_on: Literal["validation", "test"] = Field(
        description="test reproduces a common published habit and is labelled as leaking."
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> "Train":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, which leaves none of {self.epochs} epochs")
        return self


class Validation(Section):
    """How the validation images are scored after each epoch."""

    windows: Positive = Field(description="Windows of each image, evenly spread.")


class Variant(Section):
    """One model of the study by its switches."""

    auxiliary: bool = Field(description="Learn the auxiliary task, too.")
    mpa: bool = Field(description="The auxiliary prompts come from MPA; false: they are learned freely.")
    layer_f: bool = Field(description="Fuse the auxiliary visual prompts into the main task's.")
    adapter: bool = Field(description="Adapt the image features.")
    shuffle_labels: bool = Field(description="Learn scores of other images, a control that must fail.")
    train: dict[str, Any] = Field(description="Values that replace those of section `train`.")

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

    alphas: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)] = Field(
        description="Penalties to choose from on the validation images."
    )
    features: Literal["mean", "mean_and_deviation"] = Field(
        default="mean", description="Over an image's windows; mean_and_deviation adds their standard deviation."
    )


class Handcrafted(Section):
    """Gradient boosting on hand-crafted statistics."""

    learning_rate: Annotated[float, Field(gt=0)] = Field(description="Of the boosting.")
    max_iterations: Positive = Field(description="Trees at most.")
    max_depth: Positive = Field(description="Of a tree.")


class Baselines(Section):
    """The baselines' own values."""

    seed: NonNegative = Field(description="Of the boosting.")
    clip_iqa_texts: Annotated[list[str], Field(min_length=2, max_length=2)] = Field(
        description="The better text, then the worse."
    )
    linear_probe: LinearProbe = Field(description="See LinearProbe.")
    handcrafted: Handcrafted = Field(description="See Handcrafted.")


class Evaluate(Section):
    """What is shown of the test images."""

    gallery: NonNegative = Field(description="Images of each kind: best predicted, most over- and most underrated.")


class Params(Section):
    """All of params.yaml."""

    study: Study = Field(description="What is run.")
    datasets: dict[Name, Dataset] = Field(
        description="`reader: folder` takes a data set of your own: see docs/own-data.md."
    )
    demo: Demo = Field(description="The generator of the embedded data set.")
    split: Split = Field(description="Who trains and who tests.")
    backbone: Backbone = Field(description="The frozen towers.")
    model: Model = Field(description="What is learned.")
    images: Images = Field(description="From pixels to model input.")
    targets: Targets = Field(description="The scores to learn.")
    train: Train = Field(description="How to learn.")
    validation: Validation = Field(description="The look at held-out images after each epoch.")
    variants: dict[Name, Variant] = Field(description="One model, switched.")
    baselines: Baselines = Field(description="Methods without prompts.")
    evaluate: Evaluate = Field(description="Numbers on the test images.")

    def dataset(self, name: str) -> Dataset:
        """Return the section of one data set.

        Raises:
            ParamsError: If there is none of this name.
        """
        if name not in self.datasets:
            raise ParamsError(f"section 'datasets' holds no {name!r}" + nearest(name, list(self.datasets)))
        return self.datasets[name]

    def train_for(self, variant: str) -> Train:
        """Return the training section with the variant's own overrides applied."""
        return Train.model_validate({**self.train.model_dump(), **self.variants[variant].train})


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
    return parse_params(read_yaml(path), str(path))


def parse_params(raw: Any, origin: str = "params.yaml") -> Params:
    """Check an already read mapping; see `load_params`."""
    if not isinstance(raw, Mapping):
        kind = "empty" if raw is None else f"a {type(raw).__name__}"
        raise ParamsError(f"{origin} must be a mapping of sections, and is {kind}")
    raw = _without_retired(raw, origin)
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise refusal(origin, [fault(Params, raw, item) for item in error.errors()]) from None
    if faults := _cross_faults(params):
        raise refusal(origin, faults)
    return params


def _without_retired(raw: Mapping[str, Any], origin: str) -> Mapping[str, Any]:
    """Return params without the keys that earlier versions had, and say of each that it does nothing any more."""
    for section, key, reason in RETIRED:
        inner = raw.get(section)
        if isinstance(inner, Mapping) and key in inner:
            logger.warning("%s: %s.%s does nothing any more, %s: delete it", origin, section, key, reason)
            raw = {**raw, section: {name: value for name, value in inner.items() if name != key}}
    return raw


def _cross_faults(params: Params) -> list[str]:
    """Check what one section says of another."""
    faults = [
        f"study.{kind} names {name!r}, which section {kind!r} does not hold" + nearest(name, list(section))
        for kind, section in (("datasets", params.datasets), ("variants", params.variants))
        for name in getattr(params.study, kind)
        if name not in section
    ]
    for name, variant in params.variants.items():
        if name in BASELINES or name.startswith(PYIQA):
            faults.append(f"variants.{name} carries a baseline's name: choose another")
        for key in variant.train:
            if key not in Train.model_fields:
                faults.append(f"unknown key 'variants.{name}.train.{key}'" + nearest(key, list(Train.model_fields)))
        if all(key in Train.model_fields for key in variant.train):
            try:
                params.train_for(name)
            except ValidationError as error:
                faults += [f"variants.{name}.train." + fault(Train, variant.train, item) for item in error.errors()]
    if params.targets.auxiliary == params.targets.main:
        faults.append(f"targets.auxiliary is {params.targets.main!r}, the same as targets.main: name another score")
    return faults
