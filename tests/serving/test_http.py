"""The server before honest and hostile clients, and its page in a browser."""

import argparse
import asyncio
import base64
import csv
import io
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pipeline.data.decoding import ImageError, from_base64
from pipeline.scoring.scorer import Scorer, load_scorer
from pipeline.serving import http
from pipeline.serving.http import make_app, map_image

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {"max_bytes": 400_000, "max_pixels": 200_000, "max_files": 6, "max_windows": 100}


@pytest.fixture(scope="module")
def client(demo_scorer: Scorer) -> TestClient:
    return TestClient(make_app(demo_scorer, **LIMITS))


def png(width: int, height: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(data, "PNG")
    return data.getvalue()


def claimed_png(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose head speaks of a huge image."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def test_files_and_base64_score_as_the_scorer(client: TestClient, demo_scorer: Scorer, pictures: list[Path]) -> None:
    files = [("images", (path.name, path.read_bytes())) for path in pictures]
    sent = client.post("/score", files=files)
    assert sent.status_code == 200
    answer, expected = sent.json(), demo_scorer.score(pictures)
    assert (answer["mos_low"], answer["mos_high"]) == (1.0, 5.0)
    assert [row["name"] for row in answer["scores"]] == [path.name for path in pictures]
    np.testing.assert_allclose([row["raw"] for row in answer["scores"]], expected.raw, atol=1e-6)
    np.testing.assert_allclose([row["mos"] for row in answer["scores"]], expected.mos, atol=1e-5)
    assert [(row["width"], row["height"]) for row in answer["scores"]][-1] == (80, 230)  # as a viewer turns it
    assert all(row["map"] is None for row in answer["scores"])
    texts = [base64.b64encode(path.read_bytes()).decode() for path in pictures]
    texts[0] = "data:image/png;base64," + texts[0]
    again = client.post("/score", json={"images": texts}).json()
    assert [row["raw"] for row in again["scores"]] == [row["raw"] for row in answer["scores"]]


def test_a_form_of_several_megabytes_arrives_whole(demo_scorer: Scorer) -> None:
    data = png(70, 70) + bytes(2_500_000)  # what follows a picture's end is passed over
    answer = TestClient(make_app(demo_scorer)).post("/score", files=[("images", data), ("images", data)])
    raw = [row["raw"] for row in answer.json()["scores"]]
    np.testing.assert_allclose(raw, demo_scorer.score([data, data]).raw, atol=1e-6)


def test_a_map_comes_as_a_grey_picture_with_its_range(
    client: TestClient, demo_scorer: Scorer, pictures: list[Path]
) -> None:
    answer = client.post("/score?maps=1", files={"images": pictures[0].read_bytes()}).json()["scores"][0]["map"]
    expected = demo_scorer.to_mos(demo_scorer.score(pictures[:1], quality_maps=True).maps[0])
    grey, known = np.moveaxis(np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["png"])))), 2, 0)
    assert (known == 255).all()
    values = answer["low"] + grey / 255 * (answer["high"] - answer["low"])
    np.testing.assert_allclose(values, expected, atol=(answer["high"] - answer["low"]) / 500)


def test_large_maps_shrink_and_what_no_window_covers_is_clear() -> None:
    values = np.linspace(0.2, 0.8, 1100 * 30).reshape(1100, 30)
    values[:, 20:] = np.nan
    found = map_image(values)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["png"]))))
    assert image.shape == (367, 10, 2)
    assert (image[:, :7, 1] == 255).all()
    assert (image[:, 7:, 1] == 0).all()
    assert 0.2 <= found["low"] < found["high"] <= 0.8
    assert map_image(np.full((4, 4), 0.5))["high"] == 0.5


def test_health_says_what_is_loaded(client: TestClient) -> None:
    answer = client.get("/health").json()
    assert answer["status"] == "ok"
    assert answer["limits"] == LIMITS
    assert answer["model"] == {
        "dataset": "demo", "method": "dcmpln", "round": 0, "epoch": 1, "target": "quality", "leaks": [],
        "backbone": "demo-vit", "weights": "in-house", "rated_by": "simulated raters",
    }  # fmt: skip


HOSTILE = {
    "html": (b"<html><script>alert(1)</script></html>", "is a web page saved under an image's name"),
    "empty": (b"", "is empty (0 bytes)"),
    "zeros": (bytes(5000), "is no image in a format that is read here"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is a document, an archive or a film"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "is an SVG drawing"),
    "truncated": (png(300, 300)[:200], "is cut off"),
    "no pixels": (claimed_png(100, 100), "is damaged"),
    "bomb": (claimed_png(60_000, 60_000), "may be a decompression bomb"),
    "large": (claimed_png(500, 401), "has 500 x 401 pixels, and 200,000 are allowed"),
    "narrow": (png(16, 12000), "64 x 48,000 once its short side is enlarged"),
    "no sides": (claimed_png(0, 0), ""),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_get_a_reason(client: TestClient, case: str) -> None:
    data, reason = HOSTILE[case]
    name = f"../../{case}<b>.jpg"
    for answer in (
        client.post("/score?maps=true", files=[("images", ("good.png", png(70, 70))), ("images", (name, data))]),
        client.post("/score", json={"images": [base64.b64encode(data).decode()]}),
    ):
        assert answer.status_code == 422
        assert reason in answer.json()["detail"]
        assert len(answer.json()["detail"]) < 400
    assert "images[0]: " in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "JPEG2000"])
