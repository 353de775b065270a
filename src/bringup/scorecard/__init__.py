"""The scorecard: the requirements on an accelerator's software, one small function per item."""

from bringup.scorecard.registry import ITEMS, Failed, Item, NotApplicable, Partial, item, require, run_item

__all__ = ["ITEMS", "Failed", "Item", "NotApplicable", "Partial", "item", "require", "run_item"]
