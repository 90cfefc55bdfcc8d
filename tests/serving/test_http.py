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


def test_the_page_of_a_method_without_maps_shows_scores_all_the_same(browser: Any, pictures: list[Path]) -> None:
    checkpoint = ROOT / "models" / "agiqa3k" / "handcrafted.safetensors"
    expected = load_scorer(checkpoint).score(pictures[:2])
    with serving("--checkpoint", str(checkpoint)) as (_, port):
        browser.get(f"http://127.0.0.1:{port}/")
        browser.find_element("css selector", "#files").send_keys("\n".join(map(str, pictures[:2])))
        wait_for(lambda: browser.find_element("css selector", "#status").text == "2 of 2 scored.")
        told = browser.find_element("css selector", "#model").text
        assert "Model handcrafted, which reads statistics of the image." in told
        shown = [element.text for element in browser.find_elements("css selector", ".score")]
        assert shown == [f"{mos:.2f}" for mos in expected.mos]
        assert not browser.find_element("css selector", "#legend").is_displayed()
        assert not browser.find_element("css selector", "#strength").is_displayed()
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_page_scores_dropped_images(
    address: str, browser: Any, demo_scorer: Scorer, pictures: list[Path], tmp_path: Path
) -> None:
    from selenium.webdriver import ActionChains, Keys  # here: an environment without it still runs the rest

    broken = tmp_path / "brøken, <i id=i>file.png"
    broken.write_bytes(png(90, 90)[:60])
    browser.get(address)
    script = browser.execute_script
    wait_for(lambda: "backbone demo-vit with in-house weights" in script("return document.body.innerText"))
    said = script("return document.body.innerText")
    assert "the scale on which simulated raters rated data set demo." in said
    assert "people" not in said
    browser.find_element("css selector", "#files").send_keys("\n".join(map(str, [pictures[0], pictures[1], broken])))
    status = browser.find_element("css selector", "#status")
    wait_for(lambda: status.text == "2 of 3 scored, 1 could not be.")

    expected = demo_scorer.score(pictures[:2])
    assert expected.unfamiliar.tolist() == [True, False]
    cards = browser.find_elements("css selector", "#cards > li")
    told = zip(expected.mos, expected.low, expected.high, expected.unfamiliar, strict=True)
    for card, path, (mos, low, high, strange) in zip(cards, pictures, told, strict=False):
        assert card.find_element("css selector", "h2").text == path.name
        assert card.find_element("css selector", ".score").text == f"{mos:.2f}"
        bar = card.find_element("css selector", "[role=meter]")
        assert bar.get_attribute("aria-valuenow") == f"{mos:.2f}"
        assert bar.accessible_name == f"Score of {path.name}"
        filled = bar.find_element("css selector", "div").size["width"]
        assert filled == pytest.approx((mos - 1) / 4 * bar.size["width"], abs=1.5)
        assert f"likely {low:.2f} to {high:.2f}" in card.text
        assert ("Unfamiliar: unlike the images that the model learned from" in card.text) == strange
        canvas, picture = card.find_element("css selector", "canvas"), card.find_element("css selector", "img")
        for key in ("x", "y", "width", "height"):
            assert canvas.rect[key] == pytest.approx(picture.rect[key], abs=1)
        drawn = "const c = arguments[0], d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        assert script(f"{drawn} return d.some((value, k) => k % 4 === 3 && value > 60)", canvas)
    assert broken.name in cards[2].text
    assert "Not scored: " in cards[2].text
    assert script("return document.getElementById('i')") is None  # a name is text and never markup

    script("const o = document.getElementById('order'); o.value = 'best'; o.dispatchEvent(new Event('change'))")
    best = [card.find_element("css selector", "h2").text for card in browser.find_elements("css selector", "li")]
    assert best == [pictures[k].name for k in np.argsort(-expected.mos)] + [broken.name]

    browser.find_element("css selector", "#csv").click()
    saved = wait_for(lambda: (tmp_path / "scores.csv").is_file() and (tmp_path / "scores.csv").read_text("utf-8"))
    rows = list(csv.DictReader(io.StringIO(saved)))
    assert [row["image"] for row in rows] == [pictures[0].name, pictures[1].name, broken.name]
    np.testing.assert_allclose([float(row["mos"]) for row in rows[:2]], expected.mos, atol=1e-5)
    np.testing.assert_allclose([float(row["raw"]) for row in rows[:2]], expected.raw, atol=1e-6)
    np.testing.assert_allclose([float(row["low"]) for row in rows[:2]], expected.low, atol=1e-5)
    assert [(row["level"], row["unfamiliar"]) for row in rows] == [("90", "true"), ("90", "false"), ("", "")]
    assert rows[2]["mos"] == ""
    assert rows[2]["error"]

    # By keyboard alone: from the file field, the tools are the next stops.
    script("document.getElementById('files').focus()")
    stops = []
    for _ in range(4):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        stops.append(browser.switch_to.active_element.get_attribute("id"))
    assert stops == ["order", "strength", "clear", "csv"]

    for width in (390, 320):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": True},
        )
        assert script("return innerWidth") == width
        assert script("return document.documentElement.scrollWidth") <= width

    browser.find_element("css selector", "#clear").click()
    assert not browser.find_elements("css selector", "#cards > li")
    script(
        "const held = new DataTransfer(); held.items.add(new File([new Uint8Array(arguments[0])], 'dropped.png'));"
        "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: held, bubbles: true, cancelable: true}))",
        list(png(70, 70)),
    )
    wait_for(lambda: status.text == "1 of 1 scored.")
    assert browser.find_element("css selector", "#cards h2").text == "dropped.png"
    refused = [entry for entry in browser.get_log("browser") if "422" in entry["message"]]  # of the broken file
    assert [entry for entry in browser.get_log("browser") if entry not in refused] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    own = [url for url in urls if url.startswith(address)]
    assert len(own) >= 5
    assert [url for url in urls if url.startswith(("http", "ws", "ftp")) and url not in own] == []


def test_the_page_names_no_other_host() -> None:
    text = http.PAGE.read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert os.path.getsize(http.PAGE) < 20_000