def test_no_damage_to_a_file_or_a_form_breaks_the_server(demo_scorer: Scorer, kind: str) -> None:
    client = TestClient(make_app(demo_scorer, **LIMITS), raise_server_exceptions=False)
    rng, file = np.random.default_rng(11), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(file, kind)
    form = b'--b\r\nContent-Disposition: form-data; name="i"; filename="a"\r\n\r\n' + file.getvalue() + b"\r\n--b--\r\n"
    found = set()
    for _ in range(40):
        damaged = bytearray(form)
        for place in rng.integers(0, rng.choice([60, 150, len(form)]), rng.integers(1, 8)):
            damaged[place] = rng.integers(0, 256)
        answer = client.post("/score", content=bytes(damaged), headers={"content-type": FORM})
        found.add(answer.status_code)
    assert found <= {200, 400, 422}
    assert len(found) > 1


JSON, FORM = "application/json", "multipart/form-data; boundary=b"


def typed(kind: str, body: bytes, target: str = "/score", **headers: str) -> dict[str, Any]:
    return {"method": "POST", "url": target, "content": body, "headers": {"content-type": kind, **headers}}


def images(*texts: str) -> bytes:
    return json.dumps({"images": texts}).encode()


def part(data: bytes, head: bytes = b'name="i"; filename="a.png"') -> bytes:
    return b"--b\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + data + b"\r\n"


