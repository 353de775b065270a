"""The work of a launch: one rule per operator, one file per family.

A rule takes a `Signature` and returns a `Work`. Adding an operator's cost is one decorated function. Pointwise and
reduction operators need none: torch's tags select their rules, and recordings keep those tags. The cost of an operator
without a rule is estimated from its bytes, as family ``other``, and the report lists the operator.
"""

from __future__ import annotations

from bringup.cost.rules import Work, family_of, named_family_of, tag_of, work_of
from bringup.cost.signature import Signature, Tensor
from bringup.machine.vocabulary import FAMILIES

__all__ = ["FAMILIES", "Signature", "Tensor", "Work", "family_of", "named_family_of", "tag_of", "work_of"]
