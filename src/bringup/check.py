"""The names that a vendor's own scorecard items import; see docs/scorecard.md."""

from bringup.scorecard import ITEMS, Failed, Item, NotApplicable, Partial, item, require, run_item

__all__ = ["ITEMS", "Failed", "Item", "NotApplicable", "Partial", "item", "require", "run_item"]