END = b"--b--\r\n"
GOOD = part(png(70, 70)) + END
SHAPE = r'the JSON should be \{"images": \["<base64>", \.\.\.\]\}'
BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "no type": ({"method": "POST", "url": "/score", "content": b"x"}, 415,
                "Content-Type is '', and should be multipart/form-data or application/json"),
    "text": (typed("text/plain", b"x"), 415, "Content-Type is 'text/plain'"),
    "urlencoded": (typed("application/x-www-form-urlencoded", b"images=a"), 415, "Content-Type is"),
    "empty json": (typed(JSON, b""), 400, "the body is not JSON"),
    "half json": (typed(JSON, b'{"images": ['), 400, "the body is not JSON"),
    "deep json": (typed(JSON, b"[" * 100_000), 400, "the body is not JSON"),
    "deep object": (typed(JSON, b'{"images":' * 30_000), 400, "the body is not JSON"),
    "deep and whole": (typed(JSON, b'{"images": ' + b"[" * 5000 + b"]" * 5000 + b"}"), 400, "the body is not JSON"),
    "not utf-8": (typed(JSON, b'{"images": ["\xff"]}'), 400, "the body is not JSON"),
    "utf-16 half": (typed(JSON, b"\xff\xfe{"), 400, "the body is not JSON"),
    "long number": (typed(JSON, b'{"images": ' + b"9" * 50_000 + b"}"), 400, "the body is not JSON"),
    "huge number": (typed(JSON, b'{"images": [1e999999]}'), 422, SHAPE),
    "nan": (typed(JSON, b'{"images": NaN}'), 422, SHAPE),
    "list": (typed(JSON, b"[]"), 422, SHAPE),
    "null": (typed(JSON, b"null"), 422, SHAPE),
    "other key": (typed(JSON, b'{"image": ["aaaa"]}'), 422, SHAPE),
    "string": (typed(JSON, b'{"images": "aaaa"}'), 422, SHAPE),
    "numbers": (typed(JSON, b'{"images": [1]}'), 422, SHAPE),
    "nested": (typed(JSON, b'{"images": [["aaaa"]]}'), 422, SHAPE),
    "object": (typed(JSON, b'{"images": {"0": "aaaa"}}'), 422, SHAPE),
    "nothing": (typed(JSON, b'{"images": []}'), 422, "the request holds no image"),
    "many": (typed(JSON, images(*["aaaa"] * 7)), 422, "holds 7 images, and 6 are allowed"),
    "empty image": (typed(JSON, images("")), 422, r"images\[0\]: is empty \(0 bytes\)"),
    "not base64": (typed(JSON, images("%%%")), 422, r"images\[0\]: is not base64: '%' stands at character 0"),
    "one over": (typed(JSON, images("aaaaa")), 422, r"images\[0\]: is not base64: 5 characters and 0 of padding"),
    "mixed": (typed(JSON, images("aa/a", "a/-a")), 422, r"images\[0\]: is no image"),
    "half character": (typed(JSON, b'{"images": ["\\ud800"]}'), 422, r"is not base64: '\\ud800' stands at"),
    "url without base64": (typed(JSON, images("data:image/png,abc")), 422, "head should end in ;base64,"),
    "a path": (typed(JSON, images("/etc/passwd")), 422, r"images\[0\]: is no image"),
    "a path by name": (typed(JSON, images("../one.png")), 422, "is not base64: '.' stands at character 0"),
    "a url": (typed(JSON, images("http://127.0.0.1/a.png")), 422, "is not base64: ':' stands at character 4"),
    "large json": (typed(JSON, b'{"images": ["' + b"a" * 400_000 + b'"]}'), 413, "larger than 400,000 bytes"),
    "many windows": (typed(FORM, part(png(440, 440)) * 2 + END), 413,
                     "the request's images take 162 windows, and 100 are allowed in all"),
    "windows claimed": (typed(FORM, part(claimed_png(440, 440)) * 6 + END), 413, "486 windows, and 100 are allowed"),
    "no boundary": (typed("multipart/form-data", b"x"), 400, "boundary"),
    "no form": (typed(FORM, b"x" * 100), 400, "the form ends before its last boundary"),
    "empty form": (typed(FORM, END), 422, "the request holds no image"),
    "half form": (typed(FORM, part(b"abc")), 400, "the form ends before its last boundary"),
    "text field": (typed(FORM, part(b"abc", b'name="images"') + END), 422,
                   "the field 'images' is text, and should be an image file"),
    "no name": (typed(FORM, part(b"abc", b'filename="a.png"') + END), 400, "name"),
    "charset of halves": (typed(f"{FORM}; charset=utf-7", part(b"abc", b'name="i"; filename="+2AA-"') + END), 422,
                          r"\?: is no image"),
    "charset that fails": (typed(f"{FORM}; charset=undefined", part(b"abc", b'name="i"; filename="a"') + END), 400,
                            "the form cannot be read"),
    "charset unknown": (typed(f"{FORM}; charset=x", part(b"abc") + END), 422, r"a\.png: is no image"),
    "many files": (typed(FORM, part(b"abc") * 7 + END), 400, "Maximum number of files is 6"),
    "large form": (typed(FORM, part(bytes(400_000))), 413, "larger than 400,000 bytes"),
    "flag": (typed(FORM, GOOD, "/score?maps=perhaps"), 422, "unable to interpret input"),
    "flag of bytes": (typed(FORM, GOOD, "/score?maps=%ff%00"), 422, "unable to interpret input"),
    "get": ({"method": "GET", "url": "/score"}, 405, "Method Not Allowed"),
    "put": ({"method": "PUT", "url": "/score", "content": GOOD}, 405, "Method Not Allowed"),
    "docs": ({"method": "GET", "url": "/docs"}, 404, "Not Found"),  # FastAPI's would load scripts from another host
    "a file": ({"method": "GET", "url": "/%2e%2e/pyproject.toml"}, 404, "Not Found"),
    "foreign origin": (typed(FORM, GOOD, origin="http://evil.example"), 403, "a page of another site asks"),
    "no origin": (typed(FORM, GOOD, origin="null"), 403, r"a page of another site asks \(Origin 'null'\)"),
    "other port": (typed(FORM, GOOD, origin="http://testserver:81"), 403, "a page of another site asks"),
    "broken origin": (typed(FORM, GOOD, origin="http://[::"), 403, "a page of another site asks"),
    "file's origin": (typed(FORM, GOOD, origin="file://testserver"), 403, "a page of another site asks"),
    "foreign host": (typed(FORM, GOOD, host="evil.example"), 403, "the Host 'evil.example' is not known here"),
    "rebound": (typed(FORM, GOOD, host="evil.example", origin="http://evil.example"), 403, "is not known here"),
    "rebound page": ({"method": "GET", "url": "/", "headers": {"host": "evil.example:8000"}}, 403, "is not known here"),
    "looks alike": (typed(FORM, GOOD, host="localhost.evil.example"), 403, "is not known here"),
    "user at host": (typed(FORM, GOOD, host="evil@localhost"), 403, "is not known here"),
    "other address": (typed(FORM, GOOD, host="192.0.2.7"), 403, "is not known here"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_a_reason(client: TestClient, case: str) -> None:
    asked, status, reason = BAD[case]
    answer = client.request(**asked)
    assert answer.status_code == status, answer.text
    assert re.search(reason, answer.text if status == 422 and "flag" in case else answer.json()["detail"]), answer.text


@pytest.mark.parametrize("kind", [JSON, FORM])
def test_a_body_without_a_length_is_cut_off_where_the_limit_stands(demo_scorer: Scorer, kind: str) -> None:
    """Spoken to directly, since a test client reads the whole body before it hands any on."""
    app, given, sent = make_app(demo_scorer, **LIMITS), [], []

    async def receive() -> dict[str, Any]:
        given.append(50_000)
        return {"type": "http.request", "body": bytes(50_000), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/score", "raw_path": b"/score", "query_string": b"",
             "headers": [(b"content-type", kind.encode())], "http_version": "1.1", "scheme": "http"}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"]) == {"detail": "the request's body is larger than 400,000 bytes"}
    assert sum(given) == 450_000


def test_the_server_answers_while_it_scores_one_pass_at_a_time(demo_scorer: Scorer) -> None:
    started, release, at_work = threading.Event(), threading.Event(), []

    class Slow:
        prepare = staticmethod(demo_scorer.folded.prepare)
        deviation_weights = None

        def score_prepared(self, prepared: Any, **options: Any) -> Any:
            at_work.append(1)
            assert sum(at_work) == 1
            started.set()
            assert release.wait(20)
            at_work.pop()
            return demo_scorer.folded.score_prepared(prepared, **options)

    with TestClient(make_app(replace(demo_scorer, folded=Slow()))) as client:
        answers: list[int] = []
        post = lambda: answers.append(client.post("/score", files={"images": png(70, 70)}).status_code)  # noqa: E731
        threads = [threading.Thread(target=post) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert started.wait(20)
        assert client.get("/health").json()["status"] == "ok"
        release.set()
        for thread in threads:
            thread.join(20)
        assert answers == [200] * 3


DATA = bytes(range(256)) + b"\xfb\xef\xbe"
PLAIN, SAFE = base64.b64encode(DATA).decode(), base64.urlsafe_b64encode(DATA).decode()
WRITTEN = {
    "plain": PLAIN,
    "broken into lines": base64.encodebytes(DATA).decode(),
    "lines of Windows": base64.encodebytes(DATA).decode().replace("\n", "\r\n"),
    "URL-safe": SAFE,
    "unpadded": PLAIN.rstrip("="),
    "URL-safe and unpadded": SAFE.rstrip("="),
    "data URL": f"data:image/png;base64,{PLAIN}",
    "data URL with more": f"DATA:image/png;name=a.png;BASE64,\n{PLAIN}",
    "data URL with percent signs": f"data:;base64,{quote(PLAIN, safe='')}",
}


@pytest.mark.parametrize("case", WRITTEN)
def test_base64_as_programs_write_it(case: str) -> None:
    for cut in (0, 1, 2):
        data = DATA[cut:]
        text = WRITTEN[case] if not cut else base64.b64encode(data).decode().rstrip("=")
        assert from_base64(text) == data


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("é", r"'\\xe9' stands at character 0"),
        ("aa=a", "'=a' stands at character 2"),
        ("a+-a", "mixes"),
        ("aaaa====", "4 characters and 4 of padding"),
        ("data:image/png", "head should end in ;base64,"),
    ],
)
def test_what_is_no_base64_gets_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ImageError, match=rf"is not base64: .*{reason}"):
        from_base64(text)


