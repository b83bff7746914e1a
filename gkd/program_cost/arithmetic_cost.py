"""Counts operations of single HLO instructions: dots, convolutions, element-wise work."""

from __future__ import annotations

import math
import re

import numpy as np

from gkd.program_cost.hlo import Computation, Instruction

_ELEMENTWISE = {
    "add", "subtract", "multiply", "divide", "remainder", "maximum", "minimum", "power", "abs",
    "negate", "exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh",
    "tan", "sine", "cosine", "atan2", "erf", "sqrt", "rsqrt", "cbrt", "floor", "ceil", "sign",
    "round-nearest-afz", "round-nearest-even", "compare", "select", "clamp", "and", "or", "xor",
    "not", "shift-left", "shift-right-logical", "shift-right-arithmetic",
}  # fmt: skip


def matrix_flops(computation: Computation, instruction: Instruction) -> float:
    """Counts the multiplications and additions of a matrix product; 0 for other instructions.

    Matrix products are dots, convolutions, and reductions whose source is a dot: the compiler
    rewrites dots with a narrow result (one query with the keys of its own row) as sums.

    Window positions of a convolution that fall on padding or between dilated inputs are not
    counted, so that a dot which XLA turned into a convolution (a batch axis becomes a dilated
    window) counts as the original dot.

    Args:
      computation: the computation that contains the instruction.
      instruction: any instruction.

    Returns:
      FLOPs of one execution: 2 for each product that is summed.

    Raises:
      ValueError: the instruction calls a library's matrix product, whose shapes do not determine
        the operations.
    """
    if instruction.opcode == "dot":
        left = computation.operand(instruction).shape[0]
        axes = _numbers(instruction, "lhs_contracting_dims")
        contracted = math.prod(left.dimensions[axis] for axis in axes)
        return 2.0 * instruction.shape[0].elements * contracted
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    if _is_summed_dot(instruction):
        return 2.0 * computation.operand(instruction).shape[0].elements
    if instruction.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
        if target and re.search(r"(?i)matmul|gemm|conv(?!ert)", target.group(1)):
            raise ValueError(
                f"{instruction.name} is a call of {target.group(1)}, whose operations cannot be "
                "counted: compile for a backend whose matrix products are dots or convolutions"
            )
    return 0.0


def multiplier_passes(computation: Computation, instruction: Instruction) -> int:
    """Counts the passes of a product through a TPU's bfloat16 multiplier.

    float32 operands are rounded to bfloat16 at the default precision (one pass), and split into
    three bfloat16 parts at the highest: six passes for two such operands, three for one. A dot
    that became a sum does not use the multiplier.

    Args:
      computation: the computation that contains the instruction.
      instruction: a matrix product.

    Returns:
      Passes per execution, 0 to 6.
    """
    if _is_summed_dot(instruction):
        return 0
    match = re.search(r"operand_precision=\{([^}]*)\}", instruction.attributes)
    precision = match.group(1) if match else "default"
    operands = [computation.operand(instruction, index).shape[0].dtype for index in (0, 1)]
    wide = sum(dtype == "f32" for dtype in operands)
    if "highest" in precision:
        return (1, 3, 6)[wide]
    return (1, 2, 3)[wide] if "high" in precision else 1


def elementwise_operations(computation: Computation, instruction: Instruction) -> float:
    """Counts operations outside of matrix products: one per element of the result or reduction.

    Args:
      computation: the computation that contains the instruction.
      instruction: any instruction.

    Returns:
      Operations of one execution.
    """
    if _is_summed_dot(instruction):
        return 0.0
    if instruction.opcode in _ELEMENTWISE or instruction.opcode == "reduce-window":
        return float(instruction.shape[0].elements)
    if instruction.opcode == "reduce":
        return float(computation.operand(instruction).shape[0].elements)
    return 0.0


def _is_summed_dot(instruction):
    return instruction.opcode == "reduce" and instruction.source.endswith("dot_general")


def _convolution(computation, instruction):
    left, right = (computation.operand(instruction, index).shape[0] for index in (0, 1))
    (out,) = instruction.shape
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes).groups()
    spatial = sorted(label for label in labels[0] if label.isdigit())
    settings = {
        name: _window(instruction, name) or [1] * len(spatial)
        for name in ("stride", "lhs_dilate", "rhs_dilate")
    }
    padding = _window(instruction, "pad") or [(0, 0)] * len(spatial)
    positions = 1
    for i, label in enumerate(spatial):
        inputs, window, outputs = (
            array.dimensions[names.index(label)]
            for array, names in zip((left, right, out), labels, strict=True)
        )
        steps = (settings[name][i] for name in ("stride", "lhs_dilate", "rhs_dilate"))
        positions *= _valid_positions(inputs, window, outputs, *steps, padding[i][0])
    batch = left.dimensions[labels[0].index("b")]
    features = right.dimensions[labels[1].index("i")]  # of one feature group
    outputs = out.dimensions[labels[2].index("f")]
    groups = _numbers(instruction, "batch_group_count") or [1]
    return 2.0 * positions * batch * features * outputs / groups[0]


def _valid_positions(inputs, window, outputs, stride, dilation, window_dilation, padding):
    """Counts pairs of an output and a window position that meet an input, along one axis."""
    at = (
        np.arange(outputs)[:, None] * stride
        + np.arange(window)[None, :] * window_dilation
        - padding
    )
    inside = (at >= 0) & (at <= (inputs - 1) * dilation) & (at % dilation == 0)
    return int(inside.sum())


def _window(instruction, name):
    """Reads one setting of a window for every axis, padding as pairs; empty if absent."""
    match = re.search(rf"window=\{{[^}}]*\b{name}=([\w\-]+)", instruction.attributes)
    if not match:
        return []
    axes = match.group(1).split("x")
    if name == "pad":
        return [tuple(int(side) for side in axis.split("_")) for axis in axes]
    return [int(axis) for axis in axes]


def _numbers(instruction, key):
    match = re.search(rf"\b{key}=\{{?([\d,]*)\}}?", instruction.attributes)
    return [int(number) for number in match.group(1).split(",") if number] if match else []
