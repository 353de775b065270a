"""The validated contents of the files of chips, hosts, nodes and clusters.

Anyone may have written such a file, so every number is finite and bounded, and so is the length of every text and
table. The bounds lie far beyond real chips. Within them no price overflows and no count exceeds the core's `int`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from bringup.machine.vocabulary import CASTS, DTYPES, FAMILIES, PRODUCTS, TF32, matrix_dtype
from bringup.text import plain, short


def _shown(text: str) -> str:
    """Refuse control characters, because a terminal would act on them."""
    hidden = None if plain(text) == text else next((c for c in text if c not in "\n\t" and plain(c) != c), None)
    if hidden is not None:
        raise ValueError(f"a text may not have the character {plain(hidden)}: leave it out")
    return text


def _at_least(low: float) -> AfterValidator:
    def check(value: float) -> float:
        if value < low:
            raise ValueError(f"must be at least {low:g}")
        return value

    return AfterValidator(check)


Text = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_shown)]  # a line of a terminal
Source = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_shown)]  # a paragraph
Key = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_shown)]  # the longest operator has 60

# TFLOP/s, TB/s or GB/s of one chip: from the kB/s of a serial line to a million times today's chips.
Rate = Annotated[float, Field(gt=0, le=1e9), _at_least(1e-6)]
Gigahertz = Annotated[float, Field(gt=0, le=1e3), _at_least(1e-3)]
Microseconds = Annotated[float, Field(gt=0, le=1e6), _at_least(1e-3)]  # one call: up to a second
Capacity = Annotated[float, Field(gt=0, le=1e9), _at_least(1e-3)]  # KiB per core, MiB per cache: up to a petabyte
Fraction = Annotated[float, Field(gt=0, le=1), _at_least(1e-3)]
Factor = Annotated[float, Field(gt=0, le=1e3), _at_least(1e-3)]  # measured speed over the model's
Watts = Annotated[float, Field(ge=0, le=1e6)]  # a megawatt is a data centre
Dollars = Annotated[float, Field(gt=0, le=1e9), _at_least(1e-6)]
Cores = Annotated[int, Field(ge=1, le=10**7)]  # a wafer has a million
Side = Annotated[int, Field(ge=1, le=10**5)]  # rows or columns of a systolic array; the largest built have 256


def _is_family(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(f"{name} is no operator family: {', '.join(FAMILIES)}")
    return name


OperatorFamily = Annotated[str, AfterValidator(_is_family), Field(json_schema_extra={"enum": list(FAMILIES)})]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Compute(_Table):
    """The chip's cores: streaming multiprocessors, compute units, tiles, NeuronCores."""

    cores: Cores
    clock_ghz: Gigahertz
    concurrent_kernels: Annotated[int, Field(ge=1, le=10**4)] = 1  # GPUs run 128; the replay looks at each of them


class Matrix(_Table):
    """The matrix engine. ``tflops`` is the dense peak of the whole chip, by dtype of the inputs."""

    kind: Literal["tile", "systolic"]
    rows: Side | None = None
    columns: Side | None = None
    arrays: Cores = 1
    sustained: Annotated[Fraction | None, Field(description="best large GEMM over peak")] = None
    tflops: Annotated[dict[Key, Rate], Field(min_length=1, max_length=64)]

    @model_validator(mode="after")
    def _systolic_has_a_shape(self) -> Matrix:
        if self.kind == "systolic" and (self.rows is None or self.columns is None):
            raise ValueError("a systolic matrix engine needs rows and columns")
        for dtype in self.tflops:
            if dtype not in DTYPES and dtype != "tf32":
                raise ValueError(f"tflops names {dtype}, which is not a torch dtype: give float32, bfloat16, int8, ...")
        return self


class Vector(_Table):
    """The vector units: rate per dtype, and special functions (exp, tanh, ...) per second."""

    tflops: Annotated[dict[Key, Rate], Field(max_length=64)]
    special_tops: Rate | None = None

    @model_validator(mode="after")
    def _has_float32(self) -> Vector:
        if "float32" not in self.tflops:
            raise ValueError("tflops needs float32: the rates of dtypes without an entry follow from it")
        return self


class Scratchpad(_Table):
    """The memory of each core that software manages; the bandwidth is that of all cores together."""

    kib_per_core: Capacity
    bandwidth_tb_s: Rate | None = None


class Cache(_Table):
    """The last cache level before device memory."""

    mib: Capacity
    bandwidth_tb_s: Rate | None = None


