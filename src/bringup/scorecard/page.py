"""A scorecard's page and its badge."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from bringup.report import palette
from bringup.report.html import render, templates
from bringup.scorecard import card as cards
from bringup.scorecard.registry import LEVELS


def page(card: dict[str, Any], items: dict[str, Any], old: dict[str, Any] | None) -> str:
    """Write a scorecard's page, with the support matrix and the changes since an older scorecard."""
    name = card["chip"] or card["device"]
    return render(
        "check.html",
        title=f"scorecard of {name}: bringup",
        card=card,
        name=name,
        badge=Markup(badge(card)),
        part=cards.part(card),
        about={key: entry.about for key, entry in items.items()},
        levels=[(level, text, cards.share(card, level), cards.totals(card)[level]) for level, text in LEVELS.items()],
        changes=cards.changes(old, card) if old else [],
        dtypes=sorted({dtype for row in card["ops"].values() if isinstance(row, dict) for dtype in row}),
        ops={key: row for key, row in card["ops"].items() if isinstance(row, dict)},
    )


def badge(card: dict[str, Any]) -> str:
    """Draw the passed share as an SVG."""
    score = cards.share(card)
    text = "no item applies" if score is None else f"{int(100 * score)} %"
    if part := cards.part(card):
        text += f", {part}"
    colour = palette.verdict(score)
    return templates().get_template("badge.svg").render(name=card["chip"] or card["device"], text=text, colour=colour)
