"""The work of all signatures of a trace as arrays, independent of the chip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bringup.cost.rules import Work
from bringup.cost.signature import Signature
from bringup.machine.vocabulary import FAMILIES

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class WorkTable:
    """The fields of `Work` as columns. Most columns have one entry per signature, the last six one per product.

    Attributes:
        works: the `Work` of each signature, from which the columns are built.
        family: index into `FAMILIES`.
        bytes: bytes read and written.
        down_bytes, up_bytes: bytes that a fallback copies to the host, and bytes that it copies back.
        owner: index of the product's signature.
        batch, m, n, k: sizes of the product, at least 1.
        item: bytes per element of the product's matrices.
    """

    works: tuple[Work, ...]
    family: Array
    dtypes: tuple[str, ...]
    vector_flops: Array
    special: Array
    bytes: Array
    down_bytes: Array
    up_bytes: Array
    items: Array
    kernels: Array
    streams: Array
    again_bytes: Array
    in_flight: Array
    passes: Array
    offsets: Array
    sectors: Array
    waits: Array
    chain: Array
    cells: Array
    winograd: Array
    converted_bytes: Array
    conversions: Array
    channels_last: Array
    bias_bytes: Array
    aligned: Array
    hides_softmax: Array
    torchs_own: Array
    own_flops: Array
    flops: Array
    owner: Array
    batch: Array
    m: Array
    n: Array
    k: Array
    item: Array
    gathers: Array
    whole: Array
    outer: Array

    @classmethod
    def from_signatures(cls, signatures: Sequence[Signature]) -> WorkTable:
        """Build the table from signatures by the cost rules."""
        works = tuple(signature.work for signature in signatures)

        def column(name: str) -> Array:
            return np.asarray([getattr(work, name) for work in works], dtype=np.float64)

        gemms = [(i, gemm) for i, work in enumerate(works) for gemm in work.gemms]
        sides = np.asarray([(g.batch, g.m, g.n, g.k) for _, g in gemms], dtype=np.float64).reshape(-1, 4)
        batch, m, n, k = np.maximum(sides, 1).T.copy()
        return cls(
            works=works,
            family=np.asarray([FAMILIES.index(work.family) for work in works], dtype=np.int64),
            dtypes=tuple(work.dtype for work in works),
            vector_flops=column("vector_flops"),
            special=column("special"),
            bytes=column("bytes"),
            down_bytes=np.asarray([s.read_bytes for s in signatures], dtype=np.float64),
            up_bytes=np.asarray([s.written_bytes for s in signatures], dtype=np.float64),
            items=column("items"),
            kernels=column("kernels"),
            streams=column("streams"),
            again_bytes=column("again_bytes"),
            in_flight=column("in_flight"),
            passes=column("passes"),
            offsets=column("offsets"),
            sectors=column("sectors"),
            waits=column("waits"),
            chain=column("chain"),
            cells=column("cells"),
            winograd=column("winograd"),
            converted_bytes=column("converted_bytes"),
            conversions=column("conversions"),
            channels_last=column("channels_last"),
            bias_bytes=column("bias_bytes"),
            aligned=column("aligned"),
            hides_softmax=column("hides_softmax"),
            torchs_own=column("torchs_own"),
            own_flops=column("own_flops"),
            flops=column("flops"),
            owner=np.asarray([i for i, _ in gemms], dtype=np.int64),
            batch=batch,
            m=m,
            n=n,
            k=k,
            item=np.asarray([works[i].bytes / max(_elements(works[i]), 1) for i, _ in gemms], dtype=np.float64),
            gathers=np.asarray([gemm.gathers for _, gemm in gemms], dtype=bool),
            whole=np.asarray([gemm.whole for _, gemm in gemms], dtype=bool),
            outer=np.asarray([gemm.outer for _, gemm in gemms], dtype=bool),
        )

    def is_family(self, *names: str) -> Array:
        """Return a mask over signatures: True where the family is one of these."""
        return np.isin(self.family, [FAMILIES.index(name) for name in names])

    def product_is_family(self, name: str) -> Array:
        """Return a mask over products: True where the signature's family is this one."""
        return self.is_family(name)[self.owner]

    def by_signature(self, of_products: Array) -> Array:
        """Sum a column over the products of each signature."""
        sums = np.zeros(len(self.works))
        np.add.at(sums, self.owner, of_products)
        return sums


def _elements(work: Work) -> float:
    """Return the number of elements in all matrices of a launch's products."""
    return sum(g.batch * (g.m * g.k + g.k * g.n + g.m * g.n) for g in work.gemms)