class Irregular(_Table):
    """Access to memory that is neither streamed nor tiled: transposed copies, gather, scans, sorting."""

    latency_ns: Annotated[float | None, Field(gt=0, le=1e6, description="an access that waits for the one before")] = (
        None
    )
    sectors_tb_s: Annotated[Rate | None, Field(description="last cache, one element used of each sector")] = None


class Memory(_Table):
    """Device memory."""

    # The virtual chip reserves addresses for the whole capacity, which must be at least one page.
    device_gib: Annotated[float, Field(gt=0, le=4096, description="capacity in GiB (2**30 bytes)"), _at_least(1e-5)]
    usable_gib: Annotated[float | None, Field(gt=0, le=4096, description="total that the driver reports")] = None
    context_mib: Annotated[float, Field(ge=0, le=1e6, description="taken by the driver's context and libraries")] = 0
    blas_workspace_mib: Annotated[
        float, Field(ge=0, le=1e5, description="kept by torch for products, per host thread and stream (cuBLAS)")
    ] = 0
    blas_lt_workspace_mib: Annotated[
        float, Field(ge=0, le=1e5, description="kept beside it for products with a bias (cublasLt)")
    ] = 0
    bandwidth_gb_s: Rate
    sustained: Annotated[Fraction | None, Field(description="streaming read over peak")] = None
    fresh_gb_s: Annotated[Rate | None, Field(description="first write to a fresh page of the host")] = None

    @model_validator(mode="after")
    def _usable_memory_exists(self) -> Memory:
        total = self.usable_gib if self.usable_gib is not None else self.device_gib
        if total > self.device_gib:
            raise ValueError(f"usable_gib is {total:g}, more than device_gib {self.device_gib:g}")
        if total * 2**30 - self.context_mib * 2**20 < 4096:  # a page
            raise ValueError(f"context_mib is {self.context_mib:g}, which leaves nothing of {total:g} GiB")
        return self


class Link(_Table):
    """The link to the host."""

    kind: Literal["pcie", "usb", "ethernet", "shared"]
    generation: Annotated[int, Field(ge=1, le=100)] | None = None
    lanes: Annotated[int, Field(ge=1, le=1024)] | None = None
    h2d_gb_s: Rate
    d2h_gb_s: Rate
    latency_us: Annotated[float, Field(ge=0, le=1e6)]

    @property
    def text(self) -> str:
        """The link as text: ``pcie3 x16``."""
        generation = "" if self.generation is None else str(self.generation)
        return f"{self.kind}{generation}" + ("" if self.lanes is None else f" x{self.lanes}")


class Interconnect(_Table):
    """One link to another chip, in one direction."""

    kind: Text
    gb_s: Rate


class Launch(_Table):
    """The device's overhead for one launch, and the number of launches that may be pending."""

    eager_us: Microseconds | None = None
    graph_us: Microseconds | None = None
    queue_depth: Annotated[int, Field(ge=1, le=10**6)] = 1024  # the replay keeps eight bytes for each, per device
    copy_engines: Literal[1, 2] = 2
    attention_plan_ms: Annotated[
        float | None, Field(gt=0, le=1e5, description="host time for the library's plan of an attention of a new shape")
    ] = None


class Ops(_Table):
    """The dtypes that the chip supports. ``groups`` overrides them per operator family; ``host`` lists exceptions.

    Products also run in every dtype of ``[matrix.tflops]``, and copies and casts in all dtypes: see `Chip.supports`.

    An exception is an operator without its overload, ``aten::topk``, or with one dtype, ``aten::topk int64``.
    ``tf32`` lists the products whose library follows torch's switches for TF32.
    """

    dtypes: Annotated[list[Key], Field(max_length=64)]
    groups: Annotated[dict[Key, Annotated[list[Key], Field(max_length=64)]], Field(max_length=64)] = {}
    host: Annotated[list[Key], Field(max_length=5000)] = []  # torch has some 3,000 operators
    tf32: Annotated[list[Key], Field(max_length=len(TF32))] = []

    @model_validator(mode="after")
    def _names_are_known(self) -> Ops:
        for group, dtypes in [("dtypes", self.dtypes), *self.groups.items()]:
            if group != "dtypes" and group not in FAMILIES:
                raise ValueError(f"groups names {group}: the groups are {', '.join(FAMILIES)}")
            for dtype in dtypes:
                if dtype not in DTYPES:
                    raise ValueError(f"{group} names {dtype}, which is not a torch dtype: give float32, int64, ...")
        for name in self.tf32:
            if name not in TF32:
                raise ValueError(f"tf32 names {name}: the products are {', '.join(TF32)}")
        for entry in self.host:
            op, _, dtype = entry.partition(" ")
            if "::" not in op or (dtype and dtype not in DTYPES):
                raise ValueError(
                    f"host names {entry!r}: write an operator, aten::topk, or with a dtype, aten::topk int64"
                )
        return self


