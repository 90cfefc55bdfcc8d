"""The scorer over HTTP, and a web page on the same server.

    GET  /              the page: choose, drop or paste images, see scores with their bands best first, enlarge one
                        beside its quality map, download the table
    GET  /health        what is loaded, its MOS scale, and the limits
    POST /score         multipart/form-data with image files, or JSON {"images": ["<base64>", ...]}
    POST /score?maps=1  also each image's quality map

An answer to /score is {"mos_low", "mos_high", "level", "scores": [{"name", "raw", "mos", "low", "high", "unfamiliar",
"width", "height", "map"}, ...]}: low..high is the band around the score that holds the MOS of `level` % of new images,
null where the model is not calibrated. A map is {"png", "low", "high"}: a grey PNG in base64 whose values 0..255 span
low..high on the MOS scale, transparent where no window lies, and null of a method that draws none. A request is scored
whole or not at all: what cannot be scored gets a 4xx and {"detail": reason}.

Requests take turns, a forward pass each (`turns`), so that a small one waits for no large one, and scoring stops when
its client leaves. Pages of other sites are refused, and clients that are silent make room (`guard`).

Why no Gradio: version 6.31 adds thirteen packages and 80 MB, takes over ten times as long to import (8 s against 0.6 s
on two busy cores), and wants an older Pillow than ours. FastAPI and Uvicorn are here anyway, as MLflow needs them, and
the page is one file of plain HTML that works without any network.
"""

import argparse
import asyncio
import base64
import io
import json
import re
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.layout import rated_by

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response
    from uvicorn import Config

    from pipeline.scoring.scorer import Scorer
    from pipeline.serving.guard import Patient

PAGE = Path(__file__).with_name("http.html")
MAX_BYTES, MAX_PIXELS, MAX_FILES = 64 * 2**20, 64_000_000, 32
MAX_WINDOWS = 6000  # a photo of 24 megapixels in windows of 224 every 64 pixels takes 5,520
MAP_SIDE = 512  # pixels of a quality map's longest side; its detail is a window's stride, far coarser
# At once: one that waits for its client gives way to a new one, and only where all are at work is the new one told 503.
# Bodies that wait for the scorer so take no more than 2 GiB.
CONNECTIONS = 32