def test_the_command_refuses_limits_that_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    http.add_arguments(parser)
    assert vars(parser.parse_args([])) == {
        "checkpoint": "auto", "backbone_file": None, "device": "auto", "host": "127.0.0.1", "port": 8000,
        "allow_host": [], "max_megabytes": 64, "max_megapixels": 64, "max_files": 32, "max_windows": 6000,
    }  # fmt: skip
    with pytest.raises(SystemExit):
        parser.parse_args(["--max-files", "0"])
    assert "'0' should be a whole number of 1 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser.parse_args(["--port", "65536"])
    assert "'65536' is no port: 0 to 65535" in capsys.readouterr().err
    for text in ("http://a.example", "a.example:80", "a b", ""):
        with pytest.raises(SystemExit):
            parser.parse_args(["--allow-host", text])
        assert "is no host's name" in capsys.readouterr().err
    given = parser.parse_args(["--allow-host", "a.example", "--allow-host", "[::2]", "--allow-host", "::3"])
    assert given.allow_host == ["a.example", "[::2]", "::3"]


def test_a_port_that_is_taken_is_an_error(demo_scorer: Scorer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="already in use"):
        http.serve(demo_scorer, port=taken.getsockname()[1])


# The server in a process of its own


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[int, int]]:
    """Run `agiqa serve` in a process of its own and give its id and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "serve", "--port", "0", *arguments], cwd=ROOT, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        for line in process.stderr:
            if found := re.match(r"Score images at http://127\.0\.0\.1:(\d+) and stop with Ctrl-C\.", line):
                yield process.pid, int(found[1])
                break
        else:
            pytest.fail("the server ended")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, 130)
        process.stderr.close()


@pytest.fixture(scope="module")
def server(demo_checkpoint: Path) -> Iterator[tuple[int, int]]:
    with serving("--checkpoint", str(demo_checkpoint), "--max-megapixels", "16", "--max-windows", "7000") as found:
        yield found


@pytest.fixture(scope="module")
def address(server: tuple[int, int]) -> str:
    return f"http://127.0.0.1:{server[1]}/"


def posted(port: int, body: bytes) -> socket.socket:
    """Return a connection with a form on its way, the answer not yet read."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = f"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="CPU time is read from /proc")