class Kernels(_Table):
    """The chip's limits for a program's own kernels.

    ``grid`` is the largest grid along x, y and z. Tiles must fit ``[scratchpad]``. ``limits`` decides if a kernel
    beyond a limit raises an error, gives a warning, or neither.
    """

    limits: Literal["error", "warning", "off"] = "warning"
    # 2**31 - 1 is CUDA's limit along x.
    grid: Annotated[list[Annotated[int, Field(ge=1, le=2**31 - 1)]], Field(min_length=1, max_length=3)] | None = None


class Library(_Table):
    """Measured rates of the chip's library for products, attention and convolutions; without them, `Constants` holds.

    Attributes:
        softmax_overlap: p of (products^p + softmax^p)^(1/p), the time of fused attention in 16 bits whose products, at
            the rate ``matrix.sustained``, run while the softmax does.
        attention_backward: rate of the products in the backward pass of such attention, over peak.
        flash: rate of such attention, with its softmax, in the kernels that torch brings along, over peak.
        sustained: dtype -> best large product over peak, where it differs from ``matrix.sustained``.
        unaligned: dtype -> rate of products whose rows do not start at multiples of 16 bytes, over the sustained rate.
        outer: dtype -> rate of products whose k is the outer dimension of both factors, over the sustained rate.
        convolution: dtype -> rate of convolutions over that of equal products.
        filter_gradient: rate of the product for the gradient of a convolution's filter over that of an equal product.
        winograd: speed of a 3 x 3 convolution in float32 over that of its product.
        vector_tile: operand traffic of products on the vector units, as `Constants.small_tile_vector`.
        vector_step: cycles per element along k that a tile alone on its core waits beyond its arithmetic there.
        cluster: dtype -> tiles of a product that load the rows or columns that they share once, in a cluster of cores.
        channels_last: dtype -> share of the sustained bandwidth that conversions to and from channels last reach, for
            dtypes whose convolutions want that layout; TF32 always does.
        channels_first: the same for dtypes whose convolutions want channels first.
        depthwise: rate of PyTorch's own depthwise kernels over the vector units' peak in float32, an output's addresses
            counted as 7 taps.
        depthwise_channels_last: dtype -> rate of the library's depthwise kernels over the same peak.
    """

    attention_backward: Fraction | None = None
    flash: Fraction | None = None
    softmax_overlap: Annotated[float, Field(ge=1, le=8)] | None = None
    sustained: Annotated[dict[Key, Fraction], Field(max_length=64)] = {}
    unaligned: Annotated[dict[Key, Fraction], Field(max_length=64)] = {}
    outer: Annotated[dict[Key, Fraction], Field(max_length=64)] = {}
    convolution: Annotated[dict[Key, Fraction], Field(max_length=64)] = {}
    filter_gradient: Fraction = 1.0
    winograd: Annotated[Factor | None, Field(description="1 if the library has no such kernels")] = None
    vector_tile: Factor | None = None
    vector_step: Factor | None = None
    cluster: Annotated[dict[Key, Factor], Field(max_length=64)] = {}
    channels_last: Annotated[dict[Key, Fraction], Field(max_length=64)] = {}
    channels_first: Annotated[dict[Key, Fraction], Field(max_length=64)] = {}
    depthwise: Fraction | None = None
    depthwise_channels_last: Annotated[dict[Key, Fraction], Field(max_length=64)] = {}


class Numerics(_Table):
    """Conversions of the matrix engine's inputs, and the format of its accumulator."""

    matmul_input: Text
    accumulate: Text


class Power(_Table):
    """Power in watts."""

    idle_w: Watts | None = None
    tdp_w: Annotated[float, Field(gt=0, le=1e6)]

    @property
    def at_rest_w(self) -> float:
        """Idle power; a tenth of the TDP unless the chip file has it."""
        return self.idle_w if self.idle_w is not None else self.tdp_w * 0.1  # chosen


class Price(_Table):
    """Price in US dollars."""

    usd: Dollars | None = None
    usd_per_hour: Dollars | None = None


class _Sourced(_Table):
    name: Text
    vendor: Text
    description: Text
    invented: bool = False
    sources: Annotated[dict[Key, Source], Field(max_length=1000)] = {}  # a file has some 100 numbers

    @model_validator(mode="after")
    def _every_number_has_a_source(self) -> _Sourced:
        for _, mistake in source_mistakes(self.model_dump(exclude_unset=True)):
            raise ValueError(mistake)
        return self


