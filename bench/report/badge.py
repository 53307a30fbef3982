"""A badge: one line about a run as a small SVG, for another page to show. It fetches nothing and needs no font."""

from __future__ import annotations

from html import escape

from bench.judge.answer import Answer

COLOURS = {"good": "#1a7f37", "bad": "#cf222e", "open": "#9a6700"}
DOUBTED = "#59636e"
"""Grey: a run that deserves no trust must not look like a result."""

LETTER = 6.4
"""Units of width for a letter of 11 units. `textLength` fits each text to it, whatever font the reader has."""


def badge(device: str, answer: Answer) -> str:
    """`decode on NVIDIA H200 | memory-bound? YES (8 of 8 tests)`. A run with low trust is grey and says so."""
    doubted = answer.trust.tone == "bad"
    left = f"decode on {device}"
    right = f"{answer.memory.question.lower()} {answer.memory.answer}" + ("; trust: low" if doubted else "")
    colour = DOUBTED if doubted else COLOURS[answer.memory.tone]
    texts, boxes, x = [], [], 0
    for said, fill in ((left, "#1f2328"), (right, colour)):
        length = round(LETTER * len(said))
        boxes.append(f'<rect x="{x}" width="{length + 12}" height="20" fill="{fill}"/>')
        texts.append(f'<text x="{x + 6}" y="14" textLength="{length}">{escape(said)}</text>')
        x += length + 12
    title = escape(f"{left}: {right}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{x}" height="20" role="img" aria-label="{title}">'
        f"<title>{title}</title>{''.join(boxes)}"
        f'<g fill="#ffffff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{"".join(texts)}</g></svg>\n'
    )