def test_a_small_request_passes_a_large_one_whose_work_ends_when_its_client_leaves(
    server: tuple[int, int],
) -> None:
    """The large one takes 6,889 windows: some ten seconds of a core."""
    process, port = server
    with posted(port, GOOD) as first:
        assert first.recv(15) == b"HTTP/1.1 200 OK"
    begun = cpu_seconds(process)
    with posted(port, part(png(4000, 4000)) + END) as large:
        wait_for(lambda: cpu_seconds(process) > begun + 1)
        with posted(port, GOOD) as small:
            assert small.recv(15) == b"HTTP/1.1 200 OK"
        assert not select.select([large], [], [], 0)[0]
    left, last = cpu_seconds(process), -1.0
    while last != (last := cpu_seconds(process)):
        time.sleep(0.5)
    assert last - left < 2


# The page


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Return headless Chromium of a phone's width, or skip."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("the page is tested where chromium and chromedriver are installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={tmp_path / 'profile'}",
        "force-prefers-reduced-motion", "window-size=1280,900",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(tmp_path), "download.prompt_for_download": False}
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def wait_for(what: Any, seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.05)
    return found


def text_of(found: Any) -> str:
    """Return an element's whole text, as it stands; `.text` leaves out what is folded away and joins spaces."""
    return found.get_property("textContent")


def names_of(cards: Any) -> list[str]:
    return [text_of(card.find_element("css selector", "h2")) for card in cards]


def give(browser: Any, event: str, files: list[tuple[str, bytes]]) -> None:
    """Drop files on the page, or paste them."""
    browser.execute_script(
        "const held = new DataTransfer();"
        "for (const [name, data] of arguments[1]) held.items.add(new File([new Uint8Array(data)], name));"
        "document.body.dispatchEvent(arguments[0] === 'drop'"
        " ? new DragEvent('drop', {dataTransfer: held, bubbles: true, cancelable: true})"
        " : new ClipboardEvent('paste', {clipboardData: held, bubbles: true, cancelable: true}))",
        event, [(name, list(data)) for name, data in files],
    )  # fmt: skip


def choose(browser: Any, *paths: Path) -> None:
    browser.find_element("css selector", "#files").send_keys("\n".join(map(str, paths)))


def is_told(browser: Any, text: str) -> None:
    wait_for(lambda: browser.find_element("css selector", "#status").text == text, 90)


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains  # here: an environment without it still runs the rest

    ActionChains(browser).send_keys(*keys).perform()


def saved_table(browser: Any, folder: Path) -> list[dict[str, str]]:
    browser.find_element("css selector", "#csv").click()
    text = wait_for(lambda: (folder / "scores.csv").is_file() and (folder / "scores.csv").read_bytes().decode())
    return list(csv.DictReader(io.StringIO(text, newline="")))


def on_a_phone(browser: Any, width: int = 390) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.execute_script("return innerWidth") == width