class Chip(_Sourced):
    """A chip file.

    A number's key ends in its unit. ``[sources]`` has an entry for every number or for its table, under the same
    dotted name, unless the file says ``invented = true``. ``efficiency`` is measured speed over the model's, for the
    kernels of an operator (``gelu``) or a family (``softmax``). ``streams`` is the share of the sustained bandwidth
    that a family's kernels reach.
    """

    kind: Literal["gpu", "tpu", "ipu", "npu", "cpu"]
    modes: Annotated[list[Literal["eager", "graph"]], Field(min_length=1, max_length=2)]
    compute: Compute
    matrix: Matrix
    vector: Vector
    scratchpad: Scratchpad | None = None
    cache: Cache | None = None
    memory: Memory
    irregular: Irregular = Irregular()
    link: Link
    interconnect: Interconnect | None = None
    launch: Launch = Launch()
    library: Library = Library()
    efficiency: Annotated[dict[Key, Factor], Field(max_length=500)] = {}
    streams: Annotated[dict[Key, Factor], Field(max_length=64)] = {}
    ops: Ops
    kernels: Kernels = Kernels()
    numerics: Numerics
    power: Power | None = None
    price: Price | None = None

    @property
    def device_bytes(self) -> int:
        """Capacity of one device in bytes, as its driver reports it."""
        total = self.memory.usable_gib
        return int((self.memory.device_gib if total is None else total) * 2**30)

    @property
    def context_bytes(self) -> int:
        """The part of `device_bytes` that the driver's context and its libraries take."""
        return int(self.memory.context_mib * 2**20)

    @property
    def blas_bytes(self) -> int:
        """The workspace that torch keeps for the products of one host thread and stream."""
        return int(self.memory.blas_workspace_mib * 2**20)

    @property
    def blas_lt_bytes(self) -> int:
        """The workspace that torch keeps beside `blas_bytes` for products with a bias."""
        return int(self.memory.blas_lt_workspace_mib * 2**20)

    @property
    def room_bytes(self) -> int:
        """The part of `device_bytes` that allocations can take."""
        return self.device_bytes - self.context_bytes

    def joules(self, seconds: float, busy: float) -> float | None:
        """Return the energy of a time in which the chip computes for `busy` seconds; None without ``[power]``.

        It is an upper bound: idle power all the time, the rest of the TDP while the chip computes.
        """
        if self.power is None:
            return None
        idle = self.power.at_rest_w
        return idle * seconds + (self.power.tdp_w - idle) * busy

    def supports(self, op: str, family: str, dtype: str) -> bool:
        """Return True if the chip runs an operator (``aten::topk``, with or without overload) on a dtype.

        Copies and casts need no arithmetic, so they run in every dtype. A dtype with a peak of the matrix engine also
        runs in products, unless ``groups`` lists the dtypes of the family. Operators on sparse tensors run only in the
        dtypes of ``groups.sparse``.
        """
        name = op.split(".")[0]
        forms = {name, name.removesuffix("_")}
        if any(form in self.ops.host or f"{form} {dtype}" in self.ops.host for form in forms):
            return False
        group = "convolution" if family == "depthwise" else family
        if family == "sparse":
            return dtype in self.ops.groups.get(family, [])
        if family in ("copy", "collective") or name in CASTS or dtype in self.ops.groups.get(group, self.ops.dtypes):
            return True
        return group in PRODUCTS and group not in self.ops.groups and matrix_dtype(dtype) in self.matrix.tflops


class HostDispatch(_Table):
    """Host time of one eager launch, by class of operator.

    A launch takes its class's time and ``launch_us``, in a backward pass also ``node_us``, and each of its views
    ``view_us``. All of it is multiplied by ``program`` where the launch before was another one, except where an
    optimizer repeats an operator, and by ``backward`` in a backward pass.
    """

    pointwise_us: Microseconds
    norm_us: Microseconds
    matmul_us: Microseconds
    view_us: Microseconds
    copy_us: Microseconds
    synchronize_us: Microseconds
    backward: Annotated[Fraction, Field(description="of the above, for launches by autograd")]
    families: Annotated[
        dict[OperatorFamily, Microseconds],
        Field(description="of families that take another time than their class of the above"),
    ] = {}
    backward_families: Annotated[
        dict[OperatorFamily, Microseconds],
        Field(description="of families whose launches by autograd take another time"),
    ] = {}
    launch_us: Annotated[Microseconds | None, Field(description="the driver's call, beside the times above")] = None
    node_us: Annotated[Microseconds | None, Field(description="one node of autograd, beside its launch")] = None
    tensor_us: Annotated[Microseconds | None, Field(description="one tensor of an optimizer's launch over lists")] = (
        None
    )
    event_us: Annotated[Microseconds | None, Field(description="recording an event, or a stream's wait for it")] = None
    program: Annotated[float, Field(ge=1, le=100, description="a launch between others over one in a loop")] = 1.0


