"""Kernels that do what those of Triton's tutorials do, as `@triton.jit` functions that know of no chip."""

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets, mask=mask) + tl.load(y_ptr + offsets, mask=mask), mask=mask)


def add(x, y):
    out = torch.empty_like(x)
    add_kernel[(triton.cdiv(x.numel(), 1024),)](x, y, out, x.numel(), BLOCK=1024)
    return out


@triton.jit
def softmax_kernel(out_ptr, in_ptr, in_stride, out_stride, rows, columns, BLOCK: tl.constexpr):
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0)):
        places = tl.arange(0, BLOCK)
        mask = places < columns
        data = tl.load(in_ptr + row * in_stride + places, mask=mask, other=-float("inf"))
        top = tl.exp(data - tl.max(data, axis=0))
        tl.store(out_ptr + row * out_stride + places, top / tl.sum(top, axis=0), mask=mask)


def softmax(x, programs=None):
    out = torch.empty_like(x)
    rows, columns = x.shape
    block = triton.next_power_of_2(columns)
    softmax_kernel[(programs or rows,)](out, x, x.stride(0), out.stride(0), rows, columns, BLOCK=block)
    return out


@triton.jit
def leaky_relu(x):
    return tl.where(x >= 0, x, 0.01 * x)


@triton.jit
def matmul_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, stride_am, stride_ak, stride_bk, stride_bn, stride_cm, stride_cn,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    in_group = GROUP * tiles_n
    group = pid // in_group
    first = group * GROUP
    size = min(tiles_m - first, GROUP)
    pid_m = first + (pid % in_group) % size
    pid_n = (pid % in_group) // size
    rows = (pid_m * BM + tl.arange(0, BM)) % M
    columns = (pid_n * BN + tl.arange(0, BN)) % N
    depth = tl.arange(0, BK)
    a_ptrs = a_ptr + rows[:, None] * stride_am + depth[None, :] * stride_ak
    b_ptrs = b_ptr + depth[:, None] * stride_bk + columns[None, :] * stride_bn
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, tl.cdiv(K, BK)):
        a = tl.load(a_ptrs, mask=depth[None, :] < K - k * BK, other=0.0)
        b = tl.load(b_ptrs, mask=depth[:, None] < K - k * BK, other=0.0)
        total = tl.dot(a, b, total)
        a_ptrs += BK * stride_ak
        b_ptrs += BK * stride_bk
    if ACTIVATION == "leaky_relu":
        total = leaky_relu(total)
    c = total.to(c_ptr.dtype.element_ty)
    out_m = pid_m * BM + tl.arange(0, BM)
    out_n = pid_n * BN + tl.arange(0, BN)
    mask = (out_m[:, None] < M) & (out_n[None, :] < N)
    tl.store(c_ptr + stride_cm * out_m[:, None] + stride_cn * out_n[None, :], c, mask=mask)


def matmul(a, b, activation="", blocks=(64, 64, 32)):
    (m, k), n = a.shape, b.shape[1]
    c = torch.empty((m, n), device=a.device, dtype=a.dtype)
    bm, bn, bk = blocks
    grid = (triton.cdiv(m, bm) * triton.cdiv(n, bn),)
    matmul_kernel[grid](
        a, b, c, m, n, k, *a.stride(), *b.stride(), *c.stride(), BM=bm, BN=bn, BK=bk, GROUP=8, ACTIVATION=activation
    )
    return c


