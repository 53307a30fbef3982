"""The correctness gate: the checks before an implementation's clock starts and after it has stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from kernels.common.compare import Errors, compare
from kernels.op import Impl, Inputs, Launch, Op, Target

STACK_ELEMENTS = 1 << 20
"""Small outputs are compared together, up to so many elements at once."""

PIECE_BYTES = 1 << 28
"""Contents are exchanged in pieces of about so many bytes, since each takes as much memory for a moment."""


def volatile_part(op: Op, inputs: Inputs) -> Inputs:
    """The part of fresh inputs that `exchange` needs. The rest, often nearly all of their memory, need not be kept."""
    return {name: inputs[name] for name in op.volatile}


def exchange(inputs: Inputs, fresh: Inputs) -> None:
    """Swap contents in place. A prepared launch must see the new values; the next launch can be shown the old ones."""
    for name, other in fresh.items():
        for mine, its in zip(pieces(inputs[name]), pieces(other), strict=True):
            before = mine.clone()
            mine.copy_(its)
            its.copy_(before)


def pieces(tensor: Any) -> Sequence[Any]:
    """Views that together are the tensor, each of `PIECE_BYTES` at most or a single row."""
    if not tensor.numel():
        return ()
    return tensor.split(max(1, PIECE_BYTES * len(tensor) // tensor.nbytes)) if tensor.ndim else (tensor,)


class Contents:
    """The first copy of a case: its inputs, whose volatile part is exchanged with `fresh` values, and what is right.

    A reference is computed once for all implementations, and before any of them runs on these values. So what a launch
    does to its inputs cannot change what its output is compared with.
    """

    def __init__(self, op: Op, case: Any, inputs: Inputs, fresh: Inputs) -> None:
        self.op, self.case, self.inputs, self.fresh = op, case, inputs, fresh
        self.changed = False
        self._references: dict[bool, Any] = {}

    def exchange(self) -> None:
        exchange(self.inputs, self.fresh)
        self.changed = not self.changed

    def reference(self) -> Any:
        """Of the present values."""
        if self.changed not in self._references:
            self._references[self.changed] = self.op.reference(self.case, self.inputs)
        return self._references[self.changed]


def poisoned_run(op: Op, case: Any, inputs: Inputs, launch: Launch) -> Any:
    """Run once to learn where the output is, poison it, and run again, so that whatever is left unwritten shows."""
    op.poison(case, inputs, launch())
    return launch()


def late_write(output: Any, target: Target) -> str | None:
    """On a GPU, the reason to refuse an output that still changes after the current stream has finished."""
    if target.kind != "cuda":
        return None
    import torch

    torch.cuda.current_stream().synchronize()
    # contiguous: a transposed output has no view of bytes
    snapshot = output.clone(memory_format=torch.contiguous_format)
    torch.cuda.synchronize()
    same = torch.equal(snapshot.view(torch.uint8), output.contiguous().view(torch.uint8))
    return None if same else "late write: the output still changed after the launch's stream had finished"


def truncates(output: Any, target: Target) -> bool:
    """Triton's interpreter makes bf16 of fp32 by truncation, so results are too small by 0.26% on average."""
    return target.kind == "interpreter" and str(output.dtype) == "torch.bfloat16"


def judged(op: Op, case: Any, inputs: Inputs, output: Any, reference: Any, truncated: bool = False) -> Errors:
    """Compare an output with its reference, as a whole and each of its results by itself."""
    found = op.decoded(case, output)
    errors = compare(found, reference, op.tolerance(case), truncated=truncated)
    return (
        errors if errors.reason else replace(errors, reason=wrong_result(op, case, inputs, found, reference, truncated))
    )


def wrong_result(op: Op, case: Any, inputs: Inputs, found: Any, reference: Any, truncated: bool = False) -> str | None:
    """Which result of a decoded output fails, and why. A truncation may err by twice as much as a rounding."""
    for result in op.results(case, inputs):
        allowed, twice = result.tolerance, 1 + truncated
        allowed = replace(allowed, max_rel=twice * allowed.max_rel, rms_rel=twice * allowed.rms_rel)
        errors = compare(result.of(found), result.of(reference), allowed, truncated=truncated)
        if errors.reason:
            return f"{result.name}: {errors.reason}"
    return None


