"""The scorecard: what an accelerator's software must do, one small function per item."""

from bringup.scorecard.registry import ITEMS, Failed, Item, NotApplicable, Partial, item, require, run_item

__all__ = ["ITEMS", "Failed", "Item", "NotApplicable", "Partial", "item", "require", "run_item"]
