"""The page: its numbers against its own tables, its marks, and a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.report import page, significance


class Tables(HTMLParser):
    """Collects the cells of every table by the id of its figure."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.name, self.cell = "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "figure":
            self.name = str(named["id"]).removeprefix("table-")
        elif tag == "tr":
            self.found.setdefault(self.name, []).append([])
        elif tag in ("td", "th"):
            self.found[self.name][-1].append("")
            self.cell = True
        elif tag == "small" and self.cell:
            self.found[self.name][-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.found[self.name][-1][-1] += data


@pytest.fixture(scope="module")
def html(reported: Path) -> str:
    return (reported / "out/index.html").read_text()


@pytest.fixture(scope="module")
def cells(html: str) -> dict[str, list[list[str]]]:
    parser = Tables()
    parser.feed(html)
    return parser.found


def test_every_table_on_the_page_is_the_table_in_its_files(reported: Path, cells: dict[str, list[list[str]]]) -> None:
    files = {path.stem: path for path in (reported / "out/tables").glob("*.md")}
    assert set(cells) == set(files)
    for name, path in files.items():
        lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
        markdown = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        shown = [[cell.strip() for cell in row] for row in cells[name]]
        assert shown == [row for row in markdown if set(row[0]) != {"-"}], name


@pytest.mark.parametrize("name", ["main-agiqa3k", "main-demo"])
def test_the_main_tables_cells_are_the_csvs_numbers(
    reported: Path, cells: dict[str, list[list[str]]], name: str
) -> None:
    numbers = pd.read_csv(reported / f"out/tables/{name}.csv", na_values=[""])
    for row, line in zip(numbers.to_dict("records"), cells[name][1:], strict=True):
        for column, metric in enumerate(significance.METRICS, start=1):
            if row["kind"] == "published":
                assert line[column] == ("—" if pd.isna(row[metric]) else f"{row[metric]:.4f}")
            else:
                bounds = f"[{row[f'{metric}_low']:.3f}, {row[f'{metric}_high']:.3f}]"
                assert line[column] == f"{row[metric]:.3f} ± {row[f'{metric}_std']:.3f} {bounds}"


def test_the_answer_comes_first_and_hashes_last(html: str) -> None:
    first, last = html[html.index('id="answer"') : html.index('id="data"')], html[html.index('id="rerun"') :]
    assert len(re.findall(r'<p class="lead">On <strong>\w+</strong> <strong><code>dcmpln</code></strong>', first)) == 2
    assert "Not shown" in first
    assert 'id="table-main-demo"' in first
    assert 'id="chart-demo"' in first
    for digest in ("d" * 32, "a" * 40, "c" * 32):
        assert html.count(digest) == last.count(digest) > 0
    outside = re.sub(r"<details>.*?</details>", "", last, flags=re.S)
    assert not re.search(r"[acd]{32}", outside)
    # 18 trainings of 15 s, 6 fits of half a second, 24 scorings of 0.3 s; of processors 27, 0.75 and 0.5 s
    assert "4 min 40 s on the clock, 8 min 22 s of processors, for 24 trainings or fits and the scoring" in html


def test_the_page_names_the_backbone_once_and_its_files_each(html: str, reported: Path) -> None:
    assert html.count("demo-vit") == 1
    assert '<p class="badge">Backbone: demo-vit (in-house weights); none in handcrafted</p>' in html
    for path in (reported / "out/tables").glob("*.md"):
        assert path.stem == "settings" or "Backbone: demo-vit (in-house weights)" in path.read_text(), path
    for path in (reported / "out").glob("*.svg"):
        assert "demo-vit (in-house weights)" in " ".join(re.findall("<!--(.*?)-->", path.read_text())), path


def test_the_charts_places_are_the_summarys_numbers(html: str, reported: Path) -> None:
    summary = pd.read_csv(reported / "out/summary.csv").query("dataset == 'demo'").set_index("method")
    part = html[html.index('id="chart-demo"') :]
    part = part[: part.index("</figure>")]
    axis = part[part.index("line axis") :]
    (x0, first), *_, (x1, last) = [
        (float(left), float(text)) for left, text in re.findall(r'left:([\d.]+)%">([-\d.]+)<', axis)
    ]
    assert 0 <= x0 < 50 < x1 <= 100
    slope = (last - first) / (x1 - x0)  # SRCC a percent
    rows = re.findall(
        r'class="name">(\w+).*?class="interval" style="left:([\d.]+)%;width:([\d.]+)%.*?<b style="left:([\d.]+)%',
        part,
        re.S,
    )
    assert [row[0] for row in rows] == list(summary["srcc_mean"].sort_values(ascending=False).index)
    for method, *places in rows:
        low, width, mean = map(float, places)
        row = summary.loc[method]
        found = [first + slope * (place - x0) for place in (low, low + width, mean)]
        assert found == pytest.approx(row[["srcc_low", "srcc_high", "srcc_mean"]].tolist(), abs=1e-3)


def test_leaking_and_published_rows_are_marked(html: str) -> None:
    assert len(re.findall(r'<tr class="leaks">', html)) == 3 * 2 + 2  # the audit's rows, and one in each 2 x 2 table
    assert html.count('<span class="leak">LEAKS</span>') == 3 * 2 + 3 * 2
    assert len(re.findall(r'<tr class="published">', html)) > 15
    assert "prompt-disjoint, best epoch on test" in html


def test_plain_text_becomes_elements_and_cannot_break_the_page() -> None:
    assert page._prose("`a_b` <b> **strong**, LEAKS in c") == (
        '<code>a_b</code> &lt;b&gt; <strong>strong</strong>, <span class="leak">LEAKS</span> in c'
    )
    assert page._cell("0.5 ± 0.1 [0.4, 0.6]") == "0.5 ± 0.1<small>[0.4, 0.6]</small>"
    assert page._cell("-0.5 ± 0.1 [-0.6, -0.4]") == "-0.5 ± 0.1<small>[-0.6, -0.4]</small>"
    assert page._cell("its paper [V]; comparable") == "its paper [V]; comparable"
    assert "<title>&lt;small&gt;</title>" in page.render("nowhere", "<small>", "b", [])


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with chromedriver on this machine")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless=new no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update"
    for flag in [*flags.split(), "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


def show(reported: Path, browser: Any, size: tuple[int, int], scheme: str) -> tuple[int, int]:
    """Open the page on a screen of this size."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get((reported / "out/index.html").as_uri())
    return size


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_whole_and_asks_no_network(
    reported: Path, browser: Any, width: int, scheme: str
) -> None:
    address = (reported / "out/index.html").as_uri()
    browser.get_log("performance")
    show(reported, browser, (width, 900), scheme)
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [entry["params"] for entry in sent if entry["method"] == "Network.requestWillBeSent"]
    asked = [
        one["request"]["url"] for one in asked if one["documentURL"] == address
    ]  # the browser's own pages ask more
    assert {url for url in asked if not url.startswith("data:")} == {address}
    found = browser.execute_script(
        """
        for (const fold of document.querySelectorAll("details")) fold.open = true;
        const page = document.documentElement, style = getComputedStyle(document.body);
        return {
          resources: performance.getEntriesByType("resource").map((e) => e.name).filter((n) => !n.startsWith("data:")),
          width: page.scrollWidth, images: [...document.images].map((i) => i.complete && i.naturalWidth > 0),
          paper: style.backgroundColor, ink: style.color,
          cut: [...document.querySelectorAll("p, h1, h2, h3, h4, dd, li, figcaption, pre, .chart .name, .chart .value")]
            .filter((e) => e.getBoundingClientRect().right > page.clientWidth + 1 && !e.closest(".scroll"))
            .map((e) => e.textContent),
          // A figure's letters are paths: 9 points of its 648, as wide as it is shown, against a caption's pixels.
          small: [...document.querySelectorAll(".plot svg")]
            .filter((e) => e.getBoundingClientRect().width * 9 / e.viewBox.baseVal.width
              < parseFloat(getComputedStyle(e.closest("figure").querySelector("figcaption")).fontSize) - 0.1)
            .map((e) => e.closest("figure").id),
          narrow: [...document.querySelectorAll(".plot svg")].filter((e) => e.clientHeight < 100).length,
          unnamed: [...document.querySelectorAll("img:not([alt]), button:empty, [role=img]:not([aria-label])")].length,
          ids: [...document.querySelectorAll("[id]")].map((e) => e.id),
        };
        """
    )
    assert found["resources"] == []
    assert found["width"] <= width
    assert len(found["images"]) == 2 * 2 * 3 * 2  # pictures and maps, 2 of 3 kinds on 2 data sets
    assert all(found["images"])
    assert found["small"] == []
    assert found["cut"] == []
    assert found["narrow"] == 0
    assert found["unnamed"] == 0
    assert len(found["ids"]) == len(set(found["ids"]))
    dark = [int(part) < 128 for part in re.findall(r"\d+", found["paper"])[:3]]
    assert dark == [scheme == "dark"] * 3


FIRST = {
    (1280, 660): [
        ".badge",
        ".lead",
        "#chart-agiqa3k .axis",
        "#table-main-agiqa3k tbody tr:nth-child(4)",
        ".at-said li",
    ],
    (390, 800): [".badge", ".lead", "#chart-agiqa3k .axis", "#table-main-agiqa3k thead"],
}


@pytest.mark.parametrize("size", FIRST)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_screen_holds_answer_chart_and_main_table(
    reported: Path, browser: Any, size: tuple[int, int], scheme: str
) -> None:
    width, height = show(reported, browser, size, scheme)
    for selector in FIRST[size]:
        found = browser.execute_script(
            "const r = document.querySelector(arguments[0]).getBoundingClientRect(); return [r.left, r.top, r.bottom]",
            selector,
        )
        assert 0 <= found[0] < width, selector
        assert 0 <= found[1] < found[2] <= height, (selector, found)
    if width > 1000:  # the table stands beside the chart, else under it
        left, right = (
            browser.execute_script("return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", name)
            for name in (".at-chart", ".at-table")
        )
        assert left["right"] <= right["left"]
        assert abs(left["top"] - right["top"]) < 2


def test_a_wide_table_on_a_phone_says_so_and_keeps_its_first_column(reported: Path, browser: Any) -> None:
    show(reported, browser, (390, 800), "light")
    measure = """
        const figure = document.querySelector("#table-main-agiqa3k"), scroll = figure.querySelector(".scroll");
        const wide = scroll.parentElement, row = figure.querySelector("tbody tr");
        const box = (e) => e.getBoundingClientRect();
        return {
          more: ["before", "after"].map((side) => getComputedStyle(wide, "::" + side).content !== "none"),
          hint: box(figure.querySelector(".hint")).height,
          head: box(figure.querySelector("thead th")).left - box(scroll).left,
          name: box(row.cells[0]).left - box(scroll).left, next: box(row.cells[1]).left - box(scroll).left,
          end: scroll.scrollWidth - scroll.clientWidth,
          top: box(figure.querySelector("thead th")).top - box(scroll).top, page: document.documentElement.scrollWidth,
        };
    """
    before = browser.execute_script(measure)
    assert before["more"] == [False, True]
    assert before["hint"] > 10
    assert before["end"] > 300
    browser.execute_async_script(
        "const scroll = document.querySelector('#table-main-agiqa3k .scroll'); scroll.scrollLeft = 300;"
        "scroll.scrollTop = 90; requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
    )
    after = browser.execute_script(measure)
    assert after["more"] == [True, True]
    assert abs(after["name"]) < 1  # the name stays
    assert abs(after["head"]) < 1
    assert abs(after["top"]) < 1  # and so do the heads
    assert after["next"] == pytest.approx(before["next"] - 300, abs=1)
    assert after["page"] == before["page"] == 390


def test_columns_sort_by_number_and_by_word(reported: Path, browser: Any) -> None:
    browser.get((reported / "out/index.html").as_uri())

    def column(place: int) -> list[str]:
        rows = "[...document.querySelectorAll('#table-main-agiqa3k tbody tr')]"
        return browser.execute_script(f"return {rows}.map(r => r.cells[arguments[0]].innerText)", place)

    def press(place: int) -> str:
        head = browser.find_elements("css selector", "#table-main-agiqa3k thead th")[place]
        head.find_element("css selector", "button").send_keys("\ue007")  # the Enter key: no mouse needed
        return head.get_attribute("aria-sort")

    assert press(1) == "descending"
    numbers = [float(text.split()[0]) for text in column(1)]
    assert numbers == sorted(numbers, reverse=True)
    assert press(1) == "ascending"
    numbers = [float(text.split()[0]) for text in column(1)]
    assert numbers == sorted(numbers)
    assert press(0) == "ascending"
    assert column(0) == sorted(column(0), key=str.lower)
    press(3)
    cells = column(3)
    assert cells[-1] == "—"  # what has no number stands last, whatever the direction
    assert [cell == "—" for cell in cells] == sorted(cell == "—" for cell in cells)


def test_maps_start_off_lie_beside_their_pictures_and_a_click_enlarges_both(reported: Path, browser: Any) -> None:
    show(reported, browser, (1280, 660), "light")
    boxes = """
        return [...document.querySelector(".gallery .frame").querySelectorAll("img")]
          .map((e) => { const r = e.getBoundingClientRect(); return [r.left, r.right, r.top, r.bottom]; })
    """
    picture, hidden = browser.execute_script(boxes)
    assert hidden == [0, 0, 0, 0]
    browser.find_element("css selector", ".gallery input").send_keys(" ")
    picture, beside = browser.execute_script(boxes)
    assert picture[1] <= beside[0]
    assert picture[2:] == pytest.approx(beside[2:], abs=1)
    frame = browser.find_element("css selector", ".gallery .frame")
    frame.send_keys("\ue007")
    sizes = "return [...document.querySelectorAll('dialog[open] img')].map((e) => e.getBoundingClientRect().width)"
    large = browser.execute_script(sizes)
    assert len(large) == 2
    assert min(large) > 1.5 * (picture[1] - picture[0])
    browser.switch_to.active_element.send_keys("\ue00c")  # Escape
    assert browser.execute_script(sizes) == []
