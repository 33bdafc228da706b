"""Every page of the built book in a real browser: nothing broken, nothing from the network."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The book built from the published runs, as `make book` does."""
    from kvab.book.build import report

    out = tmp_path_factory.mktemp("book")
    return report(
        Path("recipes/qwen3-32b/study.yaml"),
        "simulated-h200",
        out=out,
        published=Path("book/published"),
    )


def test_the_book_again_executes_no_page(book, tmp_path, monkeypatch):
    from kvab.book import build

    def never(source, *_):
        raise AssertionError(f"{source.name} was executed again")

    monkeypatch.setattr(build, "execute", never)
    headline, _ = build.report(
        Path("recipes/qwen3-32b/study.yaml"),
        "simulated-h200",
        out=tmp_path,
        published=Path("book/published"),
    )
    assert headline == book[0]


@pytest.fixture(scope="module")
def browser(chromium):
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, headless=True, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def visits(book, browser):
    """Every page opened once: what the browser complained about, and what stands there."""
    _, index = book
    found = {}
    for path in sorted(index.parent.glob("*.html")):
        complaints, requests = [], []
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda m, to=complaints: m.type == "error" and to.append(m.text))
        page.on("pageerror", lambda error, to=complaints: to.append(str(error)))
        page.on("requestfailed", lambda r, to=complaints: to.append(f"failed: {r.url}"))
        page.on("request", lambda r, to=requests: to.append(r.url))
        page.goto(path.as_uri(), wait_until="load")
        found[path.name] = {
            "complaints": complaints,
            "requests": requests,
            "text": page.inner_text("main"),
            "broken_images": page.evaluate(
                "[...document.images].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 80))"
            ),
            "alt": page.evaluate(
                "[...document.querySelectorAll('figure [role=img]')].map(i => i.ariaLabel)"
            ),
            "captions": page.evaluate(
                "[...document.querySelectorAll('figure figcaption')].map(i => i.innerText)"
            ),
            "links": page.evaluate("[...document.querySelectorAll('main a[href]')].map(a=>a.href)"),
            "ids": page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"),
            "link_texts": page.evaluate(
                "[...document.querySelectorAll('main a[href]')].map(a => a.textContent.trim())"
            ),
            "notices": page.locator(".admonition-title", has_text="Simulated, not").count(),
            "title": page.title(),
            "description": page.evaluate(
                "document.querySelector('meta[name=description]')?.content ?? ''"
            ),
            "bytes": path.stat().st_size,
            "uri": path.as_uri(),
        }
        page.close()
    return found


def test_pages_load_without_a_complaint(visits):
    assert {name: v["complaints"] for name, v in visits.items() if v["complaints"]} == {}


def test_nothing_is_asked_of_the_network(visits):
    asked = {url for v in visits.values() for url in v["requests"]}
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_no_image_is_broken_and_every_figure_has_alternative_text(visits):
    assert [v["broken_images"] for v in visits.values() if v["broken_images"]] == []
    texts = [alt for v in visits.values() for alt in v["alt"]]
    assert len(texts) >= 16  # each wide and for a phone
    assert all(len(alt) > 20 for alt in texts)


def test_every_figure_says_whether_it_is_simulated(visits):
    captions = [caption for v in visits.values() for caption in v["captions"]]
    said = ("simulated, not measured", "a recorded trace", "a simulation of the same rows",
            "engines mocked", "make bench, measured", "deploy.yaml of the runs")  # fmt: skip
    assert captions
    assert [caption for caption in captions if not any(words in caption for words in said)] == []


def test_internal_links_lead_somewhere(visits):
    ids = {v["uri"]: set(v["ids"]) for v in visits.values()}
    broken = []
    for name, visit in visits.items():
        for link in (each for each in visit["links"] if not each.startswith("data:")):
            page, fragment = urldefrag(link)
            lost = page not in ids and not Path(unquote(urlparse(page).path)).is_file()
            if page.startswith("file:") and (
                lost or (fragment and fragment not in ids.get(page, ()))
            ):
                broken.append((name, os.path.basename(link)))  # noqa: PTH119
    assert broken == []
    assert not any("404.html" in link for visit in visits.values() for link in visit["links"])


