"""Greedy tokens of a checkpoint by our decode step: real routing and real KV, which a user can compare."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from bench import machine
from bench.errors import BadRequest
from bench.measure.checkpoint import Tensors, model_in, step_weights, stored_type
from bench.measure.memory import free_memory
from bench.measure.step_parts import OP, in_turn
from kernels.decode_step.inputs import bookkeeping, caches
from kernels.decode_step.parts import memory_shape
from kernels.decode_step.wiring import shape_of
from kernels.op import Impl, Target, discover, implementations

if TYPE_CHECKING:
    from kernels.decode_step.op import StepCase

PAGE = 16
ORDER = ("triton", "numba", "torch")
"""Which implementation decodes: the first that runs on the target."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Tokens that followed a prompt, and the median seconds of the steps that gave them."""

    directory: str
    impl: str
    dtype: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        steps = f"{len(self.tokens)} greedy tokens of {self.directory} in {self.dtype} by {self.impl}"
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


def implementation(case: StepCase, target: Target) -> Impl[Any]:
    impls = {impl.name: impl for impl in implementations(OP)[0]}
    refusals = {name: impls[name].supports(case, target) for name in ORDER if name in impls}
    found = next((name for name, why in refusals.items() if why is None), None)
    if found is None:
        raise BadRequest("; ".join(f"{name}: {why}" for name, why in refusals.items()))
    return impls[found]


def decode(directory: Path, prompt_ids: str, count: int, target: Target) -> Decoded:
    """Read a checkpoint and decode `count` tokens. Raises `BadRequest`."""
    model, tensors = model_in(directory), Tensors(directory)
    shape, dtype = shape_of(model), stored_type(tensors)
    prompt = prompt_of(prompt_ids, shape.vocab)
    last = len(prompt) + count - 1
    if last > shape.max_context:
        raise BadRequest(f"{last} tokens: {directory} is made for {shape.max_context}")
    case_of = discover()[OP].case_type
    machine.let_waiting_threads_sleep()

    def case_at(T: int) -> StepCase:
        return case_of(model=model, B=1, T=T, page=PAGE, dtype=dtype)

    need = sum(tensor.nbytes for tensor in discover()[OP].inputs(case_at(last), "meta", 0).values())
    if need > 0.8 * (free := free_memory(target)):
        raise BadRequest(f"its weights and cache take {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    impl = implementation(case_at(1), target)
    weights = {name: tensor.to(target.device) for name, tensor in step_weights(case_at(1), tensors).items()}
    tokens, seconds = run(impl, weights, prompt, count, case_at, target)
    return Decoded(directory=str(directory), impl=impl.name, dtype=dtype, prompt=prompt, tokens=tokens, seconds=seconds)


def run(
    impl: Impl[Any], weights: dict[str, Any], prompt: tuple[int, ...], count: int, case_at: Any, target: Target
) -> tuple[tuple[int, ...], float]:
    """The tokens, and the median seconds of the steps after the prompt."""
    import torch

    text, times = list(prompt), []
    before: tuple[StepCase, dict[str, Any]] | None = None
    for position in range(len(prompt) + count - 1):
        case = case_at(position + 1)
        token = torch.tensor([text[position]], device=target.device)
        inputs = weights | {"tokens": token, "next": torch.zeros_like(token)} | bookkeeping(case, target.device, 0)
        carry(case, inputs, before, target)
        launch = impl.prepare(case, inputs, target)
        calls = getattr(launch, "parts", None)
        start = time.perf_counter()
        in_turn([call for _, call in calls])() if calls else launch()
        found = int(inputs["next"][0])
        if position + 1 >= len(prompt):
            text.append(found)
            times.append(time.perf_counter() - start)
        before = case, inputs
    return tuple(text[len(prompt) :]), sorted(times)[len(times) // 2]


def carry(
    case: StepCase, inputs: dict[str, Any], before: tuple[StepCase, dict[str, Any]] | None, target: Target
) -> None:
    """The caches of the step before. Where a page was added, all pages move to their new places."""
    import torch

    for layer in range(case.measured_layers):
        name = f"{layer}.memory"
        if before and memory_shape(before[0]) == memory_shape(case):
            inputs[name] = before[1][name]
            continue
        inputs[name] = torch.zeros(
            memory_shape(case), dtype=inputs["embedding"].dtype, device=inputs["embedding"].device
        )
        if before:
            old_case, old = before
            columns = -(-old_case.T // PAGE)
            pages, to = (each["block_table"][0, :columns].long() for each in (old, inputs))
            for source, cache in zip(caches(old_case, old[name]), caches(case, inputs[name]), strict=True):
                cache[to] = source[pages]