# The page may talk to this server alone, whatever a file's name tries.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def map_image(values: np.ndarray) -> dict[str, Any]:
    """Return a quality map (H, W) for a page: `png` (base64), and the values `low`, `high` that its grey spans."""
    from PIL import Image

    step = max(1, -(-max(values.shape) // MAP_SIDE))  # a map is constant over wide areas: every n-th value will do
    small = values[::step, ::step]
    known = np.isfinite(small)
    low, high = float(small[known].min()), float(small[known].max())
    grey = np.where(known, (small - low) * (255 / max(high - low, 1e-9)), 0).round()
    png = io.BytesIO()
    Image.fromarray(np.stack([grey, known * 255], axis=2).astype(np.uint8)).save(png, "PNG")
    return {"png": base64.b64encode(png.getvalue()).decode(), "low": low, "high": high}


def make_app(
    scorer: "Scorer",
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    max_files: int = MAX_FILES,
    max_windows: int = MAX_WINDOWS,
    hosts: Sequence[str] = (),
) -> "FastAPI":
    """Return the server's application.

    Scoring runs in a thread of its own with all of the machine's cores behind it, so the server goes on answering
    meanwhile.

    Args:
        scorer: From `load_scorer`.
        max_bytes: Of one request's body, counted while it is read.
        max_pixels: Of one image, counted before it is decoded.
        max_files: In one request.
        max_windows: Of one request's images in all, counted before any is decoded.
        hosts: Names that the server is known by, beside those that `Guard` lets pass.
    """
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.responses import HTMLResponse

    from pipeline.data.decoding import ImageError
    from pipeline.serving.guard import Guard
    from pipeline.serving.turns import GoneError, TooManyWindowsError, Turns

    page, turns = PAGE.read_text(encoding="utf-8"), Turns(scorer, max_pixels=max_pixels, max_windows=max_windows)
    about = {key: scorer.record.get(key) for key in ("dataset", "method", "round", "epoch", "target", "leaks")}
    backbone = scorer.record["backbone"] or {"name": None, "origin": None}
    about |= {"backbone": backbone["name"], "weights": backbone["origin"]}
    about |= {"rated_by": rated_by(scorer.record)}  # in words, for the page
    level = None if scorer.calibration is None else scorer.level
    scale = {"mos_low": scorer.mos_low, "mos_high": scorer.mos_high, "level": level}
    limits = {"max_bytes": max_bytes, "max_pixels": max_pixels, "max_files": max_files, "max_windows": max_windows}
    # No /docs: FastAPI's loads scripts from another host.
    app = FastAPI(title="AGIQA scores", docs_url=None, redoc_url=None)
    app.add_middleware(Guard, names=hosts)

    @app.get("/", response_class=HTMLResponse)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": about, **scale, "limits": limits}

    @app.post("/score", openapi_extra=_BODY, response_model=None)
    async def score(request: Request, maps: bool = False) -> "dict[str, Any] | Response":
        uploads = await _uploads(request, max_bytes, max_files)
        try:
            rows = await turns.score(request, uploads, partial(_row, maps=maps))
        except GoneError:
            return Response(status_code=499)  # nginx's number for it; nobody reads it
        except TooManyWindowsError as error:
            raise HTTPException(413, str(error)) from None
        except ImageError as error:
            raise HTTPException(422, str(error)) from None
        return {**scale, "scores": rows}

    return app


def _row(scorer: "Scorer", name: str, pixels: np.ndarray, *, maps: bool) -> dict[str, Any]:
    drawn = maps and scorer.draws_maps
    scores = scorer.score([pixels], quality_maps=drawn)

    def first(values: np.ndarray | None) -> Any:
        return None if values is None else values[0].item()

    return {
        "name": name, "raw": first(scores.raw), "mos": first(scores.mos), "low": first(scores.low),
        "high": first(scores.high), "unfamiliar": first(scores.unfamiliar),
        "width": pixels.shape[1], "height": pixels.shape[0],
        "map": map_image(scorer.to_mos(scores.maps[0])) if drawn else None,
    }  # fmt: skip


async def _uploads(request: "Request", max_bytes: int, max_files: int) -> list[tuple[str, bytes | str]]:
    """Return the name of every image of a request, with its bytes or its base64 text."""
    from anyio import to_thread
    from fastapi import HTTPException, Request

    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/json"):
        raise HTTPException(415, f"Content-Type is {kind!r}, and should be multipart/form-data or application/json")
    body = await _body(request, max_bytes)
    if kind == "application/json":
        found = [
            (f"images[{number}]", text)
            for number, text in enumerate(await to_thread.run_sync(_json_images, body, max_files))
        ]
    else:
        if not body.rstrip().endswith(b"--"):  # the parser would pass over a last part that is cut off
            raise HTTPException(400, "the form ends before its last boundary")

        steps = (body[start : start + 2**20] for start in range(0, len(body), 2**20))

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0)  # others are answered while a large form is taken apart
            step = next(steps, b"")
            return {"type": "http.request", "body": step, "more_body": bool(step)}

        try:
            async with Request(request.scope, receive).form(max_files=max_files, max_fields=max_files) as form:
                for field, value in form.multi_items():
                    if isinstance(value, str):
                        raise HTTPException(422, f"the field {field!a} is text, and should be an image file")
                found = [(_text(upload.filename or field), await upload.read()) for field, upload in form.multi_items()]
        except ValueError as error:  # of a charset that cannot be
            raise HTTPException(400, f"the form cannot be read: {str(error)!a}") from None
    if not found:
        raise HTTPException(422, "the request holds no image")
    return found


def _text(name: str) -> str:
    """Return a name as text that an answer can hold: some charsets give half characters."""
    return name.encode("utf-8", "replace").decode()


async def _body(request: "Request", max_bytes: int) -> bytes:
    """Return a request's body; reading stops as soon as it is larger than `max_bytes`."""
    from fastapi import HTTPException
    from starlette.requests import ClientDisconnect

    too_large = HTTPException(413, f"the request's body is larger than {max_bytes:,} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large
    parts, taken = [], 0
    try:
        async for part in request.stream():
            parts.append(part)
            taken += len(part)
            if taken > max_bytes:
                raise too_large
    except ClientDisconnect:
        raise HTTPException(400, "the request ended before its body did") from None
    return b"".join(parts)


def _json_images(body: bytes, max_files: int) -> list[str]:
    from fastapi import HTTPException

    try:
        images = json.loads(body)["images"]
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise TypeError
    except (KeyError, TypeError):
        raise HTTPException(422, 'the JSON should be {"images": ["<base64>", ...]}') from None
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from None
    if len(images) > max_files:
        raise HTTPException(422, f"the request holds {len(images)} images, and {max_files} are allowed")
    return images


_IMAGE_LIST = {"type": "array", "items": {"type": "string", "format": "binary"}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "properties": {"images": _IMAGE_LIST}}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "byte"}}},
                }
            },
        },
    }
}


