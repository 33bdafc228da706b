"""What a published book carries beside its pages: data to download, a card, tags, launch buttons.

Input: the evidence. Output: files for the book's folder and lines for Sphinx's configuration.
"""

from __future__ import annotations

import os

from kvab import runs
from kvab.cache import remember
from kvab.pages.evidence import Evidence
from kvab.pages.gate import Gate
from kvab.pages.index import short_answer, social_card

CARD = "_static/social-card.png"
REQUESTS = "data/requests.parquet"


def files(evidence: Evidence, judged: Gate, key: str) -> dict[str, bytes]:
    """Return the table of all requests and the card, by path in the book."""

    def made() -> dict[str, bytes]:
        table = runs.parquet_bytes(evidence.each_run, level=runs.QUICK)
        return {REQUESTS: table, CARD: social_card(evidence, judged)}

    return remember(key, "publication", made)


def configuration(evidence: Evidence, judged: Gate) -> str:
    """Return lines for ``conf.py``: what the book says of itself, and where it can be launched.

    ``KVAB_BOOK_URL`` is the address at which the book is published, ``KVAB_REPOSITORY`` that of its
    source; without them the card's address is relative and nothing offers to launch.
    """
    said, url = short_answer(evidence, judged), os.environ.get("KVAB_BOOK_URL", "")
    repository = os.environ.get("KVAB_REPOSITORY", "")
    told = {
        "description": said,
        "property=og:title": evidence.study.title,
        "property=og:description": said,
        "property=og:type": "article",
        "property=og:image": f"{url.rstrip('/')}/{CARD}" if url else CARD,
        "name=twitter:card": "summary_large_image",
    }
    launch = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
    source = {"repository_url": repository, "use_repository_button": True,
              "repository_branch": "main", "path_to_docs": "notebooks",
              "launch_buttons": launch}  # fmt: skip
    lines = [
        f"html_baseurl = {url!r}",
        f"myst_html_meta = {told!r}",
        f"html_theme_options.update({source if repository else {'launch_buttons': {}}!r})",
        "extensions.remove('sphinx_thebe')  # it would load scripts from the network",
    ]
    return "\n".join(["", *lines, ""])
