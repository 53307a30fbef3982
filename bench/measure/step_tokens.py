"""Greedy tokens of a checkpoint by our decode step: real routing and real KV, which a user can compare."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from bench import machine
from bench.errors import BadRequest
from bench.measure.checkpoint import Tensors, formats, model_in, quantization_of, step_weights, stored_type
from bench.measure.step_parts import OP, require_memory
from kernels.op import Impl, Target, discover, implementations

PAGE = 16
ORDER = ("triton", "numba", "torch")
"""Which implementation decodes: the first that runs on the target."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Tokens that followed a prompt, and the median seconds of the steps that gave them."""

    directory: str
    impl: str
    dtype: str
    weights: str
    """The stored type of products, and of experts where it is another one."""
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        stored = "" if self.weights == self.dtype else f" with weights in {self.weights}"
        steps = f"{len(self.tokens)} greedy tokens of {self.directory} in {self.dtype}{stored} by {self.impl}"
        return [
            f"prompt: {','.join(map(str, self.prompt))}",
            f"tokens: {','.join(map(str, self.tokens))}",
            f"{steps}: {self.seconds * 1e3:,.2f} ms a token, the prompt read token by token",
        ]


def prompt_of(text: str, vocab: int, seed: int = 0) -> tuple[int, ...]:
    """`1,2,3`, or eight drawn ids. Raises `BadRequest` for what is no id of the vocabulary."""
    if not text:
        draw = Random(seed)
        return tuple(draw.randrange(vocab) for _ in range(8))
    try:
        ids = tuple(int(each) for each in text.split(","))
    except ValueError:
        raise BadRequest(f"--prompt-ids {text}: expected whole numbers with commas between, such as 1,2,3") from None
    if wrong := [each for each in ids if not 0 <= each < vocab]:
        raise BadRequest(f"--prompt-ids: {wrong[0]} is no token id; the vocabulary has {vocab}")
    return ids


def implementation(case: Any, target: Target) -> Impl[Any]:
    impls = {impl.name: impl for impl in implementations(OP)[0]}
    refusals = {name: impls[name].supports(case, target) for name in ORDER if name in impls}
    found = next((name for name, why in refusals.items() if why is None), None)
    if found is None:
        raise BadRequest("; ".join(f"{name}: {why}" for name, why in refusals.items()))
    return impls[found]


def decode(directory: Path, prompt_ids: str, count: int, target: Target, dequantize: bool = False) -> Decoded:
    """Read a checkpoint and decode `count` tokens. With `dequantize`, weights that no product here takes as they are
    stored are dequantized. Raises `BadRequest`."""
    model, tensors, quantization = model_in(directory), Tensors(directory), quantization_of(directory)
    dtype, op = stored_type(tensors), discover()[OP]
    prompt: tuple[int, ...] = ()
    refused = ""
    for stored in formats(tensors, quantization, dequantize):

        def case_at(T: int, stored: dict[str, str] = stored) -> Any:
            try:
                return op.case_from_dict({"model": model, "B": 1, "T": T, "page": PAGE, "dtype": dtype, **stored})
            except ValueError as error:
                raise BadRequest(f"{directory}: {error}") from None

        try:
            prompt = prompt_of(prompt_ids, case_at(1).vocab)
            last = len(prompt) + count - 1
            machine.let_waiting_threads_sleep()
            require_memory(case_at(last), target)
            impl = implementation(case_at(1), target)
            found = step_weights(case_at(1), tensors, quantization, dequantize)
            break
        except BadRequest as error:
            refused = refused or str(error)
    else:
        raise BadRequest(refused)
    weights = {name: tensor.to(target.device) for name, tensor in found.items()}
    tokens, seconds = run(impl, weights, prompt, count, case_at, target)
    case = case_at(1)
    kinds = f"{case.weights}, experts in {case.experts}" if case.experts else case.weights
    return Decoded(
        directory=str(directory),
        impl=impl.name,
        dtype=dtype,
        weights=kinds,
        prompt=prompt,
        tokens=tokens,
        seconds=seconds,
    )


def run(
    impl: Impl[Any], weights: dict[str, Any], prompt: tuple[int, ...], count: int, case_at: Any, target: Target
) -> tuple[tuple[int, ...], float]:
    """The tokens, and the median seconds of the steps after the prompt."""
    text, times, before = list(prompt), [], None
    for position in range(len(prompt) + count - 1):
        case = case_at(position + 1)
        inputs = case.following(weights, text[position], before, target.device)
        launch = impl.prepare(case, inputs, target)
        start = time.perf_counter()
        launch()
        found = int(inputs["next"][0])
        if position + 1 >= len(prompt):
            text.append(found)
            times.append(time.perf_counter() - start)
        before = case, inputs
    return tuple(text[len(prompt) :]), sorted(times)[len(times) // 2]
