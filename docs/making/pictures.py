"""Take the screenshots of docs/images with chromium, of a report and of MLflow.

    python docs/making/pictures.py report reports/study       report.png and -phone, -dark, -print
    python docs/making/pictures.py mlflow http://127.0.0.1:5000 demo       mlflow-*.png, of `make mlflow` and this study

A picture has a palette, so that all of them together weigh little. Look at each one before it is committed.
"""

import argparse
import io
import json
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

IMAGES = Path(__file__).resolve().parents[1] / "images"
DESKTOP, PHONE, PAPER = (1280, 760), (390, 800), (794, 1123)  # paper: A4 at 96 dots an inch
HEAVIEST = 150_000  # bytes of a picture
PATIENCE, SETTLE = 180, 5  # seconds: until MLflow's page says what it is about, and until its charts are drawn


@contextmanager
def browser() -> Iterator[Any]:
    """Give a headless browser that fetches nothing of its own."""
    from selenium import webdriver

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
        for flag in (
            "headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
            "disable-component-update", "disable-sync", "disable-dev-shm-usage", "hide-scrollbars",
            "force-prefers-reduced-motion", f"user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(f"--{flag}")
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        driver.set_script_timeout(PATIENCE)
        try:
            yield driver
        finally:
            driver.quit()


def show(driver: Any, size: tuple[int, int], *, dark: bool = False, phone: bool = False, paper: bool = False) -> None:
    """Set what kind of screen the page sees, or that it is printed."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    media = "print" if paper else ""
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": scheme})


def save(driver: Any, name: str) -> None:
    """Save what is shown, with as many colours as the weight allows.

    Raises:
        ValueError: If even few colours weigh too much.
    """
    image = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    for colours in (256, 128, 64, 32):
        target = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)
        if target.tell() <= HEAVIEST:
            (IMAGES / name).write_bytes(target.getvalue())
            return
    raise ValueError(f"{name} weighs {target.tell():,} bytes with 32 colours, over {HEAVIEST:,}")


def of_report(report: Path) -> None:
    """Take a report's first screen on a desk, on a phone, in the dark, and its first sheet of paper."""
    with browser() as driver:
        for name, size, how in (
            ("report.png", DESKTOP, {}), ("report-dark.png", DESKTOP, {"dark": True}),
            ("report-phone.png", PHONE, {"phone": True}), ("report-print.png", PAPER, {"paper": True}),
        ):  # fmt: skip
            show(driver, size, **how)
            driver.get((report / "index.html").resolve().as_uri())
            time.sleep(1)
            save(driver, name)


def asked(address: str, path: str, **body: Any) -> Any:
    """Return what MLflow's server answers."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"{address}/api/2.0/mlflow/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def of_mlflow(address: str, study: str) -> None:
    """Take the table of runs, one run's metrics, a comparison, and the champion's model."""
    experiment = asked(address, f"experiments/get-by-name?experiment_name={study}")["experiment"]["experiment_id"]
    found = asked(
        address, "runs/search", experiment_ids=[experiment], order_by=["metrics.`test/srcc` DESC"], max_results=100
    )["runs"]
    first: dict[str, str] = {}  # the best run of each method
    variants: list[str] = []
    for run in found:
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        if "method" in tags and "mlflow.parentRunId" in tags:
            if tags["method"] not in first and tags.get("kind") == "variant":
                variants.append(run["info"]["run_id"])
            first.setdefault(tags["method"], run["info"]["run_id"])
    runs = variants or list(first.values())
    model = asked(address, "registered-models/search?max_results=1")["registered_models"][0]["name"]
    at = f"{address}/#/experiments/{experiment}"
    compared = f"[{','.join(json.dumps(run) for run in runs[:3])}]"
    variant = first.get("dcmpln", runs[0])
    training = "workflowType=machine_learning"
    pages = {
        "mlflow-runs.png": (f"{at}/runs?viewStateShareKey=study&{training}", "linear_probe"),
        "mlflow-run.png": (f"{at}/runs/{variant}?{training}", "test/srcc"),
        "mlflow-compare.png": (
            f"{address}/#/compare-runs?runs={compared}&experiments=[%22{experiment}%22]&{training}", "Parallel"
        ),
        "mlflow-model.png": (f"{address}/#/models/{model}?{training}", "Registered at"),
    }  # fmt: skip
    with browser() as driver:
        show(driver, (1280, 760))
        driver.get(address)
        close_assistant(driver)
        for name, (page, words) in pages.items():
            driver.get("about:blank")
            driver.get(page)
            wait_for(driver, words)
            time.sleep(SETTLE)
            save(driver, name)


def wait_for(driver: Any, words: str) -> None:
    """Wait until the page says something.

    Raises:
        TimeoutError: If it does not.
    """
    until = time.monotonic() + PATIENCE
    while words not in driver.execute_script("return document.body.innerText"):
        if time.monotonic() > until:
            raise TimeoutError(f"{driver.current_url} does not say {words!r} within {PATIENCE} s")
        time.sleep(1)


def close_assistant(driver: Any) -> None:
    """Close what MLflow shows beside its pages, and remembers to be closed."""
    wait_for(driver, "MLflow Assistant")
    time.sleep(SETTLE)
    driver.execute_script("document.elementFromPoint(innerWidth - 36, 36).closest('button').click()")
    time.sleep(SETTLE)


def main(argv: Sequence[str] | None = None) -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    report = commands.add_parser("report")
    report.add_argument("folder", type=Path)
    mlflow = commands.add_parser("mlflow")
    mlflow.add_argument("address")
    mlflow.add_argument("study")
    arguments = parser.parse_args(argv)
    if arguments.what == "report":
        of_report(arguments.folder)
    else:
        of_mlflow(arguments.address, arguments.study)


if __name__ == "__main__":
    main()
