"""Write the answer of the published runs into README.md, and its picture into docs/answer.svg."""

import re
from pathlib import Path

from kvab.pages import attribution, hardware, outcome
from kvab.pages.evidence import load_published
from kvab.pages.gate import gate
from kvab.pages.theme import alone
from kvab.runs.hardware import load_hardware

ROOT = Path(__file__).parents[1]
PLACE = re.compile(r"(?<=<!-- answer -->\n).*?(?=\n<!-- end -->)", re.S)


def answer() -> tuple[str, bytes]:
    """Return the sentence and the picture."""
    evidence = load_published("", "book/published")
    said = outcome.headline(evidence, gate(evidence))
    picture = alone(attribution.misses_figure(evidence).svg).encode()
    held = hardware.band(load_hardware("book/published"))
    return f"**The answer so far, from simulated runs.** {said} {held}", picture


def main() -> None:
    """Put both in their places."""
    said, picture = answer()
    readme = ROOT / "README.md"
    readme.write_text(PLACE.sub(lambda _: said, readme.read_text(encoding="utf-8")), "utf-8")
    (ROOT / "docs" / "answer.svg").write_bytes(picture)
    print(said)


if __name__ == "__main__":
    main()
