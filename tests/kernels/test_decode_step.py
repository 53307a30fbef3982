"""A decode step against models that nobody here wrote: Hugging Face transformers, with the same random weights."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.devices import find
from bench.measure.gate import check
from kernels.common import paging
from kernels.decode_step import states
from kernels.decode_step.blocks import attends, has_attention, stateful
from kernels.decode_step.inputs import caches
from kernels.decode_step.op import OP, StepCase
from kernels.decode_step.parts import lengths, memory_shape, parts
from kernels.decode_step.peers import traced
from kernels.decode_step.states import memory_of, parameters, state_case
from kernels.decode_step.toys import TOYS
from kernels.decode_step.wiring import shape_of, wiring_of
from kernels.op import Impl, Target, implementations
from kernels.state_update.memory import ring_of, state_of
from kernels.state_update.recurrence import advance, at_token
from tests.support import mamba_models

CPU = Target(kind="cpu", name="cpu", sm_count=1)
STEPS = 16
TOLERANCE = 2e-4
"""Largest error of a logit, whose rms is about 1: fp32 sums in another order, through two layers."""
IN_FP16 = 0.02
"""The same with weights and activations in fp16."""


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Threads that wait for each other take longer than these products."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def impl(name: str) -> Impl:
    return next(each for each in implementations("decode_step")[0] if each.name == name)


Cached = dict[str, list[tuple[torch.Tensor, ...]]]
"""By the name of a layer's memory, and by sequence: keys and values [tokens, H_kv, D], from the first token that is
still cached. With MLA there is one of them, latents and rotary keys [tokens, L + R]. Of states, the state [H, V, K] and
the tokens that the convolution looks back to, the oldest first."""


def fill(case: StepCase, inputs: dict[str, Any], cached: Cached, rest: float) -> None:
    """Write what was cached before into the pages of this step, and `rest` everywhere else."""
    for name, sequences in cached.items():
        layer = int(name.partition(".")[0])
        if holds_states(case, name):
            memory = inputs[name] = torch.full(states.memory_shape(state_case(case)), rest)
            fill_states(case, inputs, memory, sequences)
            if wiring_of(case.model).selective:
                mamba_models.fill_ring(case, inputs, layer, sequences, rest)
            continue
        memory = inputs[name] = torch.full(memory_shape(case, layer), rest)
        for half, stored in enumerate(caches(case, memory)):
            for b, pair in enumerate(sequences):
                last = int(inputs["positions"][b])
                for t in range(last - len(pair[half]), last):
                    page = int(inputs["block_table"][b, t // case.page])
                    stored[page, t % case.page] = pair[half][t - last]


def holds_states(case: StepCase, name: str) -> bool:
    layer = int(name.partition(".")[0])
    return stateful(case, layer) and name == memory_of(case, layer)


def fill_states(case: StepCase, inputs: dict[str, Any], memory: torch.Tensor, sequences: Any) -> None:
    state = state_case(case)
    for b, (before, tokens) in enumerate(sequences):
        ring, read, _ = inputs["slots"][b].tolist()
        state_of(state, memory)[read] = before
        if not state.ring:
            continue
        for back, token in enumerate(reversed(tokens), 1):
            ring_of(state, memory)[ring, (int(inputs["state_positions"][b]) - back) % state.ring] = token


def keep_states(case: StepCase, inputs: dict[str, Any], name: str, sequences: Any) -> None:
    state, memory, layer = state_case(case), inputs[name], int(name.partition(".")[0])
    news = mamba_models.new_tokens(case, inputs, layer) if wiring_of(case.model).selective else None
    for b, (_, tokens) in enumerate(sequences):
        ring, _, written = inputs["slots"][b].tolist()
        if news:
            new = next(news)
        else:
            new = ring_of(state, memory)[ring, int(inputs["state_positions"][b]) % state.ring].clone()
        sequences[b] = (state_of(state, memory)[written].clone(), torch.stack([*tokens[1:], new]))


def keep(case: StepCase, inputs: dict[str, Any], cached: Cached) -> None:
    """Add the keys and values that this step wrote."""
    for name, sequences in cached.items():
        if holds_states(case, name):
            keep_states(case, inputs, name, sequences)
            continue
        cache = caches(case, inputs[name])
        for b, pair in enumerate(sequences):
            t = int(inputs["positions"][b])
            new = (paging.gather(half, inputs["block_table"][b], t, t + 1, case.page) for half in cache)
            sequences[b] = tuple(torch.cat([old, own]) for old, own in zip(pair, new, strict=True))


def prefilled_states(
    case: StepCase, model: Any, weights: dict[str, torch.Tensor], layer: int, prompts: list[list[int]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """By the recurrence in fp64 from an empty state, on what goes into the module of transformers. Releases cache
    states under different names."""
    state, mixer = state_case(case), mamba_models.mixer_of(mamba_models.layers_of(model)[layer])
    given = parameters(state, weights, layer)
    seen: list[torch.Tensor] = []
    handle = mixer.register_forward_pre_hook(
        lambda _, rows, named: seen.append(named.get("hidden_states", rows[0] if rows else None)), with_kwargs=True
    )
    for prompt in prompts:
        model(torch.tensor([prompt]))
        mixed, kept = seen.pop()[0] @ weights[f"{layer}.state_in"].T, mamba_models.kept_tokens(case)
        if state.apart:
            tokens, ring = mamba_models.tokens_before(case, weights, layer, mixed)
        else:
            tokens, ring = mixed[:, : state.width], mixed[:, : state.convolved]
        ring = torch.cat([torch.zeros(kept, ring.shape[1]), ring])[-kept:]
        back = max(state.conv - 1, 0)
        tokens = torch.cat([torch.zeros(back, state.width), tokens])
        now = torch.zeros(1, state.H, state.V, state.K, dtype=torch.float64)
        for t in range(back + 1, len(tokens) + 1):
            channels, gates = at_token(replace(state, B=1), given, tokens[None, :t], slice(None), 0)
            now, _ = advance(state, given, now, channels, gates)
        yield now[0].float(), ring
    handle.remove()


def prefilled(case: StepCase, model: Any, weights: dict[str, torch.Tensor], prompts: list[list[int]]) -> Cached:
    """What transformers caches of each prompt. Layers with a window keep its last tokens."""
    latent = shape_of(case.model).is_mla
    found: Cached = prefilled_latents(case, model, prompts) if latent else {}
    for layer in range(case.measured_layers):
        if stateful(case, layer):
            found[memory_of(case, layer)] = list(prefilled_states(case, model, weights, layer, prompts))
    for prompt in () if latent or not has_attention(case) else prompts:
        past = model(torch.tensor([prompt]), use_cache=True).past_key_values
        for layer, each in enumerate(past.layers):
            if attends(case, layer):
                pair = each.keys[0].transpose(0, 1), each.values[0].transpose(0, 1)
                found.setdefault(f"{layer}.memory", []).append(pair)
    return found


def prefilled_latents(case: StepCase, model: Any, prompts: list[list[int]]) -> Cached:
    """Latents and rotary keys, as the modules of transformers give them; not every version caches them."""
    R = model.config.qk_rope_head_dim
    found: Cached = {f"{layer}.memory": [] for layer in range(case.measured_layers) if not stateful(case, layer)}
    wiring = wiring_of(case.model)

    def listen(layer: int, at: Any) -> None:
        parts: dict[str, torch.Tensor] = {}

        def of_norm(module: Any, given: Any, out: torch.Tensor) -> None:
            parts["latents"] = out.reshape(-1, out.shape[-1])

        def of_product(module: Any, given: Any, out: torch.Tensor) -> None:
            key = out[0, :, -R:]
            turns = torch.arange(len(key))[:, None] * torch.tensor(wiring.rope.frequencies(R))
            first, second = key[:, ::2], key[:, 1::2]
            pair = (first * turns.cos() - second * turns.sin(), second * turns.cos() + first * turns.sin())
            parts["keys"] = torch.cat(pair, dim=-1) if wiring.pairs_adjacent else key

        def of_all(module: Any, given: Any, out: Any) -> None:
            found[f"{layer}.memory"].append((torch.cat([parts["latents"], parts["keys"]], dim=-1),))

        handles.append(at.kv_a_layernorm.register_forward_hook(of_norm))
        handles.append(at.kv_a_proj_with_mqa.register_forward_hook(of_product))
        handles.append(at.register_forward_hook(of_all))

    handles: list[Any] = []
    for layer, each in enumerate(model.model.layers):
        if not stateful(case, layer):
            listen(layer, each.self_attn)
    for prompt in prompts:
        model(torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    return found


def in_fp16(inputs: dict[str, Any], device: str) -> dict[str, Any]:
    """Weights and caches in fp16; angles, what is added to scores, states and their rates stay in fp32."""
    ends = ["rotations", "sink_logits", "A_log", "dt_bias", ".D"]
    ends += ["router_bias"] if {"0.latent_norm", "1.latent_in"} & inputs.keys() else []
    kept = {name for name in inputs if name.endswith(tuple(ends))}
    for name in (each for each in inputs if each.endswith("A_log")):
        beside = name.replace("A_log", "states")
        kept.add(beside if beside in inputs else name.replace("A_log", "memory"))
    halved = {n: t.half() if t.is_floating_point() and n not in kept else t for n, t in inputs.items()}
    return {name: tensor.to(device) for name, tensor in halved.items()}


@pytest.mark.slow
@pytest.mark.cuda(interpreted=True)
@pytest.mark.parametrize("name", TOYS)
@torch.inference_mode()
def test_sixteen_greedy_tokens_are_those_of_transformers(name: str, target: Target) -> None:
    """A ragged batch with paged caches. The step goes on from the cache of a prompt, by its own tokens and caches.

    Torch multiplies what a mask hides with 0, so for it the rest of the cache is finite. Ours never read it.
    """
    pytest.importorskip("transformers")
    from tests.support.transformers_models import model_of, need, step_inputs, weights_of

    need(name)
    model = model_of(name)
    weights = weights_of(name, model)
    case = StepCase(model=name, B=3, T=14, page=4, lengths="ragged", seed=8, dtype="fp32")
    draw = torch.Generator().manual_seed(1)
    texts = [torch.randint(0, 130, (n,), generator=draw).tolist() for n in lengths(case)]
    cached = prefilled(case, model, weights, [text[:-1] for text in texts])
    for step in range(STEPS):
        now = replace(case, T=case.T + step, grown=step)
        assert list(lengths(now)) == [len(text) for text in texts]
        expected = torch.stack([model(torch.tensor([text])).logits[0, -1] for text in texts])
        inputs = step_inputs(now, weights, [text[-1] for text in texts], seed=step)
        fill(now, inputs, cached, rest=50.0)
        found = {"torch": impl("torch").prepare(now, inputs, CPU)(), "reference": OP.reference(now, inputs)}
        fill(now, inputs, cached, rest=math.nan)
        found["numba"] = impl("numba").prepare(now, inputs, CPU)()
        assert found["reference"].dtype == torch.float64
        for each, logits in found.items():
            for right in (expected, found["reference"]):
                assert float((logits - right).abs().max()) < TOLERANCE, (each, step)
        tokens = expected.argmax(1).tolist()
        assert inputs["next"].tolist() == tokens, step
        if step == 1:
            halved = replace(now, weights="", dtype="fp16")
            narrow = in_fp16(inputs, target.device)
            for each in (name for name in cached if holds_states(case, name)):
                memory = torch.full(states.memory_shape(state_case(halved)), math.nan)
                fill_states(halved, inputs, memory, cached[each])
                narrow[each] = memory.to(target.device)
            logits = impl("triton").prepare(halved, narrow, target)().cpu()
            assert float((logits - expected).abs().max()) < IN_FP16
            assert narrow["next"].tolist() == logits.argmax(1).tolist()
        keep(now, inputs, cached)
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)


@pytest.mark.slow
@pytest.mark.cuda(interpreted=True)
@pytest.mark.parametrize(
    ("model", "weights", "by"),
    [
        ("toy-llama-3", "int8", "numba"),
        ("toy-llama-3", "int4", "numba"),
        ("toy-llama-3", "fp8", "triton"),
        ("toy-bamba", "int8", "numba"),
        ("toy-bamba", "fp8", "triton"),
        ("toy-falcon-h1", "int8", "numba"),
        ("toy-nemotron-h", "fp8", "triton"),
    ],
)
def test_a_step_with_quantized_weights_passes_the_gate(model: str, weights: str, by: str, target: Target) -> None:
    """Gate and up are then one product, and the activation is a part of its own. The LM head stays in 16 bits. Where a
    layer is one block, all layers are taken."""
    case = StepCase(model=model, layers=0 if wiring_of(model).blocks else 1, B=2, T=9, weights=weights, dtype="fp16")
    assert {part.name for part in parts(case)} >= {"gate_up", "activation", "down"}
    assert any(weights == getattr(part.case, "weights", "") for part in parts(case) if part.name in ("qkv", "state_in"))
    errors = check(OP, impl(by), case, target if by == "triton" else CPU)
    assert errors.passed, errors.reason


@pytest.mark.slow
@pytest.mark.cuda(interpreted=True)
@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_a_step_with_a_cache_in_8_bits_passes_the_gate(kv: str, target: Target) -> None:
    """By our kernels. torch writes no such cache, and says so."""
    case = StepCase(model="toy-qwen3", layers=1, B=2, T=40, page=32, lengths="ragged", kv=kv, dtype="fp16")
    assert case.id.endswith(f"kv{kv}")
    for each, where in ((impl("triton"), target), (impl("numba"), CPU)):
        errors = check(OP, each, case, where)
        assert errors.passed, (each.name, errors.reason)
    assert "8 bits" in str(impl("torch").supports(case, CPU))
    with pytest.raises(ValueError, match="are cached in fp16"):
        replace(case, model="toy-deepseek-v3")


@pytest.mark.slow
def test_torch_traces_the_whole_step_as_one_graph() -> None:
    """What torch.compile would compile on a GPU is traced here, and run as it is."""
    case = StepCase(model="toy-deepseek-v3", B=2, T=9, page=4, lengths="ragged", dtype="fp32")
    inputs = OP.inputs(case, "cpu", 0)
    expected = impl("torch").prepare(case, inputs, CPU)().clone()
    tokens, inputs["next"] = inputs["next"].clone(), torch.zeros_like(inputs["next"])
    found = traced(case, inputs, CPU, "eager")()
    torch.testing.assert_close(found, expected)
    assert torch.equal(inputs["next"], tokens)
    assert "at most 1 layers here, not 2" in str(impl("torch-compiled").supports(case, CPU))
    assert "sm_80" in str(impl("torch-compiled").supports(case, replace(CPU, kind="cuda", sm=75)))
    assert "its attention: needs" in str(impl("torch, flashinfer").supports(case, CPU))


def test_torch_compiles_on_a_host_where_a_compiler_is(monkeypatch: pytest.MonkeyPatch) -> None:
    case, compiled = StepCase(model="toy-llama-3", layers=1, B=2, T=9, dtype="fp32"), impl("torch-compiled")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "C++ compiler" in str(compiled.supports(case, CPU))
    monkeypatch.setenv("CXX", sys.executable)
    assert compiled.supports(case, CPU) is None


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler is here")
def test_a_host_compiles_a_layer_of_a_step() -> None:
    case = StepCase(model="toy-llama-3", layers=1, B=2, T=9, page=4, lengths="ragged", dtype="fp32")
    errors = check(OP, impl("torch-compiled"), case, CPU)
    assert errors.passed, errors.reason


LAUNCHES = {
    "llama-3.1-8b": 9,
    "qwen2.5-7b": 9,
    "qwen3-32b": 9,
    "mistral-7b": 9,
    "mixtral-8x7b": 13,
    "gemma-3-27b": 11,
    "gpt-oss-20b": 12.5,
    "deepseek-v3": 19,
    "qwen3-next-80b-a3b": 14.5,
    "granite-4.0-h-small": 14.1,
    "jamba-v0.1": 14.5,
    "kimi-linear-48b-a3b": 15.5,
    "falcon-mamba-7b": 10,
    "mamba-codestral-7b": 5,
}
PERIODS = {"kimi-linear-48b-a3b": 4}
"""Of one layer at batch 1 and 4,096 tokens on an H200, as `kernels/README.md` says. Of gpt-oss, layers with a window
need no merge of attention and have one less. A layer with states has 14; one of four or ten attends, and has 16 or 15.
"""


def test_the_launches_of_a_block_are_those_that_the_readme_tells() -> None:
    """Layers of Nemotron-H are one block each; those of Falcon-H1 have both mixers and an FFN."""
    target, ours = find("h200").target(), impl("triton")

    def launches(model: str, layers: int) -> int:
        return len(ours.stages(StepCase(model=model, layers=layers, B=1, T=4096), target))

    for model, blocks in (("nemotron-3-nano-30b-a3b", "M*E"), ("nemotron-h-56b", "M*-")):
        pattern = wiring_of(model).blocks
        for block in blocks:
            layer = pattern.index(block, 1)
            found = launches(model, layer + 1) - launches(model, layer)
            assert found == {"M": 5, "*": 6, "-": 4, "E": 10}[block], (model, block)
    assert launches("falcon-h1-0.5b", 2) - launches("falcon-h1-0.5b", 1) == 13
    for model, layers in (("nemotron-3-nano-30b-a3b", 6), ("falcon-h1-0.5b", 1)):
        case = StepCase(model=model, layers=layers, B=1, T=4096)
        assert ours.build
        assert len(ours.build(case, OP.inputs(case, "meta", 0), target).launches) == launches(model, layers)


@pytest.mark.parametrize("model", LAUNCHES)
def test_the_launches_of_a_layer_are_those_that_the_readme_tells(model: str) -> None:
    """Each launch has a stage. The layers of DeepSeek-V3 are those with experts."""
    target, first = find("h200").target(), 1 + shape_of(model).dense_layers
    period = PERIODS.get(model) or len(wiring_of(model).states) or (6 if model.startswith("gemma") else 2)
    few, many = (StepCase(model=model, layers=n, B=1, T=4096) for n in (first, first + period))
    ours = impl("triton")
    assert (len(ours.stages(many, target)) - len(ours.stages(few, target))) / period == LAUNCHES[model]
    assert ours.build
    launches = ours.build(few, OP.inputs(few, "meta", 0), target).launches
    assert len(launches) == len(ours.stages(few, target))
