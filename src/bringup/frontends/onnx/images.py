"""ONNX's operators on images and boxes: resizing, sampling, regions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from bringup.frontends.onnx.graph import OnnxError
from bringup.frontends.onnx.operators import Call, Tensor, axes_of, helper_device, ints, operator, scalar

SAMPLING = {
    "linear": "bilinear",
    "cubic": "bicubic",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "nearest": "nearest",
}


@operator("Resize", host=(1, 2, 3))
def resize(
    call: Call, x: Tensor, region: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    axes = axes_of(x.dim(), call("axes"))
    lengths = [x.shape[axis] for axis in axes]
    if sizes is not None and sizes.numel():
        wanted = ints(sizes) or []
        factors = [size / length for size, length in zip(wanted, lengths, strict=True)]
        policy = call("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factor = (min if policy == "not_larger" else max)(factors)
            factors = [factor] * len(axes)
            wanted = [math.floor(length * factor + 0.5) for length in lengths]
    else:
        if scales is None or not scales.numel():
            raise OnnxError("it needs scales or sizes")
        factors = [float(factor) for factor in scales.tolist()]
        wanted = [math.floor(length * factor) for length, factor in zip(lengths, factors, strict=True)]
    crop = [] if region is None or not region.numel() else [float(edge) for edge in region.tolist()]
    changed = [place for place, size in enumerate(wanted) if size != lengths[place] or factors[place] != 1 or crop]
    if method := _library_mode(call, x, [axes[place] for place in changed]):
        method_name, corners = method
        spatial = [place for place in range(len(axes)) if axes[place] >= 2]
        target = {axes[place]: (wanted[place], factors[place]) for place in spatial}
        full = [target.get(axis, (x.shape[axis], 1.0)) for axis in range(2, x.dim())]
        single = call("coordinate_transformation_mode") == "pytorch_half_pixel" and 1 in wanted
        exact = not single and all(size == x.shape[axis + 2] * factor for axis, (size, factor) in enumerate(full))
        if exact or (sizes is not None and sizes.numel() and not single):
            return functional.interpolate(x, size=[size for size, _ in full], mode=method_name, align_corners=corners)
    for place in changed:
        edges = (crop[place], crop[place + len(axes)]) if crop else (0.0, 1.0)
        x = _resize_axis(call, x, axes[place], wanted[place], factors[place], edges)
    return x


@operator("Upsample", host=(1,))
def upsample(call: Call, x: Tensor, scales: Tensor) -> Tensor:
    return resize(call, x, None, scales)


def _library_mode(call: Call, x: Tensor, axes: list[int]) -> tuple[str, bool | None] | None:
    """Return the mode and `align_corners` of torch's interpolation that does the same; None if there is none."""
    mode, how = call("mode", "nearest"), call("coordinate_transformation_mode", "half_pixel")
    if not axes or min(axes) < 2 or x.dim() not in (3, 4, 5) or call("antialias", 0) or not x.is_floating_point():
        return None
    if mode == "nearest":
        fits = how == "asymmetric" and call("nearest_mode", "round_prefer_floor") == "floor"
        return ("nearest", None) if fits else None
    corners = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}.get(how)
    if corners is None:
        return None
    if mode == "linear":
        return {3: "linear", 4: "bilinear", 5: "trilinear"}[x.dim()], corners
    cubic = x.dim() == 4 and call("cubic_coeff_a", -0.75) == -0.75 and not call("exclude_outside", 0)
    return ("bicubic", corners) if cubic else None