def test_every_page_has_a_title_and_a_description_of_its_own(visits):
    told = [visit for name, visit in visits.items() if name != "search.html"]
    for key in ("title", "description"):
        texts = [visit[key] for visit in told if "05_outcome-" not in visit["uri"]]
        assert len({*texts}) == len(texts) and min(map(len, texts)) > 10, key


def test_no_page_is_heavier_than_a_megabyte(visits):
    heavy = {name: visit["bytes"] for name, visit in visits.items() if visit["bytes"] > 1_000_000}
    assert heavy == {}


def test_no_page_says_twice_that_it_is_simulated(visits):
    assert [name for name, visit in visits.items() if visit["notices"] > 1] == []


def test_links_say_where_they_lead_and_no_doi_stands_without_one(visits):
    for name, visit in visits.items():
        texts = visit["link_texts"]
        assert not [text for text in texts if re.fullmatch(r"(?i)|here|link|\S+\.html", text)], name
        known = " ".join(texts)
        assert [d for d in re.findall(r"\b10\.\d{4,}/\S+\w", visit["text"]) if d not in known] == []


def test_no_page_shows_a_missing_number(visits):
    words = {name: visit["text"].lower().split() for name, visit in visits.items()}
    assert [name for name, said in words.items() if "nan" in said or "none" in said] == []


def test_no_parameter_cell_is_shown(visits):
    assert [name for name, v in visits.items() if "# study file" in v["text"]] == []


def test_first_screen_holds_the_answer_and_says_simulated(book, browser):
    headline, index = book
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(index.as_uri())
    seen = page.evaluate(
        """() => [...document.querySelectorAll('main p, main figure, main table')]
            .filter(e => e.getBoundingClientRect().top < window.innerHeight - 60)
            .map(e => e.tagName + ' ' + e.innerText).join('\\n')"""
    )
    page.close()
    assert headline in seen.replace("\N{NO-BREAK SPACE}", " ")
    assert "simulated" in seen.lower()
    assert "FIGURE" in seen  # why requests miss


def test_every_figure_and_all_requests_can_be_downloaded(book, browser, tmp_path):
    _, index = book
    page = browser.new_page()
    figures = 0
    for path in sorted(index.parent.glob("*.html")):
        page.goto(path.as_uri())
        for link in page.query_selector_all("figure.kvab-figure a.kvab-data[href$=csv]"):
            table = pd.read_csv(index.parent / link.get_attribute("href"))
            assert len(table) > 1 and len(table.columns) > 1, link.get_attribute("href")
            assert not any(name.startswith("Unnamed") for name in table.columns)
            picture = (
                index.parent / link.get_attribute("href").replace(".csv", ".svg")
            ).read_text()
            assert ElementTree.fromstring(picture).tag.endswith("svg") and "var(" not in picture
            figures += 1
        figures -= len(page.query_selector_all("figure.kvab-figure"))
    assert figures == 0  # one table a figure
    page.goto((index.parent / "02_setup.html").as_uri())
    (href,) = page.evaluate(
        "[...document.querySelectorAll('a')].map(a => a.href).filter(h => h.endsWith('parquet'))"
    )
    page.close()
    table = pd.read_parquet(unquote(urlparse(href).path))
    counts = table.groupby(["configuration", "repeat"]).size()
    assert set(counts) == {12031} and len(counts) == 12


def test_on_paper_a_page_is_its_title_text_and_figures(book, browser):
    _, index = book
    page = browser.new_page(viewport={"width": 800, "height": 1100})
    page.emulate_media(media="print")
    page.goto(index.as_uri())
    seen = page.evaluate(
        """() => Object.fromEntries(['h1', '.bd-sidebar-primary', '.bd-header-article',
            'figure .kvab-wide', 'figure .kvab-phone', '.kvab-data', '.kvab-source',
            '.prev-next-footer'].map(
            s => [s, [...document.querySelectorAll(s)].some(
                e => e.getBoundingClientRect().height > 0)]))"""
    )
    pdf = page.pdf(prefer_css_page_size=True)
    page.close()
    assert [name for name, there in seen.items() if there] == ["h1", "figure .kvab-wide"]
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") < 6


