"""What an editor may know of params.yaml: its keys, types, limits and meanings, as a JSON schema.

The schema is made of `pipeline.params`, whose descriptions are the comments of params.yaml. It stands in
params.schema.json, and after a change of params it is written anew:

    python -m pipeline.params_schema > params.schema.json

What only the study checks, such as that a variant named in `study` exists, no schema says.
"""

import json
import sys
from typing import Any

from pipeline.params import Params


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of params.yaml."""
    whole = Params.model_json_schema()
    sections = whole["$defs"]
    # Of a variant's own values of `train` pydantic knows nothing: any of its keys may stand there, and none must.
    overrides = sections["Variant"]["properties"]["train"]
    overrides |= {"properties": sections["Train"]["properties"], "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **whole,
        "title": "params.yaml of the AGIQA study",
    }


def text() -> str:
    """Return the schema as params.schema.json holds it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