def _resize_axis(call: Call, x: Tensor, axis: int, count: int, factor: float, edges: tuple[float, float]) -> Tensor:
    """Resize along one axis by a product with a matrix of weights, as ONNX defines it."""
    length = x.shape[axis]

    def make() -> tuple[Tensor, Tensor]:
        out = torch.arange(count, dtype=torch.float64, device=helper_device(x))
        places, outside = _places(call, out, length, factor, edges)
        weights = _weights(call, places, length, min(factor, 1.0) if call("antialias", 0) else 1.0)
        return weights.to(x.device, x.dtype if x.is_floating_point() else torch.float32), outside.to(x.device)

    weights, outside = call.once(f"{axis} {length} {count} {x.device} {x.dtype}", make)
    if call("mode", "nearest") == "nearest":
        result = x.index_select(axis, torch.argmax(weights, 1))
    else:
        moved = x.movedim(axis, -1)
        moved = moved if x.is_floating_point() else moved.to(torch.float32)
        result = (moved @ weights.t()).movedim(-1, axis)
        result = result if x.is_floating_point() else torch.round(result).to(x.dtype)
    if call("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        view = [1] * x.dim()
        view[axis] = -1
        fill = torch.full((), call("extrapolation_value", 0.0), dtype=result.dtype, device=x.device)
        result = torch.where(outside.reshape(view), fill, result)
    return result


def _places(call: Call, out: Tensor, length: int, factor: float, edges: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return where in the input each element of the output lies, and True for those outside of it."""
    count = len(out)
    how = call("coordinate_transformation_mode", "half_pixel")
    if how == "align_corners":
        whole = length * factor  # ONNX counts the output's length before it is rounded down
        places = out * (length - 1) / (whole - 1) if whole > 1 else out * 0
    elif how == "asymmetric":
        places = out / factor
    elif how == "tf_crop_and_resize":
        begin, end = edges
        inner = (end - begin) * (length - 1)
        places = begin * (length - 1) + (out * inner / (count - 1) if count > 1 else out * 0 + inner / 2)
    elif how == "pytorch_half_pixel":
        places = (out + 0.5) / factor - 0.5 if count > 1 else out * 0
    elif how == "half_pixel_symmetric":
        adjustment = count / (factor * length)
        places = length / 2 * (1 - adjustment) + (out + 0.5) / factor - 0.5
    elif how == "half_pixel":
        places = (out + 0.5) / factor - 0.5
    else:
        raise OnnxError(f"the coordinate transformation {how!r} is unknown")
    return places, (places < 0) | (places > length - 1)


def _weights(call: Call, places: Tensor, length: int, scale: float) -> Tensor:
    """Return the weights of the input's elements for each element of the output.

    Args:
        call: the node.
        places: of the output's elements in the input.
        length: of the input.
        scale: below 1, the filter is widened by it (antialias).
    """
    mode = call("mode", "nearest")
    result = torch.zeros(len(places), length, dtype=torch.float64, device=places.device)
    rows = torch.arange(len(places), device=places.device)
    if mode == "nearest":
        result[rows, _nearest(call, places).clamp(0, length - 1)] = 1
        return result
    reach = math.ceil((2 if mode == "cubic" else 1) / scale)
    middle = torch.floor(places)
    for step in range(-reach - 1, reach + 2):
        index = middle + step
        distance = (index - places).abs() * scale
        weight = (
            torch.clamp(1 - distance, min=0) if mode == "linear" else _cubic(distance, call("cubic_coeff_a", -0.75))
        )
        if call("exclude_outside", 0):
            weight = torch.where((index < 0) | (index >= length), torch.zeros_like(weight), weight)
        result.index_put_((rows, index.clamp(0, length - 1).to(torch.int64)), weight, accumulate=True)
    return result / result.sum(1, keepdim=True)


def _nearest(call: Call, places: Tensor) -> Tensor:
    how = call("nearest_mode", "round_prefer_floor")
    if how == "round_prefer_floor":
        rounded = torch.ceil(places - 0.5)
    elif how == "round_prefer_ceil":
        rounded = torch.floor(places + 0.5)
    else:
        rounded = torch.floor(places) if how == "floor" else torch.ceil(places)
    return rounded.to(torch.int64)


def _cubic(distance: Tensor, a: float) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))


@operator("GridSample")
def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    return functional.grid_sample(
        x,
        grid.to(x.dtype),
        mode=SAMPLING[call("mode", "linear")],
        padding_mode=call("padding_mode", "zeros"),
        align_corners=bool(call("align_corners", 0)),
    )


@operator("AffineGrid", host=(1,))
def affine_grid(call: Call, theta: Tensor, sizes: Tensor) -> Tensor:
    return functional.affine_grid(theta, ints(sizes) or [], align_corners=bool(call("align_corners", 0)))


@operator("RoiAlign")
def roi_align(call: Call, x: Tensor, boxes: Tensor, batch: Tensor) -> Tensor:
    height, width = call("output_height", 1), call("output_width", 1)
    ratio, scale = call("sampling_ratio", 0), call("spatial_scale", 1.0)
    half = 0.5 if call("coordinate_transformation_mode", "half_pixel") == "half_pixel" else 0.0
    pick = torch.amax if call("mode", "avg") == "max" else torch.mean
    results = []
    for box, image in zip(boxes.tolist(), batch.tolist(), strict=True):
        left, top, right, bottom = (edge * scale - half for edge in box)
        tall, wide = bottom - top, right - left
        if not half:
            tall, wide = max(tall, 1.0), max(wide, 1.0)
        rows, columns = (ratio or math.ceil(tall / height)), (ratio or math.ceil(wide / width))
        rows, columns = max(rows, 1), max(columns, 1)
        down = top + (torch.arange(height * rows, device=x.device) + 0.5) * (tall / (height * rows))
        right_of = left + (torch.arange(width * columns, device=x.device) + 0.5) * (wide / (width * columns))
        sampled = _between(x[int(image)], down, right_of, pick is torch.amax)
        parts = sampled.reshape(x.shape[1], height, rows, width, columns, -1)
        results.append(pick(parts, (2, 4, 5)) if pick is torch.amax else parts.sum(5).mean((2, 4)))
    return torch.stack(results) if results else x.new_zeros(0, x.shape[1], height, width)


def _between(image: Tensor, rows: Tensor, columns: Tensor, apart: bool) -> Tensor:
    """Return the four weighted neighbours of every pair of a row and a column, in the last dimension."""

    def ends(places: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inside = (places >= -1) & (places <= length)
        at = places.clamp(0, length - 1)
        low = torch.floor(at).to(torch.int64)
        high = (low + 1).clamp(max=length - 1)
        part = at - low
        return low, high, (1 - part) * inside, part * inside

    top, bottom, of_top, of_bottom = ends(rows, image.shape[1])
    left, right, of_left, of_right = ends(columns, image.shape[2])
    corners = [
        image[:, row][:, :, column] * (of_row[:, None] * of_column)
        for row, of_row in ((top, of_top), (bottom, of_bottom))
        for column, of_column in ((left, of_left), (right, of_right))
    ]
    stacked = torch.stack(corners, -1)
    return stacked if apart else stacked.sum(-1, keepdim=True)


@operator("MaxRoiPool")
def max_roi_pool(call: Call, x: Tensor, boxes: Tensor) -> Tensor:
    height, width = call("pooled_shape")
    results = []
    for image, *box in boxes.tolist():
        left, top, right, bottom = (math.floor(edge * call("spatial_scale", 1.0) + 0.5) for edge in box)
        part = x[int(image), :, top : bottom + 1, left : right + 1]
        results.append(functional.adaptive_max_pool2d(part, (height, width)))
    return torch.stack(results)


@operator("NonMaxSuppression", host=(2, 3, 4))
def non_max_suppression(
    call: Call,
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None = None,
    overlap: Tensor | None = None,
    least: Tensor | None = None,
) -> Tensor:
    count = 0 if most is None else int(scalar(most))
    limit = 0.0 if overlap is None else float(scalar(overlap))
    corners = boxes
    if call("center_point_box", 0):
        middle, half = boxes[..., :2], boxes[..., 2:] / 2
        corners = torch.cat((middle - half, middle + half), -1)
    low, high = torch.minimum(corners[..., :2], corners[..., 2:]), torch.maximum(corners[..., :2], corners[..., 2:])
    area = (high - low).prod(-1)
    shared = torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])
    common = shared.clamp(min=0).prod(-1)
    ratio = common / (area[:, :, None] + area[:, None] - common)
    overlaps = (ratio > limit).cpu()  # the host decides box by box, as runtimes do
    values = scores.cpu()
    chosen: list[list[int]] = []
    for image in range(values.shape[0]):
        for group in range(values.shape[1]):
            row = values[image, group]
            order = torch.sort(row, descending=True, stable=True).indices.tolist()
            picked: list[int] = []
            for place in order:
                if len(picked) == count or (least is not None and row[place] <= scalar(least)):
                    break
                if not any(overlaps[image, place, other] for other in picked):
                    picked.append(place)
            chosen += [[image, group, place] for place in picked]
    return torch.tensor(chosen, dtype=torch.int64).reshape(-1, 3)


@operator("DeformConv")
def deform_conv(
    call: Call, x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    kernel = list(weight.shape[2:])
    strides, dilations = call("strides") or [1, 1], call("dilations") or [1, 1]
    pads, groups, shifts = call("pads") or [0] * 4, call("group", 1), call("offset_group", 1)
    batch, channels, height, width = x.shape
    rows, columns = offset.shape[2:]
    moves = offset.reshape(batch, shifts, *kernel, 2, rows, columns)
    patches_by_place = []
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            down = torch.arange(rows, device=x.device) * strides[0] - pads[0] + row * dilations[0]
            right = torch.arange(columns, device=x.device) * strides[1] - pads[1] + column * dilations[1]
            y = moves[:, :, row, column, 0] + down[:, None]
            z = moves[:, :, row, column, 1] + right
            grid = torch.stack((2 * z / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), -1)
            images = x.reshape(batch * shifts, channels // shifts, height, width)
            part = functional.grid_sample(images, grid.flatten(0, 1).to(x.dtype), align_corners=True)
            if mask is not None:
                weights = mask.reshape(batch, shifts, *kernel, rows, columns)[:, :, row, column]
                part = part * weights.reshape(batch * shifts, 1, rows, columns)
            patches_by_place.append(part.reshape(batch, channels, rows, columns))
    patches = torch.stack(patches_by_place, 2).reshape(batch, groups, -1, rows * columns)
    result = torch.einsum("gok,bgkp->bgop", weight.reshape(groups, weight.shape[0] // groups, -1), patches)
    result = result.reshape(batch, weight.shape[0], rows, columns)
    return result if bias is None else result + bias.reshape(-1, 1, 1)


def _target_loss(call: Call, logs: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    skipped = call("ignore_index", -100)
    return functional.nll_loss(
        logs, target.to(torch.int64), weight, ignore_index=skipped, reduction=call("reduction", "mean")
    )


@operator("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(call: Call, x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    return _target_loss(call, x, target, weight)


@operator("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(call: Call, x: Tensor, target: Tensor, weight: Tensor | None = None) -> Any:
    logs = torch.log_softmax(x, 1)
    return _target_loss(call, logs, target, weight), logs
