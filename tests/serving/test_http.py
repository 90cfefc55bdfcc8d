"""The server before honest and hostile clients, and its page in a browser."""

import argparse
import asyncio
import base64
import csv
import io
import json
import os
import re
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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pipeline.data.decoding import ImageError, from_base64
from pipeline.scoring.scorer import Scorer
from pipeline.serving import http
from pipeline.serving.http import make_app, map_image

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {"max_bytes": 400_000, "max_pixels": 200_000, "max_files": 6}


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
    expected = demo_scorer.score(pictures[:1], quality_maps=True).maps[0]
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
        "backbone": "demo-vit", "weights": "in-house",
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
    "narrow": (png(2, 4000), "64 x 128,000 once its short side is enlarged"),
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
BODIES: dict[str, tuple[str, bytes, int, str]] = {
    "no type": ("", b"x", 415, "Content-Type is '', and should be multipart/form-data or application/json"),
    "text": ("text/plain", b"x", 415, "Content-Type is 'text/plain'"),
    "urlencoded": ("application/x-www-form-urlencoded", b"images=a", 415, "Content-Type is"),
    "half json": (JSON, b'{"images": [', 400, "the body is not JSON"),
    "deep json": (JSON, b"[" * 100_000, 400, "the body is not JSON"),
    "deep object": (JSON, b'{"images":' * 30_000, 400, "the body is not JSON"),
    "not utf-8": (JSON, b'{"images": ["\xff"]}', 400, "the body is not JSON"),
    "long number": (JSON, b'{"images": ' + b"9" * 50_000 + b"}", 400, "the body is not JSON"),
    "list": (JSON, b"[]", 422, 'the JSON should be {"images": ["<base64>", ...]}'),
    "null": (JSON, b"null", 422, "the JSON should be"),
    "other key": (JSON, b'{"image": ["aaaa"]}', 422, "the JSON should be"),
    "string": (JSON, b'{"images": "aaaa"}', 422, "the JSON should be"),
    "numbers": (JSON, b'{"images": [1]}', 422, "the JSON should be"),
    "nothing": (JSON, b'{"images": []}', 422, "the request holds no image"),
    "many": (JSON, json.dumps({"images": ["aaaa"] * 7}).encode(), 422, "holds 7 images, and 6 are allowed"),
    "not base64": (JSON, b'{"images": ["%%%"]}', 422, "images[0]: is not base64"),
    "a path": (JSON, b'{"images": ["/etc/passwd"]}', 422, "images[0]: is no image"),
    "large json": (JSON, b'{"images": ["' + b"a" * 400_000 + b'"]}', 413, "larger than 400,000 bytes"),
    "no boundary": ("multipart/form-data", b"x", 400, "boundary"),
    "no form": (FORM, b"x" * 100, 400, ""),
    "empty form": (FORM, b"--b--\r\n", 422, "the request holds no image"),
    "half form": (FORM, b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\nabc', 400,
                  "the form ends before its last boundary"),
    "text field": (FORM, b'--b\r\nContent-Disposition: form-data; name="images"\r\n\r\nabc\r\n--b--\r\n', 422,
                   "the field 'images' is text, and should be an image file"),
    "no name": (FORM, b'--b\r\nContent-Disposition: form-data; filename="a.png"\r\n\r\nabc\r\n--b--\r\n', 400, ""),
    "many files": (FORM, b'--b\r\nContent-Disposition: form-data; name="i"; filename="a.png"\r\n\r\nabc\r\n' * 7
                   + b"--b--\r\n", 400, "Maximum number of files is 6"),
    "large form": (FORM, b'--b\r\nContent-Disposition: form-data; name="i"; filename="a.png"\r\n\r\n' + bytes(400_000),
                   413, "larger than 400,000 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
def test_hostile_requests_get_a_reason(client: TestClient, case: str) -> None:
    kind, body, status, reason = BODIES[case]
    answer = client.post("/score", content=body, headers={"content-type": kind} if kind else {})
    assert (answer.status_code, reason in answer.json()["detail"]) == (status, True), answer.json()


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


def test_other_methods_and_places_get_a_4xx(client: TestClient) -> None:
    assert client.get("/score").status_code == 405
    assert client.get("/docs").status_code == 404  # FastAPI's would load scripts from another host
    assert client.get("/../pyproject.toml").status_code == 404
    assert client.post("/score?maps=perhaps", files={"images": png(70, 70)}).status_code == 422


def test_the_server_answers_while_it_scores_one_image_at_a_time(demo_scorer: Scorer) -> None:
    started, release, at_work = threading.Event(), threading.Event(), []

    class Slow:
        record, rule, mos_low, mos_high = demo_scorer.record, demo_scorer.rule, 1.0, 5.0
        open = staticmethod(demo_scorer.open)

        def score(self, images: list[np.ndarray], **options: Any) -> Any:
            at_work.append(1)
            assert sum(at_work) == 1
            started.set()
            assert release.wait(20)
            at_work.pop()
            return demo_scorer.score(images, **options)

    with TestClient(make_app(Slow())) as client:
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


def test_base64_by_itself() -> None:
    text = base64.b64encode(b"any bytes").decode()
    assert from_base64(text) == from_base64(f"data:image/png;base64,{text}") == b"any bytes"
    with pytest.raises(ImageError, match="is not base64"):
        from_base64("é")


def test_the_command_refuses_limits_that_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    http.add_arguments(parser)
    assert vars(parser.parse_args([])) == {
        "checkpoint": "auto", "backbone_file": None, "device": "auto", "host": "127.0.0.1", "port": 8000,
        "max_megabytes": 64, "max_megapixels": 64, "max_files": 32,
    }  # fmt: skip
    with pytest.raises(SystemExit):
        parser.parse_args(["--max-files", "0"])
    assert "'0' should be a whole number of 1 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser.parse_args(["--port", "65536"])
    assert "'65536' is no port: 0 to 65535" in capsys.readouterr().err


def test_a_port_that_is_taken_is_an_error(demo_scorer: Scorer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="already in use"):
        http.serve(demo_scorer, port=taken.getsockname()[1])


# The page


@pytest.fixture(scope="module")
def address(demo_checkpoint: Path) -> Iterator[str]:
    """Run `agiqa serve` in a process of its own and return where it listens."""
    arguments = ["--checkpoint", str(demo_checkpoint), "--port", "0", "--max-megapixels", "1"]
    server = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "serve", *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in server.stderr:
            if found := re.match(r"Score images at (http://127\.0\.0\.1:\d+) and stop with Ctrl-C\.", line):
                yield f"{found[1]}/"
                break
        else:
            pytest.fail("the server ended")
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(20) in (0, 130)
        server.stderr.close()


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


def test_the_page_scores_dropped_images(
    address: str, browser: Any, demo_scorer: Scorer, pictures: list[Path], tmp_path: Path
) -> None:
    from selenium.webdriver import ActionChains, Keys  # here: an environment without it still runs the rest

    broken = tmp_path / "brøken, <i id=i>file.png"
    broken.write_bytes(png(90, 90)[:60])
    browser.get(address)
    script = browser.execute_script
    wait_for(lambda: "backbone demo-vit with in-house weights" in script("return document.body.innerText"))
    browser.find_element("css selector", "#files").send_keys("\n".join(map(str, [pictures[0], pictures[1], broken])))
    status = browser.find_element("css selector", "#status")
    wait_for(lambda: status.text == "2 of 3 scored, 1 could not be.")

    expected = demo_scorer.score(pictures[:2])
    cards = browser.find_elements("css selector", "#cards > li")
    for card, path, mos, raw in zip(cards, pictures[:2], expected.mos, expected.raw, strict=False):
        assert card.find_element("css selector", "h2").text == path.name
        assert card.find_element("css selector", ".score").text == f"{mos:.2f}"
        bar = card.find_element("css selector", "[role=meter]")
        assert bar.get_attribute("aria-valuenow") == f"{mos:.2f}"
        assert bar.accessible_name == f"Score of {path.name}"
        filled = bar.find_element("css selector", "div").size["width"]
        assert filled == pytest.approx(raw * bar.size["width"], abs=1.5)
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