class HostCompute(_Table):
    """The processor that runs fallbacks."""

    cores: Cores
    clock_ghz: Gigahertz
    vector_tflops: Rate
    memory_gb_s: Rate
    cache_mib: Capacity
    kernel_us: Microseconds
    pageable_gb_s: Annotated[Rate, Field(description="copies between pageable and pinned memory")]


class Host(_Sourced):
    """A host file."""

    compute: HostCompute
    dispatch: HostDispatch
    idle_w: Watts | None = None


Chips = Annotated[int, Field(ge=1, le=10**6)]  # of a node or cluster; the largest have some 100,000


class Links(_Table):
    """What connects the chips of a node.

    Attributes:
        kind: decides which protocols of `pricing.collective` apply.
        gb_s: by size of the group, what one chip sends to the others, in one direction. A group has the rate of the
            smallest size that it fits into. For ``nvlink`` and ``ici`` it is the data sheet's, else what large
            collectives reach.
        all_gather_us: measured time of an all-gather of 512 bytes over all chips of the node.
        reduction: True if the switches add, so that an all-reduce sends its data once.
        dimensions: of a torus.
    """

    kind: Literal["nvlink", "pcie", "xgmi", "ethernet", "ici"]
    gb_s: Annotated[dict[Key, Rate], Field(min_length=1, max_length=64)]
    all_gather_us: Microseconds | None = None
    reduction: bool = False
    dimensions: Annotated[int, Field(ge=1, le=6)] = 1

    @model_validator(mode="after")
    def _sizes_are_numbers(self) -> Links:
        for size in self.gb_s:
            if not size.isascii() or not size.isdigit() or len(size) > 7 or int(size) < 2:
                raise ValueError(f"gb_s names {short(size)}: write a number of chips from 2, in quotes")
        return self

    @property
    def rates(self) -> list[tuple[int, float]]:
        """Size of the group and bytes per second of one chip, from the smallest group to the largest."""
        return sorted((int(size), rate * 1e9) for size, rate in self.gb_s.items())


class Nics(_Table):
    """The network cards of a node: their number, and the rate of each in one direction."""

    nics: Annotated[int, Field(ge=1, le=10**4)]
    gb_s: Rate


class Node(_Sourced):
    """A node file: chips that share fast links, from two cards in a workstation to a pod of thousands."""

    chip: Key
    host: Key | None = None
    chips: Chips
    links: Links
    network: Nics | None = None

    @model_validator(mode="after")
    def _every_size_has_a_rate(self) -> Node:
        largest = self.links.rates[-1][0]
        if self.chips > 1 and largest != self.chips:
            raise ValueError(f"links.gb_s ends at {largest} chips, but the node has {self.chips}")
        return self


class Network(_Table):
    """The network between nodes.

    Attributes:
        sustained: what large collectives reach of the cards' rate.
        pod_nodes: number of nodes that the network connects at full rate.
        oversubscription: between pods, the sum of the cards' rates over that of the uplinks.
    """

    sustained: Fraction | None = None
    pod_nodes: Chips | None = None
    oversubscription: Annotated[float, Field(ge=1, le=1e3)] = 1.0


class Cluster(_Sourced):
    """A cluster file: equal nodes and the network between them."""

    node: Key
    nodes: Chips
    network: Network = Network()


def numbers(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a file's numbers."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}"


def source_mistakes(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the numbers of a file that have no source, and the sources of no number, each with what is wrong."""
    sources = data.get("sources", {})
    if not isinstance(sources, dict):
        return
    keys = list(numbers({key: value for key, value in data.items() if key != "sources"}))
    for key in keys:
        parts = key.split(".")
        above = (".".join(parts[: i + 1]) for i in range(len(parts)))
        if data.get("invented") is not True and not any(part in sources for part in above):
            yield key, f"{key} has no source: add it under [sources], or say invented = true"
    for source in sources:
        if not any(key == source or key.startswith(source + ".") for key in keys):
            yield source, f"[sources] names {source}, which is not a number of this file"
