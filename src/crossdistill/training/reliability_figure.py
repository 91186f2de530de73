"""The reliability diagram of an analysis as SVG, written by hand: no plotting library is needed for bars."""

from collections.abc import Mapping
from html import escape

from crossdistill.runtime.escaping import visible
from crossdistill.training.calibration import Calibration

SIDE, MARGIN, TEXT = 220, 42, 12
"""Side of a panel, margin around it, and size of the text, in pixels."""


def reliability_svg(sources: Mapping[str, Calibration], about: str) -> str:
    """One panel for each source: accuracy in each bin of confidence, and the diagonal of perfect calibration.

    The strength of a bar's colour is the share of the rows in its bin; the line from its end to the diagonal is the
    gap that the expected calibration error sums.
    """
    width = len(sources) * (SIDE + MARGIN) + MARGIN
    height = SIDE + 2 * MARGIN + 2 * TEXT
    panels = [
        _panel(name, found, MARGIN + number * (SIDE + MARGIN)) for number, (name, found) in enumerate(sources.items())
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="sans-serif" font-size="{TEXT}">',
            f"<title>{escape(visible(about))}</title>",
            f'<rect width="{width}" height="{height}" fill="white"/>',
            *panels,
            "</svg>",
            "",
        ]
    )


def _panel(name: str, found: Calibration, left: int) -> str:
    top, bottom = MARGIN, MARGIN + SIDE

    def across(value: float) -> float:
        return round(left + value * SIDE, 1)

    def up(value: float) -> float:
        return round(bottom - value * SIDE, 1)

    parts = [f'<rect x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#888"/>']
    for one in found.bins:
        if not one.rows:
            continue
        wide, share = across(one.high) - across(one.low), one.rows / found.rows
        middle = round((across(one.low) + across(one.high)) / 2, 1)
        parts.append(
            f'<rect x="{across(one.low)}" y="{up(one.accuracy)}" width="{wide:.1f}" '
            f'height="{bottom - up(one.accuracy):.1f}" fill="#2a6fbb" fill-opacity="{0.25 + 0.75 * share:.2f}" '
            f'stroke="#2a6fbb"><title>{one.rows:,} rows, confidence {one.confidence:.3f}, accuracy {one.accuracy:.3f}'
            "</title></rect>"
        )
        parts.append(
            f'<line x1="{middle}" y1="{up(one.accuracy)}" x2="{middle}" y2="{up(one.confidence)}" stroke="#c33" '
            'stroke-width="2"/>'
        )
    parts.append(
        f'<line x1="{left}" y1="{bottom}" x2="{left + SIDE}" y2="{top}" stroke="#444" stroke-dasharray="4 3"/>'
    )
    for value in (0.0, 0.5, 1.0):
        parts.append(f'<text x="{across(value)}" y="{bottom + TEXT + 2}" text-anchor="middle">{value:g}</text>')
        parts.append(f'<text x="{left - 4}" y="{up(value) + 4}" text-anchor="end">{value:g}</text>')
    parts.append(f'<text x="{left}" y="{top - 8}">{escape(visible(name))}: ECE {found.ece:.4f}</text>')
    parts.append(f'<text x="{across(0.5)}" y="{bottom + 2 * TEXT + 6}" text-anchor="middle">confidence</text>')
    return "\n".join(parts)
