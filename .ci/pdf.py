"""Print the main pages of a built book into one PDF, which its first page then links."""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PAGES = ("index", "05_outcome", "06_attribution", "13_bounds", "08_capacity", "12_hardware",
         "09_model_check", "methods")  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NAME = "kvab.pdf"
NUMBERS = (
    '<p style="width: 100%; text-align: center; font: 8px sans-serif">'
    '<span class="pageNumber"></span> / <span class="totalPages"></span></p>'
)
BEFORE = "<p>The code of this page is its notebook"
LINK = f'<p>To print or to keep: <a href="{NAME}">the main pages as one PDF</a>.</p>'
# A page without what only a screen needs; links to printed pages lead inside, others to the web.
ARTICLE = """([page, pages, url]) => {
  const article = document.querySelector("article.bd-article");
  for (const gone of article.querySelectorAll(
    "script, .headerlink, .kvab-source, .kvab-data, .kvab-phone, #kvab-explorer"
  )) gone.remove();
  const below = new URL(".", location).href;
  for (const link of article.querySelectorAll("a[href]")) {
    const [to, at] = link.href.replace(below, "").split("#");
    const name = to.replace(".html", "");
    if (pages.includes(name)) link.href = at ? `#${name}-${at}` : `#${name}`;
    else if (link.protocol === "file:" && url) link.href = `${url}/${to}`;
    else if (link.protocol === "file:") link.removeAttribute("href");
  }
  for (const named of article.querySelectorAll("[id]:not(svg *)")) named.id = `${page}-${named.id}`;
  return `<section id="${page}" class="kvab-page">${article.innerHTML}</section>`;
}"""
TOGETHER = "html => { document.querySelector('article.bd-article').innerHTML = html }"


def printed(folder: Path, browser: str) -> bytes:
    """Return the PDF of the main pages that the folder of a book holds."""
    pages = [page for page in PAGES if (folder / f"{page}.html").is_file()]
    url = os.environ.get("KVAB_BOOK_URL", "").rstrip("/")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(color_scheme="light")
        articles = []
        for name in reversed(pages):  # the first page last: it stays open and takes the others
            page.goto((folder / f"{name}.html").resolve().as_uri())
            articles.insert(0, page.evaluate(ARTICLE, [name, pages, url]))
        page.evaluate(TOGETHER, "".join(articles))
        pdf = page.pdf(prefer_css_page_size=True, outline=True, tagged=True,
                       display_header_footer=True, header_template="<p></p>",
                       footer_template=NUMBERS)  # fmt: skip
        opened.close()
    return pdf


def main() -> None:
    """Write the PDF into the folder of the book and link it from the first page."""
    folder = Path(sys.argv[1])
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"no browser to print with: expected one of {', '.join(BROWSERS)}; install it")
    (folder / NAME).write_bytes(printed(folder, browser))
    index = folder / "index.html"
    text = index.read_text(encoding="utf-8")
    if LINK not in text:
        index.write_text(text.replace(BEFORE, f"{LINK}\n{BEFORE}", 1), encoding="utf-8")
    print(folder / NAME)


if __name__ == "__main__":
    main()
