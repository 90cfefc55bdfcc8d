"""What a checkpoint may say of itself: every field with its type and its bounds, since anyone may have written it.

A checkpoint from the web must not be able to harm the machine that scores with it. So nothing of its record is passed
on that is not named here: no tokenizer of someone's, no address, no path that is not a weights file.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.layout import PERCENTS, Raters

MOST_PARAMETERS = 3_000_000_000  # of both towers; the largest of open_clip's has 2.5 billion
MOST_RANDOM = 400_000_000  # with random weights, which no file vouches for, and of a token table; ViT-L has 304 million
TOKENIZER_KEYS = ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds a control character or a line break")
    return text


def _plain_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise ValueError(f"{text!r} is no plain name: letters, digits, points, hyphens and underscores")
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(_one_line)]
Name = Annotated[str, Field(max_length=100), AfterValidator(_plain_name)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=4096)]
Width = Annotated[int, Field(ge=1, le=16384)]
Layers = Annotated[int, Field(ge=1, le=128)]
Options = dict[Literal["approximate", "eps", "elementwise_affine"], Finite | bool | Literal["tanh", "none"]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Blocks(_Strict):
    """What both towers' transformers have in common in open_clip's configurations."""

    width: Width = 512
    layers: Layers = 12
    mlp_ratio: Annotated[float, Field(gt=0, le=16)] = 4.0
    ls_init_value: Annotated[float, Field(gt=0, le=10)] | None = None
    act_kwargs: Options | None = None
    norm_kwargs: Options | None = None
    block_type: Literal["default", "custom"] | None = None
    qk_norm: bool = False
    scaled_cosine_attn: bool = False
    scale_heads: bool = False
    scale_attn_inner: bool = False
    scale_attn: bool = False
    scale_fc: bool = False
    final_ln_after_pool: bool = False
    output_tokens: bool = False


class VisionConfig(_Blocks):
    """The image tower: open_clip's ViT, or a model that timm knows by a plain name."""

    width: Width = 768
    image_size: Side | list[Side] = 224
    patch_size: Side = 16
    head_width: Side = 64
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    no_ln_pre: bool = False
    pos_embed_type: Literal["learnable", "sin_cos_2d"] = "learnable"
    pool_type: Literal["tok", "avg", "max", "none"] = "tok"
    attentional_pool: Literal[False] = False
    timm_model_name: Name | None = None
    timm_model_pretrained: Literal[False] = False
    timm_pool: Literal["", "avg", "token", "map", "avgmax", "max"] = "avg"
    timm_proj: Literal["", "linear", "mlp", "none"] | None = "linear"
    timm_proj_bias: bool = False
    timm_drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    timm_drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None


class TokenizerOptions(_Strict):
    """What open_clip's configurations tell a tokenizer; whoever may run code of others is not among it."""

    clean: Literal["canonicalize", "lower", "whitespace"] | None = None
    strip_sep_token: bool = False


class TextConfig(_Blocks):
    """The text tower: open_clip's transformer.

    A checkpoint holds its texts' features, and so never needs a tokenizer: one that it names is not loaded.
    """

    hf_tokenizer_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")] | None = None
    tokenizer_kwargs: TokenizerOptions | None = None
    tokenizer_mode: Literal["clips"] | None = None

    context_length: Annotated[int, Field(ge=2, le=4096)] = 77
    vocab_size: Annotated[int, Field(ge=2, le=1_000_000)] = 49408
    heads: Annotated[int, Field(ge=1, le=256)] = 8
    embed_cls: bool = False
    pad_id: Annotated[int, Field(ge=0)] = 0
    eos_id: Annotated[int, Field(ge=0)] = 2
    no_causal_mask: bool = False
    pool_type: Literal["argmax", "eos", "last", "first", "none"] = "argmax"
    proj_type: Literal["linear", "none"] = "linear"
    proj_bias: bool = False


class TowersConfig(_Strict):
    """An open_clip configuration of two towers."""

    embed_dim: Width
    vision_cfg: VisionConfig
    text_cfg: TextConfig
    quick_gelu: bool = False
    custom_text: bool = False
    init_logit_bias: Finite | None = None
    init_logit_scale: Finite | None = None

    def parameters(self) -> int:
        """Return about how many parameters the towers have, without their token table, which a file may hold in part.

        Of a model of timm's, none are counted.
        """
        vision, text = self.vision_cfg, self.text_cfg
        blocks = [text] if vision.timm_model_name else [vision, text]
        grown = sum(int(part.layers * part.width**2 * (4 + 2 * part.mlp_ratio)) for part in blocks)
        sides = vision.image_size if isinstance(vision.image_size, list) else [vision.image_size] * 2
        places = sides[0] * sides[-1] // vision.patch_size**2
        patches = (3 * vision.patch_size**2 + places) * vision.width
        return grown + patches + self.embed_dim * (vision.width + text.width)