def check_prepared(contents: Contents, launch: Launch, target: Target) -> Errors:
    """Run on a poisoned output and compare, then change the volatile inputs in place, run and compare again.

    A result that was computed while preparing, or kept from an earlier launch, is wrong for the changed inputs. What
    passes leaves the contents exchanged.
    """
    op, case = contents.op, contents.case
    for changed in (False, True):
        if changed:
            contents.exchange()
        right = contents.reference()
        output = poisoned_run(op, case, contents.inputs, launch)
        late = late_write(output, target)
        errors = judged(op, case, contents.inputs, output, right, truncates(output, target))
        if late:
            errors = replace(errors, reason=late)
        elif changed and not errors.passed:
            errors = replace(errors, reason=f"{errors.reason}, after its inputs changed in place")
        if not errors.passed:
            return errors
    return errors


def check(op: Op, impl: Impl, case: Any, target: Target) -> Errors:
    """The gate for one implementation on its own: draw inputs, prepare, and `check_prepared`."""
    fresh = volatile_part(op, op.inputs(case, target.device, 1))
    contents = Contents(op, case, op.inputs(case, target.device, 0), fresh)
    contents.reference()
    return check_prepared(contents, impl.prepare(case, contents.inputs, target), target)


def check_copies(
    op: Op,
    case: Any,
    copies: Sequence[Inputs],
    outputs: Sequence[Sequence[Any]],
    known: Mapping[int, Any] = MappingProxyType({}),
) -> list[Errors]:
    """After timing, compare every copy's output with its own reference, for several implementations at once.

    `outputs[i][k]` is what implementation i left for copy k. The inputs of all copies differ, so a result that was kept
    from one copy is wrong for the others. `known` holds the references of some copies. Returns the worst errors of each
    implementation.
    """
    import torch

    tolerance = op.tolerance(case)
    worst: list[Errors | None] = [None] * len(outputs)
    per_copy = max(1, outputs[0][0].numel()) if outputs else 1
    group = max(1, STACK_ELEMENTS // per_copy)
    for first in range(0, len(copies), group):
        indices = range(first, min(first + group, len(copies)))
        reference = right = torch.stack([known[k] if k in known else op.reference(case, copies[k]) for k in indices])
        if tolerance.each_sequence:
            # the sequences of all copies, one after another
            reference = reference.flatten(0, 1)
        for i, written in enumerate(outputs):
            found = each = torch.stack([op.decoded(case, written[k].detach()) for k in indices])
            if tolerance.each_sequence:
                found = found.flatten(0, 1)
            errors = compare(found, reference, tolerance)
            for at, k in enumerate(indices if errors.passed else ()):
                if reason := wrong_result(op, case, copies[k], each[at], right[at]):
                    errors = replace(errors, reason=reason)
                    break
            if not errors.passed:
                where = f"copies {first} to {indices[-1]}" if group > 1 else f"copy {first}"
                errors = replace(errors, reason=f"{errors.reason}, in {where} of {len(copies)} after timing")
            worst[i] = _worse(worst[i], errors)
    return [errors for errors in worst if errors is not None]


def _worse(one: Errors | None, other: Errors) -> Errors:
    """The larger of each error; of two slopes the one farther from 1."""
    if one is None:
        return other
    return Errors(
        max_rel=max(one.max_rel, other.max_rel),
        rms_rel=max(one.rms_rel, other.rms_rel),
        row_rel=max(one.row_rel, other.row_rel),
        bad_elements=one.bad_elements + other.bad_elements,
        elements=one.elements + other.elements,
        reason=one.reason or other.reason,
        slope=_farther(one.slope, other.slope, 1.0),
        bias=_farther(one.bias, other.bias, 0.0),
        noise=_farther(one.noise, other.noise, 0.0),
    )


def _farther(one: float | None, other: float | None, right: float) -> float | None:
    """The value that is farther from the right one, among those that are known."""
    known = [value for value in (one, other) if value is not None]
    return max(known, key=lambda value: abs(value - right), default=None)