def test_the_page_of_a_method_without_maps_shows_scores_all_the_same(browser: Any, pictures: list[Path]) -> None:
    checkpoint = ROOT / "models" / "agiqa3k" / "handcrafted.safetensors"
    expected = load_scorer(checkpoint).score(pictures[:2])
    with serving("--checkpoint", str(checkpoint)) as (_, port):
        browser.get(f"http://127.0.0.1:{port}/")
        choose(browser, *pictures[:2])
        is_told(browser, "2 of 2 scored.")
        told = text_of(browser.find_element("css selector", "#model"))
        assert "Method handcrafted, which reads statistics of the image." in told
        shown = [element.text for element in browser.find_elements("css selector", ".score")]
        assert shown == [f"{mos:.2f}" for mos in sorted(expected.mos, reverse=True)]
        assert not browser.find_element("css selector", "#where").is_displayed()
        browser.find_element("css selector", "li .frame").click()
        assert len(browser.find_elements("css selector", "dialog[open] img")) == 1
        assert not any(legend.is_displayed() for legend in browser.find_elements("css selector", ".legend"))
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_page_scores_images_best_first_and_speaks_to_its_server_alone(
    address: str, browser: Any, demo_scorer: Scorer, pictures: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "brøken, <i id=i>file.png"
    broken.write_bytes(png(90, 90)[:60])
    browser.get(address)
    script = browser.execute_script
    wait_for(lambda: "backbone demo-vit with in-house weights" in script("return document.body.textContent"))
    said = script("return document.body.innerText")
    assert "what simulated raters would give on average, from 1 (worst) to 5 (best)." in said
    assert "holds the MOS of 90\u00a0% of new images" in said
    assert "people" not in script("return document.querySelector('main').textContent")
    choose(browser, broken, *pictures[:2])
    is_told(browser, "2 of 3 scored, 1 could not be.")

    expected = demo_scorer.score(pictures[:2])
    assert expected.unfamiliar.tolist() == [True, False]
    order = np.argsort(-expected.mos)
    cards = browser.find_elements("css selector", "#cards > li")
    assert names_of(cards) == [*(pictures[k].name for k in order), broken.name]
    for card, k in zip(cards, order, strict=False):
        mos, low, high = (float(values[k]) for values in (expected.mos, expected.low, expected.high))
        assert card.find_element("css selector", ".score").text == f"{mos:.2f}"
        bar = card.find_element("css selector", "[role=meter]")
        assert bar.get_attribute("aria-valuenow") == f"{mos:.2f}"
        assert bar.accessible_name == f"Score of {pictures[k].name}"
        band, mark = (part.rect for part in bar.find_elements("css selector", "div"))
        left, width = bar.rect["x"], bar.rect["width"]
        ends = [min(1, max(0, (value - 1) / 4)) for value in (low, high)]
        assert [band["x"], band["x"] + band["width"]] == pytest.approx([left + width * end for end in ends], abs=1.5)
        assert mark["x"] + mark["width"] / 2 == pytest.approx(left + width * (mos - 1) / 4, abs=1.5)
        assert f"of 5, likely {low:.2f} to {high:.2f}" in card.text
        assert ("Unfamiliar: unlike the images that the model learned from" in card.text) == expected.unfamiliar[k]
        assert "raw" not in card.text
        card.find_element("css selector", "summary").click()
        assert f"raw output is {expected.raw[k]:.4f}" in card.text
    assert "Not scored: is damaged" in cards[2].text or "Not scored: is cut off" in cards[2].text
    assert script("return document.getElementById('i')") is None  # a name is text and never markup

    rows = saved_table(browser, tmp_path)
    assert [row["image"] for row in rows] == names_of(cards)
    for column, values in (("mos", expected.mos), ("raw", expected.raw), ("low", expected.low)):
        np.testing.assert_allclose([float(row[column]) for row in rows[:2]], values[order], atol=1e-5)
    assert [row["unfamiliar"] for row in rows] == [*(str(expected.unfamiliar[k]).lower() for k in order), ""]
    assert [row["level"] for row in rows] == ["90", "90", ""]
    assert (rows[2]["mos"], bool(rows[2]["error"])) == ("", True)

    script("const o = document.getElementById('order'); o.value = 'added'; o.dispatchEvent(new Event('change'))")
    added = browser.find_elements("css selector", "#cards > li")
    assert names_of(added) == [broken.name, pictures[0].name, pictures[1].name]

    # By keyboard alone: from the file field, the tools are the next stops, and where one stands is seen.
    script("document.getElementById('files').focus()")
    stops = []
    for _ in range(4):
        press(browser, "\ue004")  # tab
        stops.append(browser.switch_to.active_element.get_attribute("id"))
        assert browser.switch_to.active_element.value_of_css_property("outline-style") == "solid"
    assert stops == ["order", "where", "clear", "csv"]

    for width in (390, 320):
        on_a_phone(browser, width)
        assert script("return document.documentElement.scrollWidth") <= width

    browser.find_element("css selector", "#clear").click()
    assert not browser.find_elements("css selector", "#cards > li")
    log = [entry["message"] for entry in browser.get_log("browser")]
    assert [entry for entry in log if "422" not in entry] == []  # that of the broken file is expected
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    own = [url for url in urls if url.startswith(address)]
    assert len(own) >= 5
    assert [url for url in urls if url.startswith(("http", "ws", "ftp")) and url not in own] == []


DRAWN = (
    "const c = arguments[0], pen = c.getContext('2d');"
    "return [c.width, c.height, ...pen.getImageData(0, 0, c.width, c.height).data]"
)


def test_maps_are_off_at_first_and_a_picture_enlarges_beside_its_map(
    address: str, browser: Any, demo_scorer: Scorer, pictures: list[Path]
) -> None:
    browser.get(address)
    choose(browser, *pictures[:2])
    is_told(browser, "2 of 2 scored.")
    canvas = "#cards canvas"
    assert not any(one.is_displayed() for one in browser.find_elements("css selector", canvas))
    browser.find_element("css selector", "#where").click()
    for card in browser.find_elements("css selector", "li"):
        drawn, picture = card.find_element("css selector", "canvas"), card.find_element("css selector", "img")
        assert drawn.is_displayed()
        assert [drawn.rect[key] for key in ("x", "y", "width", "height")] == pytest.approx(
            [picture.rect[key] for key in ("x", "y", "width", "height")], abs=1
        )
        assert max(browser.execute_script(DRAWN, drawn)[5::4]) > 60
    browser.find_element("css selector", "#where").click()
    assert not any(one.is_displayed() for one in browser.find_elements("css selector", canvas))

    # By keyboard: Enter enlarges, arrows go on and round, Esc closes and leads back.
    waves = browser.find_element("css selector", f"[aria-label='Enlarge {pictures[0].name}']")
    browser.execute_script("arguments[0].focus()", waves)
    press(browser, "\ue007")
    dialog = browser.find_element("css selector", "dialog[open]")
    assert dialog.accessible_name == pictures[0].name
    assert browser.switch_to.active_element.accessible_name == "Close"
    wait_for(lambda: all(one.rect["height"] > 99 for one in dialog.find_elements("css selector", "img")))
    plain, under, over = (one.rect for one in dialog.find_elements("css selector", "img, canvas"))
    assert plain["x"] + plain["width"] <= under["x"]
    assert plain["y"] == under["y"]
    assert [over[key] for key in over] == pytest.approx([under[key] for key in over], abs=1)
    assert plain["width"] / plain["height"] == pytest.approx(230 / 150, rel=0.01)

    values = demo_scorer.to_mos(demo_scorer.score(pictures[:1], quality_maps=True).maps[0])
    low, high = values.min(), values.max()
    wider = max(0, 0.4 - (high - low)) / 2  # a tenth of the scale at least, so that small differences look small
    legend = dialog.find_element("css selector", ".legend").text
    assert legend.split() == ["worse", f"{low - wider:.1f}", f"{high + wider:.1f}", "better"]
    width, height, *data = browser.execute_script(DRAWN, dialog.find_element("css selector", "canvas"))
    red, _, blue, alpha = np.moveaxis(np.array(data).reshape(height, width, 4), 2, 0)
    sides = 2 * (values - low + wider) / (high - low + 2 * wider) - 1
    assert alpha.shape == values.shape
    np.testing.assert_allclose(alpha, 0.7 * 255 * abs(sides), atol=2)
    clear = abs(sides) > 0.2
    assert ((blue > red) == (sides > 0))[clear].all()

    for key, name in (("\ue014", pictures[1].name), ("\ue014", pictures[0].name), ("\ue012", pictures[1].name)):
        press(browser, key)  # right, right, left
        assert dialog.accessible_name == name
    press(browser, "\ue00c")  # Esc
    assert not browser.find_elements("css selector", "dialog[open]")
    assert browser.switch_to.active_element == waves

    on_a_phone(browser)
    waves.click()
    wait_for(lambda: all(one.rect["height"] > 99 for one in dialog.find_elements("css selector", "img")))
    plain, under = (one.rect for one in dialog.find_elements("css selector", "img"))
    assert plain["x"] == under["x"]
    assert plain["y"] + plain["height"] < under["y"]
    assert dialog.rect["width"] <= 390
    assert browser.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", dialog)
    press(browser, "\ue00c")
    for media, colours, paper in (("screen", "dark", "rgb(20, 23, 27)"), ("print", "dark", "rgb(255, 255, 255)")):
        scheme = {"name": "prefers-color-scheme", "value": colours}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == paper
        assert browser.find_element("css selector", "#drop").is_displayed() == (media == "screen")
        assert all(one.is_displayed() for one in browser.find_elements("css selector", "li img, li .score"))


NAMES = [
    '<img src=x onerror="document.title=1">.png', "a & b &amp; \"c\" 'd', e;.png", "line\nbreak\r\nend.png",
    "שלום עולם.png", "\u202egpj.exe.png", "🎨 painting.png", "caf\ufffd.png", "%22%0A.png", "  two  spaces .png",
    "x" * 250 + ".png", "=1+1.png", "image: odd.png", "..\\..\\a.png", "NFD e\u0301.png",
]  # fmt: skip


def test_names_stay_whole_on_the_page_and_in_the_table_however_an_image_comes(
    address: str, browser: Any, tmp_path: Path
) -> None:
    browser.get(address)
    on_a_phone(browser)
    good, cut = png(70, 70), png(70, 70)[:50]
    give(browser, "drop", [(name, good if k % 2 else cut) for k, name in enumerate(NAMES[:7])])
    give(browser, "paste", [(name, good if k % 2 else cut) for k, name in enumerate(NAMES[7:], 7)])
    for _ in range(2):
        give(browser, "paste", [("image.png", good)])  # as browsers call every picture on the clipboard
    (tmp_path / "from a folder.png").write_bytes(good)
    choose(browser, tmp_path / "from a folder.png")
    names = [*NAMES, "pasted-1.png", "pasted-2.png", "from a folder.png"]
    is_told(browser, f"10 of {len(names)} scored, 7 could not be.")
    browser.execute_script(
        "const o = document.getElementById('order'); o.value = 'added'; o.dispatchEvent(new Event('change'))"
    )
    cards = browser.find_elements("css selector", "#cards > li")
    assert names_of(cards) == names
    errors = [text_of(error) for error in browser.find_elements("css selector", "li .error")]
    reasons = {error for error in errors if "Unfamiliar" not in error}
    assert len(reasons) == 1  # no name got into them
    assert "Not scored: is " in reasons.pop()
    for card, name in zip(cards, names, strict=True):
        heading = card.find_element("css selector", "h2")
        assert heading.get_attribute("aria-label") == name
        assert browser.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", heading)
        assert card.find_element("css selector", "button.small").get_attribute("aria-label") == f"Remove {name}"
    tall = [card.find_element("css selector", "h2").rect["height"] for card in cards]
    assert tall[2] == pytest.approx(3 * tall[7], abs=1)  # its lines are kept
    assert tall[9] > 5 * tall[7]
    assert browser.execute_script("return [document.title, document.querySelectorAll('h2 img').length]") == [
        "AGIQA: score images", 0,
    ]  # fmt: skip
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert [row["image"] for row in saved_table(browser, tmp_path)] == names

    give(browser, "paste", [])
    is_told(browser, "There is no image file in that.")


def test_it_shows_how_far_it_is_tries_again_and_leaves_the_focus_where_it_was(
    address: str, browser: Any, tmp_path: Path
) -> None:
    browser.get(address)
    wait_for(lambda: browser.find_element("css selector", "#about").is_displayed())
    script, progress = browser.execute_script, browser.find_element("css selector", "#progress")
    assert not progress.is_displayed()
    held = "window.fetch = (...sent) => new Promise((go) => { window.go = () => go(plain(...sent)); });"
    script("window.plain = fetch;" + held)
    give(browser, "drop", [(f"{name}.png", png(70, 70)) for name in "abc"])
    is_told(browser, "Scoring: 0 of 3 done.")
    assert progress.is_displayed()
    last = browser.find_element("css selector", "[aria-label='Remove c.png']")
    script("arguments[0].focus()", last)
    wait_for(lambda: script("return !!window.go"))
    script("go()")
    is_told(browser, "Scoring: 1 of 3 done.")
    assert (progress.get_property("value"), progress.get_property("max")) == (1, 3)
    script("window.fetch = () => Promise.reject(new TypeError('gone')); go()")
    is_told(browser, "2 of 3 scored, 1 could not be.")
    assert not progress.is_displayed()
    assert browser.switch_to.active_element == last  # though its card came down
    told = browser.find_elements("css selector", "li")[-1]
    assert "c.png" in told.text
    assert "Not scored: the server cannot be reached." in told.text
    script("window.fetch = plain")
    told.find_element("xpath", ".//button[text()='Try again']").click()
    is_told(browser, "3 of 3 scored.")

    script("delete window.go;" + held)
    give(browser, "drop", [("d.png", png(70, 70))])
    wait_for(lambda: script("return !!window.go"))
    (tmp_path / "gone.png").write_bytes(png(70, 70))
    choose(browser, tmp_path / "gone.png")
    (tmp_path / "gone.png").unlink()
    script("go()")
    is_told(browser, "4 of 5 scored, 1 could not be.")
    assert (
        "Not scored: the file cannot be read: it is a folder, or has changed since."
        in browser.find_elements("css selector", "li")[-1].text
    )

    script("document.querySelector('li button.small').focus()")
    press(browser, "\ue007")
    assert len(browser.find_elements("css selector", "li")) == 4
    assert browser.switch_to.active_element.get_attribute("title") == "Remove"  # of the next one


# The page without a browser


class Parts(HTMLParser):
    """What the page holds: every start tag with its attributes, and the text of its script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.script += data


@pytest.fixture(scope="module")
def parts() -> Parts:
    found = Parts()
    found.feed(http.PAGE.read_text("utf-8"))
    return found


def test_the_page_names_no_other_host() -> None:
    text = http.PAGE.read_text("utf-8")
    assert "http://" not in text
    assert "https://" not in text
    assert os.path.getsize(http.PAGE) < 24_000


def test_the_pages_script_finds_what_it_names_and_writes_no_html(parts: Parts) -> None:
    ids = [attributes["id"] for _, attributes in parts.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    asked = set(re.findall(r'\$\("([^"]+)"\)', parts.script))
    assert len(asked) > 10
    assert asked <= set(ids)
    assert not re.search(r"(inner|outer)HTML|insertAdjacentHTML|document\.write|eval\(|Function\(", parts.script)


def test_its_failures_begin_with_the_name_that_the_page_sends(client: TestClient, parts: Parts) -> None:
    """The page cuts that name off: a form would spell some signs of the real one differently."""
    sent = re.search(r'append\("images", [^"]+, "(\w+)"\)', parts.script)
    cut = re.search(r"replace\(/\^(.+?)/", parts.script)
    answer = client.post("/score", files={"images": (sent[1], b"")})
    assert answer.json()["detail"] == f"{cut[1]}is empty (0 bytes)"


@pytest.mark.parametrize("place", [0, 1], ids=["light", "dark"])
def test_its_colours_can_be_read(place: int) -> None:
    """The contrast of WCAG 2.2: 4.5 for text, 3 for what has no text."""
    found = re.findall(r":root \{(.*?)\}", http.PAGE.read_text("utf-8"), re.DOTALL)[place]
    colours = dict(re.findall(r"--([a-z-]+): (#\w+);", found))

    def light(name: str) -> float:
        sign = colours[name][1:]
        shares = [int(pair, 16) / 255 for pair in (re.findall("..", sign) if len(sign) == 6 else [c * 2 for c in sign])]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    def contrast(one: str, other: str) -> float:
        low, high = sorted((light(one), light(other)))
        return (high + 0.05) / (low + 0.05)

    for text in ("text", "soft", "bad", "accent"):
        assert min(contrast(text, "page"), contrast(text, "card")) >= 4.5, text
    assert contrast("on-accent", "accent") >= 4.5
    assert min(contrast("accent", "band"), contrast("accent", "track")) >= 3