class BackboneRecord(BaseModel):
    """Which towers a checkpoint was trained on; `config` and what follows it are missing in earlier versions."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: Name
    pretrained: Annotated[Text, Field(min_length=1)] | None
    origin: Literal["random", "in-house", "pretrained"]
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    image_size: Side
    patch_size: Side
    config: dict[str, Any] | None = None
    quick_gelu: bool | None = None
    file: Text | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class WindowsRecord(_Strict):
    """How an image becomes windows."""

    window_size: Side
    stride: Side
    cover: Literal["all", "reference"]
    normalisation: Text
    mean: Annotated[list[Annotated[float, Field(ge=-1, le=2)]], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[float, Field(gt=1e-3, le=10)]], Field(min_length=3, max_length=3)]
    shorter_side: Side | None = None


class CalibrationRecord(_Strict):
    """A `pipeline.calibration.Calibration` as plain values."""

    offset: Annotated[float, Field(ge=-1e6, le=1e6)]
    slope: Annotated[float, Field(ge=0, le=1e9)]
    low: Finite
    high: Finite
    half_widths: Annotated[
        list[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None],
        Field(min_length=len(PERCENTS), max_length=len(PERCENTS)),
    ]
    images: Annotated[int, Field(ge=1)]
    groups: Annotated[int, Field(ge=1)]


class MetricRecord(_Strict):
    """Which metric of another package a baseline is; the package is never asked to make it by a checkpoint."""

    name: Text
    package: Text
    lower_better: bool


class Record(BaseModel):
    """The whole record. What else it holds describes the run to people, and reaches nothing but their eyes.

    A method that reads no backbone, as the hand-crafted statistics, has neither `backbone` nor `windows`, and names the
    statistics that it reads, or the `metric` that it is; `texts` are of the methods that compare with texts.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    format: Text
    backbone: BackboneRecord | None
    windows: WindowsRecord | None
    prompt_depth: Annotated[int, Field(ge=0, le=128)]
    prompt_length: Annotated[int, Field(ge=0, le=1024)]
    residual_ratio: Annotated[float, Field(ge=0, le=1)] | None
    mos_low: Finite
    mos_high: Finite
    target: Text
    texts: Annotated[list[Text], Field(max_length=2)]
    dataset: Text
    method: Text
    leaks: list[Text] = Field(default_factory=list)
    raters: Raters = "people"  # of the data set's scores; earlier versions did not say
    statistics: Annotated[list[Text], Field(max_length=1000)] | None = None
    metric: MetricRecord | None = None
    calibration: CalibrationRecord | None = None
    unfamiliar_beyond: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    # How far off a generator's mean score typically was on test images, in MOS, and of how many generators
    generator_error: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    generators: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> "Record":
        if not self.mos_low < self.mos_high:
            raise ValueError(f"mos_low is {self.mos_low:g} and mos_high {self.mos_high:g}: a scale rises")
        if self.calibration is not None and (self.calibration.low, self.calibration.high) != (
            self.mos_low, self.mos_high
        ):  # fmt: skip
            raise ValueError("its calibration is on another MOS scale")
        if self.generator_error is not None and self.calibration is None:
            raise ValueError("generator_error is of calibrated scores, and it has no calibration")
        if len(self.texts) == 1:
            raise ValueError("it compares with one text: two are needed, the better first, or none")
        if (self.prompt_depth == 0) != (self.prompt_length == 0):
            raise ValueError(f"prompt_depth is {self.prompt_depth} and prompt_length {self.prompt_length}: one alone")
        reads = sum(part is not None for part in (self.backbone, self.statistics, self.metric))
        if (self.backbone is None) != (self.windows is None) or reads != 1:
            raise ValueError("it reads a backbone, with windows, or statistics, without, or is a metric: one of these")
        return self


def without_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return an open_clip configuration without the names of its tokenizer, which may be a folder of one machine."""
    text = {key: value for key, value in config["text_cfg"].items() if key not in TOKENIZER_KEYS}
    return {**config, "text_cfg": text}


def faults(kind: type[BaseModel], values: object) -> list[str]:
    """Return what is wrong with plain values, a line a fault that names its field; empty where nothing is.

    Args:
        kind: One of the models above.
        values: As JSON gave them.
    """
    try:
        kind.model_validate(values)
    except ValidationError as error:
        found = []
        for fault in error.errors(include_url=False):
            place = ".".join(str(part) for part in fault["loc"]) or "it"
            given = fault["input"]
            shown = f" (it is {json.dumps(given)[:60]})" if isinstance(given, str | int | float | bool) else ""
            found.append(f"{place}: {fault['msg'].removeprefix('Value error, ')}{shown}")
        return found
    return []


def too_large(config: Mapping[str, Any], weights_bytes: int | None, within: int = 0) -> str | None:
    """Return why towers of this configuration are not built, or None.

    Args:
        config: That `TowersConfig` takes.
        weights_bytes: Size of the file with their weights, which holds a byte a parameter at least; None: random.
        within: Parameters of an image tower of timm's.
    """
    towers = TowersConfig.model_validate(config)
    count, table = towers.parameters() + within, towers.text_cfg.vocab_size * towers.text_cfg.width
    of = "random weights" if weights_bytes is None else f"a weights file of {weights_bytes:,} bytes"
    allowed = max(MOST_RANDOM, min(MOST_PARAMETERS, weights_bytes or 0))  # a small file may hold a part of the table
    if table > allowed:
        return f"vocab_size x width of text_cfg is {table:,}, and {of} allow {allowed:,}"
    allowed = MOST_RANDOM if weights_bytes is None else min(MOST_PARAMETERS, weights_bytes)
    if count > allowed:
        return f"its towers would have {count:,} parameters, and {of} allow {allowed:,}"
    return None
