"""The image that stands for the book where its address is shared.

Input: the evidence and its gate. Output: a PNG of 1200 by 630 pixels.
"""

from __future__ import annotations

import io
import textwrap
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from kvab.pages.evidence import Evidence
from kvab.pages.gate import Gate
from kvab.pages.theme import GREY, THEME, arm_styles, origin
from kvab.pages.wording import short_answer

SIZE_IN, DPI = (12, 6.3), 100
DARK = "#222222"


def social_card(evidence: Evidence, judged: Gate) -> bytes:
    """Return the question, the answer in short and both good shares, marked if simulated."""
    study, styles = evidence.study, arm_styles(evidence.arms)
    names = [study.comparison, study.baseline]
    with mpl.rc_context({**THEME, "figure.constrained_layout.use": False}):
        figure = plt.figure(figsize=SIZE_IN, dpi=DPI)
        figure.text(0.06, 0.9, textwrap.fill(study.title, 40), fontsize=32, fontweight="bold",
                    color=DARK, va="top")  # fmt: skip
        said = textwrap.fill(short_answer(evidence, judged), 72)
        figure.text(0.06, 0.63, said, fontsize=20, color=DARK, va="top", linespacing=1.4)
        if judged.green:
            axes = figure.add_axes((0.36, 0.12, 0.52, 0.26))
            shares = [100 * evidence.good_shares.loc[name, "share"] for name in names]
            colors = [styles[name]["color"] for name in names]
            axes.barh(range(len(names)), shares, color=colors, height=0.6)
            for place, share in enumerate(shares):
                at: Any = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
                axes.annotate(f"{share:.1f} % good", (share, place), (8, 0), fontsize=18, **at)
            axes.set_yticks(range(len(names)), [evidence.arms[n].label for n in names], fontsize=18)
            axes.set(xlim=(0, 100), xticks=[])
            axes.grid(visible=False)
            axes.spines[["bottom", "left"]].set_visible(False)
        figure.text(0.06, 0.04, "kvab", fontsize=16, color=GREY)
        mark = origin(evidence) or "measured"
        figure.text(0.94, 0.04, mark, fontsize=16, color=GREY, ha="right")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        plt.close(figure)
    return buffer.getvalue()