@triton.jit
def dropout_kernel(x_ptr, out_ptr, n, p, seed, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    keep = tl.rand(seed, offsets) > p
    tl.store(out_ptr + offsets, tl.where(keep, x / (1 - p), 0.0), mask=mask)


def dropout(x, p, seed):
    out = torch.empty_like(x)
    dropout_kernel[(triton.cdiv(x.numel(), 1024),)](x, out, x.numel(), p, seed, BLOCK=1024)
    return out


@triton.jit
def layer_norm_kernel(x_ptr, y_ptr, w_ptr, b_ptr, mean_ptr, rstd_ptr, stride, N, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    y_ptr += row * stride
    x_ptr += row * stride
    mean = 0.0
    partial = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, N, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        partial += tl.load(x_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)
    mean = tl.sum(partial, axis=0) / N
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, N, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)
        x = tl.where(columns < N, x - mean, 0.0)
        squares += x * x
    rstd = 1 / tl.sqrt(tl.sum(squares, axis=0) / N + eps)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)
    for start in range(0, N, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < N
        w, b = tl.load(w_ptr + columns, mask=mask), tl.load(b_ptr + columns, mask=mask)
        x = tl.load(x_ptr + columns, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + columns, (x - mean) * rstd * w + b, mask=mask)


@triton.jit
def layer_norm_dx_kernel(
    dx_ptr, dy_ptr, dw_ptr, db_ptr, x_ptr, w_ptr, mean_ptr, rstd_ptr, lock_ptr, stride, N,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    mask = columns < N
    x_ptr += row * stride
    dy_ptr += row * stride
    dx_ptr += row * stride
    slot = row % GROUPS
    lock_ptr += slot
    count_ptr = lock_ptr + GROUPS
    dw_ptr += slot * N + columns
    db_ptr += slot * N + columns
    x = tl.load(x_ptr + columns, mask=mask, other=0).to(tl.float32)
    dy = tl.load(dy_ptr + columns, mask=mask, other=0).to(tl.float32)
    w = tl.load(w_ptr + columns, mask=mask).to(tl.float32)
    mean, rstd = tl.load(mean_ptr + row), tl.load(rstd_ptr + row)
    normal = tl.where(mask, (x - mean) * rstd, 0.0)
    wdy = tl.where(mask, w * dy, 0.0)
    c1 = tl.sum(normal * wdy, axis=0) / N
    c2 = tl.sum(wdy, axis=0) / N
    tl.store(dx_ptr + columns, (wdy - (normal * c1 + c2)) * rstd, mask=mask)
    partial_dw, partial_db = (dy * normal).to(w.dtype), dy.to(w.dtype)
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    if tl.load(count_ptr) == 0:
        tl.atomic_xchg(count_ptr, 1)
    else:
        partial_dw += tl.load(dw_ptr, mask=mask)
        partial_db += tl.load(db_ptr, mask=mask)
    tl.store(dw_ptr, partial_dw, mask=mask)
    tl.store(db_ptr, partial_db, mask=mask)
    tl.debug_barrier()
    tl.atomic_xchg(lock_ptr, 0)


@triton.jit
def layer_norm_dwdb_kernel(dw_ptr, db_ptr, out_w_ptr, out_b_ptr, M, N, BM: tl.constexpr, BN: tl.constexpr):
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    dw = tl.zeros((BM, BN), dtype=tl.float32)
    db = tl.zeros((BM, BN), dtype=tl.float32)
    for i in range(0, M, BM):
        rows = i + tl.arange(0, BM)
        mask = (rows[:, None] < M) & (columns[None, :] < N)
        offsets = rows[:, None] * N + columns[None, :]
        dw += tl.load(dw_ptr + offsets, mask=mask, other=0.0)
        db += tl.load(db_ptr + offsets, mask=mask, other=0.0)
    tl.store(out_w_ptr + columns, tl.sum(dw, axis=0), mask=columns < N)
    tl.store(out_b_ptr + columns, tl.sum(db, axis=0), mask=columns < N)


class LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps=1e-5):
        y = torch.empty_like(x)
        m, n = x.shape
        mean = torch.empty((m,), dtype=torch.float32, device=x.device)
        rstd = torch.empty((m,), dtype=torch.float32, device=x.device)
        block = triton.next_power_of_2(n)
        layer_norm_kernel[(m,)](x, y, weight, bias, mean, rstd, x.stride(0), n, eps, BLOCK=block)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.block = block
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w, _, mean, rstd = ctx.saved_tensors
        m, n = x.shape
        groups = 64
        locks = torch.zeros(2 * groups, dtype=torch.int32, device=w.device)
        partial_w = torch.zeros((groups, n), dtype=x.dtype, device=w.device)
        partial_b = torch.zeros((groups, n), dtype=x.dtype, device=w.device)
        dw, db, dx = torch.empty_like(w), torch.empty_like(w), torch.empty_like(dy)
        layer_norm_dx_kernel[(m,)](
            dx, dy, partial_w, partial_b, x, w, mean, rstd, locks, x.stride(0), n, GROUPS=groups, BLOCK=ctx.block
        )
        grid = (triton.cdiv(n, 128),)
        layer_norm_dwdb_kernel[grid](partial_w, partial_b, dw, db, min(groups, m), n, BM=32, BN=128)
        return dx, dw, db, None


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, scale, stride_h, stride_s, LENGTH, CAUSAL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1)
    base = head * stride_h
    rows = block * BM + tl.arange(0, BM)
    places = tl.arange(0, D)
    q = tl.load(q_ptr + base + rows[:, None] * stride_s + places[None, :], mask=rows[:, None] < LENGTH, other=0.0)
    top = tl.full([BM], float("-inf"), dtype=tl.float32)
    weight = tl.zeros([BM], dtype=tl.float32)
    total = tl.zeros([BM, D], dtype=tl.float32)
    end = LENGTH
    if CAUSAL:
        end = tl.minimum((block + 1) * BM, LENGTH)
    for start in range(0, end, BN):
        columns = start + tl.arange(0, BN)
        k = tl.load(
            k_ptr + base + columns[None, :] * stride_s + places[:, None], mask=columns[None, :] < LENGTH, other=0.0
        )
        scores = tl.dot(q, k) * (scale * 1.44269504)
        keep = columns[None, :] < LENGTH
        if CAUSAL:
            keep = keep & (rows[:, None] >= columns[None, :])
        scores = tl.where(keep, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        p = tl.math.exp2(scores - higher[:, None])
        alpha = tl.math.exp2(top - higher)
        weight = weight * alpha + tl.sum(p, 1)
        v = tl.load(
            v_ptr + base + columns[:, None] * stride_s + places[None, :], mask=columns[:, None] < LENGTH, other=0.0
        )
        total = total * alpha[:, None]
        total = tl.dot(p.to(v.dtype), v, total)
        top = higher
    out = (total / weight[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + base + rows[:, None] * stride_s + places[None, :], out, mask=rows[:, None] < LENGTH)


def attention(q, k, v, causal, blocks=(64, 64)):
    batch, heads, length, depth = q.shape
    out = torch.empty_like(q)
    grid = (triton.cdiv(length, blocks[0]), batch * heads)
    attention_kernel[grid](
        q, k, v, out, depth**-0.5, q.stride(1), q.stride(2), length, CAUSAL=causal, BM=blocks[0], BN=blocks[1], D=depth
    )
    return out


@triton.jit
def grouped_kernel(
    a_addresses, b_addresses, c_addresses, sizes_ptr, strides_ptr, count,
    PROGRAMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    last = 0
    for g in range(count):
        m = tl.load(sizes_ptr + g * 3)
        n = tl.load(sizes_ptr + g * 3 + 1)
        k = tl.load(sizes_ptr + g * 3 + 2)
        tiles_m, tiles_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
        tiles = tiles_m * tiles_n
        while tile >= last and tile < last + tiles:
            lda = tl.load(strides_ptr + g * 3)
            ldb = tl.load(strides_ptr + g * 3 + 1)
            ldc = tl.load(strides_ptr + g * 3 + 2)
            a_ptr = tl.load(a_addresses + g).to(tl.pointer_type(tl.float32))
            b_ptr = tl.load(b_addresses + g).to(tl.pointer_type(tl.float32))
            c_ptr = tl.load(c_addresses + g).to(tl.pointer_type(tl.float32))
            inside = tile - last
            rows = inside // tiles_n * BM + tl.arange(0, BM)
            columns = inside % tiles_n * BN + tl.arange(0, BN)
            depth = tl.arange(0, BK)
            a_ptrs = a_ptr + rows[:, None] * lda + depth[None, :]
            b_ptrs = b_ptr + depth[:, None] * ldb + columns[None, :]
            total = tl.zeros((BM, BN), dtype=tl.float32)
            for _ in range(0, tl.cdiv(k, BK)):
                total += tl.dot(tl.load(a_ptrs), tl.load(b_ptrs))
                a_ptrs += BK
                b_ptrs += BK * ldb
            tl.store(c_ptr + rows[:, None] * ldc + columns[None, :], total)
            tile += PROGRAMS
        last = last + tiles


def grouped_gemm(pairs):
    device = pairs[0][0].device
    results = [torch.empty((a.shape[0], b.shape[1]), device=device, dtype=a.dtype) for a, b in pairs]
    sizes, strides = [], []
    for (a, b), c in zip(pairs, results, strict=True):
        sizes += [a.shape[0], b.shape[1], a.shape[1]]
        strides += [a.stride(0), b.stride(0), c.stride(0)]

    def addresses(tensors):
        return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64, device=device)

    grouped_kernel[(5,)](
        addresses([a for a, _ in pairs]), addresses([b for _, b in pairs]), addresses(results),
        torch.tensor(sizes, dtype=torch.int32, device=device), torch.tensor(strides, dtype=torch.int32, device=device),
        len(pairs), PROGRAMS=5, BM=32, BN=32, BK=32,
    )  # fmt: skip
    return results


@triton.jit
def asin_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(out_ptr + offsets, libdevice.asin(tl.load(x_ptr + offsets, mask=mask)), mask=mask)


def asin(x):
    out = torch.empty_like(x)
    asin_kernel[(triton.cdiv(x.numel(), 1024),)](x, out, x.numel(), BLOCK=1024)
    return out


@triton.jit
def descriptor_matmul_kernel(a_ptr, b_ptr, c_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    a = tl.make_tensor_descriptor(a_ptr, shape=[M, K], strides=[K, 1], block_shape=[BM, BK])
    b = tl.make_tensor_descriptor(b_ptr, shape=[N, K], strides=[K, 1], block_shape=[BN, BK])
    c = tl.make_tensor_descriptor(c_ptr, shape=[M, N], strides=[N, 1], block_shape=[BM, BN])
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        row, column = tile // tiles_n * BM, tile % tiles_n * BN
        total = tl.zeros((BM, BN), dtype=tl.float32)
        for k in range(tl.cdiv(K, BK)):
            total = tl.dot(a.load([row, k * BK]), b.load([column, k * BK]).T, total)
        c.store([row, column], total.to(c_ptr.dtype.element_ty))


def descriptor_matmul(a, b, programs=7):
    (m, k), n = a.shape, b.shape[0]
    c = torch.empty((m, n), device=a.device, dtype=a.dtype)
    descriptor_matmul_kernel[(programs,)](a, b, c, m, n, k, BM=32, BN=64, BK=32)
    return c
