"""The public names for writing a scorecard item; see docs/scorecard.md."""

from bringup.scorecard import ITEMS, Failed, Item, NotApplicable, Partial, item, require, run_item

__all__ = ["ITEMS", "Failed", "Item", "NotApplicable", "Partial", "item", "require", "run_item"]
