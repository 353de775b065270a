"""Work of a launch: one rule per operator, one file per family.

A rule sees a `Signature` and returns a `Work`. Adding an operator's cost is one decorated function; a tag of torch
gives pointwise and reduction operators theirs without a name. Recordings keep that tag, so pricing needs no torch. An
operator without a rule is priced by its bytes, as family ``other``, and the report names it.
"""

from __future__ import annotations

from bringup.cost.rules import Work, family_of, named_family_of, tag_of, work_of
from bringup.cost.signature import Signature, Tensor
from bringup.machine.vocabulary import FAMILIES

__all__ = ["FAMILIES", "Signature", "Tensor", "Work", "family_of", "named_family_of", "tag_of", "work_of"]