def test_on_paper_nothing_is_wider_than_the_page(book, browser):
    """An A4 page is 688 pixels wide between the margins that kvab.css sets."""
    page, cut = browser.new_page(viewport={"width": 688, "height": 1000}), []
    page.emulate_media(media="print")
    for path in sorted(book[1].parent.glob("*.html")):
        page.goto(path.as_uri())
        cut += page.evaluate(
            "[...document.querySelectorAll('article table, article svg')].filter("
            "e => e.getBoundingClientRect().right > innerWidth + 1).map("
            "e => e.outerHTML.slice(0, 80))"
        )
    page.close()
    assert cut == []


def test_the_main_pages_are_one_pdf_that_the_first_page_links(book, chromium, tmp_path):
    folder = tmp_path / "html"
    shutil.copytree(book[1].parent, folder)
    for _ in range(2):
        subprocess.run([sys.executable, ROOT / ".ci" / "pdf.py", folder], check=True)
    pdf = (folder / "kvab.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and 20 < pdf.count(b"/Type /Page\n") < 40
    assert (folder / "index.html").read_text().count('href="kvab.pdf"') == 1
    assert "kvab.pdf" not in book[1].read_text()


def test_a_shared_address_shows_the_answer(book, browser):
    headline, index = book
    page = browser.new_page()
    page.goto(index.as_uri())
    told = dict(page.evaluate(
        "[...document.querySelectorAll('meta[property]')].map(m => [m.getAttribute('property'),"
        " m.content])"
    ))  # fmt: skip
    page.close()
    assert "simulation" in told["og:description"]
    assert headline.split("kept ")[1].split(" %")[0] in told["og:description"]
    card = (index.parent / told["og:image"]).read_bytes()
    assert card.startswith(b"\x89PNG")
    assert struct.unpack(">II", card[16:24]) == (1200, 630)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_is_accessible(book, browser, theme):
    """No violation that axe knows, of any impact; in the dark only colours can differ."""
    options = {"resultTypes": ["violations"]}
    if theme == "dark":
        options["runOnly"] = ["color-contrast", "link-in-text-block"]
    page, axe, found = browser.new_page(color_scheme=theme), Axe(), []
    for path in sorted(book[1].parent.glob("*.html")):
        for width in (1400, 390):
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(path.as_uri())
            page.wait_for_timeout(
                300
            )  # the explorer draws, and the theme lets what scrolls be focused
            assert page.evaluate("document.documentElement.dataset.theme") == theme
            for broken in axe.run(page, options=options).response["violations"]:
                found.append((path.name, width, broken["id"], broken["nodes"][0]["html"][:80]))
    page.close()
    assert found == []


FIGURES = """() => [...document.querySelectorAll('figure.kvab-figure svg')].map(svg => ({
    phone: svg.classList.contains('kvab-phone'),
    seen: svg.getBoundingClientRect().height > 0,
    text_px: Math.min(...[...svg.querySelectorAll('text')].map(
        text => parseFloat(getComputedStyle(text).fontSize) * (svg.getScreenCTM()?.a ?? 0))),
}))"""


@pytest.mark.parametrize("width", [1400, 390])
def test_figures_are_drawn_for_the_width_with_text_that_can_be_read(book, browser, width):
    page = browser.new_page(viewport={"width": width, "height": 844})
    for path in sorted(book[1].parent.glob("*.html")):
        page.goto(path.as_uri())
        for figure in page.evaluate(FIGURES):
            assert figure["seen"] == (figure["phone"] == (width < 600)), path.name
            assert not figure["seen"] or figure["text_px"] >= 10.95, path.name
    page.close()


OVERLAPS = """() => [...document.querySelectorAll('figure.kvab-figure svg')].flatMap(svg => {
    const texts = [...svg.querySelectorAll('text')].map(
        t => [t.textContent, t.getBoundingClientRect()]);
    return texts.flatMap(([one, a], n) => texts.slice(n + 1).filter(([_, b]) =>
        Math.min(a.right, b.right) - Math.max(a.left, b.left) > 3
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3).map(([other]) => [one, other])
    );
})"""


@pytest.mark.parametrize("width", [1400, 390])
def test_no_text_of_a_figure_lies_over_another(book, browser, width):
    page = browser.new_page(viewport={"width": width, "height": 844})
    found = {}
    for path in sorted(book[1].parent.glob("*.html")):
        page.goto(path.as_uri())
        found[path.name] = page.evaluate(OVERLAPS)
    page.close()
    assert {name: texts for name, texts in found.items() if texts} == {}


def test_figures_say_the_same_on_a_phone(book, browser):
    page = browser.new_page()
    for path in sorted(book[1].parent.glob("*.html")):
        page.goto(path.as_uri())
        wide, phone = (page.evaluate(
            "s => [...document.querySelectorAll(s)].map("
            "f => [...f.querySelectorAll('text')].map(t => t.textContent).join(' '))", kind
        ) for kind in (".kvab-wide", ".kvab-phone"))  # fmt: skip
        assert len(wide) == len(phone)
        for one, other in zip(wide, phone, strict=True):
            assert set(re.findall("[a-z]{3,}", one)) == set(re.findall("[a-z]{3,}", other))
    page.close()


def test_figures_are_dark_where_the_system_is(book, browser):
    page = browser.new_page(color_scheme="dark")
    page.goto((book[1].parent / "06_attribution.html").as_uri())
    look = "getComputedStyle(document.querySelector('{}')).{}.match(/\\d+/g).map(Number)"
    ink = page.evaluate(look.format("svg.kvab-wide text", "fill"))
    paper = page.evaluate(look.format("body", "backgroundColor"))
    page.close()
    assert min(ink[:3]) > 150 and max(paper[:3]) < 60


def test_no_page_has_bars_of_code_and_each_links_its_notebook(book, browser):
    _, index = book
    page = browser.new_page()
    for source in sorted((index.parents[1] / "source").glob("*.ipynb")):
        page.goto((index.parent / f"{source.stem}.html").as_uri())
        assert page.locator("details.hide").count() == 0, source.name
        told = page.evaluate("document.querySelector('meta[property=\"og:title\"]').content")
        assert told == page.locator("h1").first.inner_text().rstrip("#"), source.name
        (name,) = page.locator(".kvab-source a").evaluate_all("all => all.map(a => a.href)")
        assert Path(unquote(urlparse(name).path)).read_bytes() == source.read_bytes()
    page.close()


def test_ids_are_unique_and_rows_of_tables_have_heads(book, browser):
    page = browser.new_page()
    for path in sorted(book[1].parent.glob("*.html")):
        page.goto(path.as_uri())
        ids = page.evaluate("[...document.querySelectorAll('figure [id]')].map(e => e.id)")
        assert len(ids) == len(set(ids)), path.name
        rows = ".kvab-table tbody tr"
        assert page.locator(rows).count() == page.locator(f"{rows} > th[scope=row]").count()
    page.close()


def test_pages_fit_a_phone(book, browser):
    _, index = book
    page = browser.new_page(viewport={"width": 390, "height": 844})
    wide = []
    for path in sorted(index.parent.glob("*.html")):
        page.goto(path.as_uri())
        if page.evaluate("document.documentElement.scrollWidth > window.innerWidth + 1"):
            wide.append(path.name)
    page.close()
    assert wide == []


def shown(out):
    """Return what every page shows: tables, figures and text, by page and cell."""
    found = {}
    for path in sorted((out / "source").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        outputs = [each.get("data", {}) for cell in cells for each in cell.get("outputs", [])]
        found[path.name] = [
            data.get("text/html") or data.get("text/markdown") or data for data in outputs
        ]
    return found


@pytest.mark.slow
def test_a_bundle_makes_the_same_book_where_nothing_can_be_replayed(book, tmp_path):
    """Another cache, and neither simulator nor live stack nor cluster client to be imported."""
    from kvab.book.publish import bundle

    packed, out = tmp_path / "published.tar.zst", tmp_path / "book"
    bundle(ROOT / "recipes/qwen3-32b/study.yaml", [ROOT / "book" / "published"], packed)
    missing = ("aisimulate", "dynamo", "aiperf", "kubernetes")
    hidden = "".join(f"sys.modules[{name!r}] = None\n" for name in missing)
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{hidden}")
    told = {**os.environ, "KVAB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "kvab", "report", "--from", str(packed), "--out", str(out)]
    ended = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    headline, index = book
    assert headline in ended.stdout
    there, here = shown(index.parents[1]), shown(out)
    assert sum(map(len, there.values())) > 50
    assert there.keys() == here.keys()
    for name, outputs in there.items():
        assert here[name] == outputs, name


SET = """(at) => {
  for (const [name, value] of Object.entries(at)) {
    const slider = document.querySelector(`#kvab-explorer input[name=${name}]`);
    slider.value = value;
    slider.dispatchEvent(new Event("input"));
  }
  const rows = [...document.querySelectorAll("#kvab-explorer tbody tr")];
  return {
    rows: rows.map((row) => [...row.children].map((cell) => cell.textContent)),
    advice: document.querySelector("#kvab-explorer [aria-live]").textContent,
  };
}"""


def test_the_explorer_says_what_kvab_advise_prints(book, browser):
    from kvab.pages.printed import advice_lines
    from kvab.runs.bounds import load_every

    every = load_every("recipes/qwen3-32b/study.yaml", "simulated-h200", "book/published")
    rng = np.random.default_rng(20261128)
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto((book[1].parent / "13_bounds.html").as_uri(), wait_until="load")
    for bounds in [*every] * 50:
        grid = bounds.grid
        page.select_option("#kvab-explorer select", bounds.swept.study.workload)
        at = {key: int(rng.integers(len(values))) for key, values in grid.items()}
        shown = page.evaluate(SET, at)
        chosen = {key: grid[key][n] for key, n in at.items()}
        printed = dict(advice_lines(bounds.at(**chosen)))
        for name, share, ends, hours, dollars in shown["rows"]:
            text = f"{share} good ({ends.replace(' to', ' % to')} %)"
            if hours != "–":
                text += f", {hours} GPU-hours for 1,000 good requests"
                text += f", {dollars} dollars for 1M good output tokens"
            assert printed[name] == text, chosen
        said = shown["advice"].rstrip(".")
        assert said.lower() in (printed["advice"], printed["advice"].lower()) or (
            said == "No configuration keeps any request good"
            and printed["advice"] == "none keeps any request good"
        ), chosen
    page.close()


def test_the_explorer_is_moved_by_the_keyboard_and_drawn_by_plotly(book, browser):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto((book[1].parent / "13_bounds.html").as_uri(), wait_until="load")
    load = page.locator("#kvab-explorer input[name=load]")
    before = page.locator("#kvab-explorer output[name=load]").inner_text()
    load.focus()
    page.keyboard.press("ArrowRight")
    after = page.locator("#kvab-explorer output[name=load]").inner_text()
    assert (before, after) == ("1 times the trace's", "1.25 times the trace's")
    assert load.get_attribute("aria-valuetext") == after
    assert page.locator("#kvab-explorer .main-svg").count() >= 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


def test_the_explorer_takes_its_colours_from_the_theme(book, browser):
    page = browser.new_page(color_scheme="dark")
    page.goto((book[1].parent / "13_bounds.html").as_uri(), wait_until="load")
    keys = (
        "[...document.querySelectorAll('.kvab-key')].map(k => getComputedStyle(k).backgroundColor)"
    )
    bars = "[...document.querySelectorAll('.kvab-bars .point path')].map(p => p.style.fill)"
    page.wait_for_selector(".kvab-bars .point path")
    dark = page.evaluate(keys)
    assert sorted(page.evaluate(bars)) == sorted(dark)
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    page.wait_for_timeout(300)
    light = page.evaluate(keys)
    assert sorted(page.evaluate(bars)) == sorted(light)
    page.close()
    assert "rgb(0, 114, 178)" in light and not {*light} & {*dark}


def test_an_address_that_leads_nowhere_shows_the_way_back(book, browser):
    """Linked by no page, and in words and look like any other."""
    page = browser.new_page()
    page.goto((book[1].parent / "404.html").as_uri())
    assert page.locator("h1").inner_text() == "Page not found"
    page.locator("article a").first.click()
    assert page.url == book[1].as_uri()
    page.close()


def test_without_scripts_the_map_stands_and_the_explorer_does_not(book, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((book[1].parent / "13_bounds.html").as_uri())
    assert page.locator("#fig-bounds-map .kvab-wide").is_visible()
    assert not page.locator("#kvab-explorer").is_visible()
    context.close()