def server_config(
    app: "FastAPI", *, connections: int = CONNECTIONS, protocol: "type[Patient] | None" = None
) -> "Config":
    """Return how uvicorn serves an application; `protocol` None takes `Patient`."""
    import uvicorn

    from pipeline.serving.guard import Patient

    return uvicorn.Config(
        app,
        http=protocol or Patient,
        ws="none",
        limit_concurrency=connections,
        server_header=False,
        log_level="warning",
    )


def serve(
    scorer: "Scorer",
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    max_files: int = MAX_FILES,
    max_windows: int = MAX_WINDOWS,
    hosts: Sequence[str] = (),
) -> None:
    """Serve until Ctrl-C.

    Args:
        scorer: From `load_scorer`.
        host: Address to listen at; anything but this machine's own opens the server to others, without any password.
        port: TCP port; 0 takes a free one.
        max_bytes: See `make_app`.
        max_pixels: Likewise.
        max_files: Likewise.
        max_windows: Likewise.
        hosts: Likewise; `host` is one of them.

    Raises:
        OSError: If the address cannot be had, such as a port that is taken.
    """
    import uvicorn

    app = make_app(
        scorer, max_bytes=max_bytes, max_pixels=max_pixels, max_files=max_files, max_windows=max_windows,
        hosts=[host, *hosts],
    )  # fmt: skip
    config = server_config(app)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        shown = f"[{host}]" if ":" in host else host
        sys.stderr.write(f"Score images at http://{shown}:{listener.getsockname()[1]} and stop with Ctrl-C.\n")
        uvicorn.Server(config).run(sockets=[listener])


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `agiqa serve` takes."""
    add: Callable[..., Any] = parser.add_argument
    add(
        "--checkpoint",
        default="auto",
        metavar="WHICH",
        help="a file, hf:OWNER/NAME, an MLflow URI, auto (default), auto:DATASET[:METHOD]",
    )
    add("--backbone-file", type=Path, metavar="FILE", help="the towers' weights, if they lie elsewhere")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"], help="auto: a GPU if there is one")
    add(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 opens it to your network, without a password (default: %(default)s)",
    )
    add(
        "--allow-host",
        metavar="NAME",
        type=_host,
        action="append",
        default=[],
        help="a name that clients call the server by; localhost, --host and the address that they reach pass anyway",
    )
    add("--port", metavar="N", type=_port, default=8000, help="0 takes a free one (default: %(default)s)")
    add(
        "--max-megabytes",
        metavar="N",
        type=_positive,
        default=MAX_BYTES // 2**20,
        help="of a request (default: %(default)s)",
    )
    add(
        "--max-megapixels",
        metavar="N",
        type=_positive,
        default=MAX_PIXELS // 10**6,
        help="of one image (default: %(default)s)",
    )
    add("--max-files", metavar="N", type=_positive, default=MAX_FILES, help="in a request (default: %(default)s)")
    add(
        "--max-windows",
        metavar="N",
        type=_positive,
        default=MAX_WINDOWS,
        help="of the images of a request in all (default: %(default)s)",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to 65535")
    return int(text)


def _host(text: str) -> str:
    if not re.fullmatch(r"\[?[\w.:-]+\]?", text, re.ASCII) or re.fullmatch(r"[^:\[]*:[^:]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no host's name: give it without scheme, port and path")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number of 1 or more")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Do `agiqa serve` and return its exit status; errors are raised."""
    import uvicorn  # noqa: F401 (comes with an extra, and is missed before a model is loaded)

    from pipeline.scoring.scorer import load_scorer

    serve(
        load_scorer(arguments.checkpoint, device=arguments.device, backbone_file=arguments.backbone_file),
        host=arguments.host,
        port=arguments.port,
        max_bytes=arguments.max_megabytes * 2**20,
        max_pixels=arguments.max_megapixels * 10**6,
        max_files=arguments.max_files,
        max_windows=arguments.max_windows,
        hosts=arguments.allow_host,
    )
    return 0
