"""Quantized checkpoints are read as their libraries store them: a step has the weights that the codes stand for.

The writers here pack one code after the other, as the libraries' documents say; `kernels/decode_step/packed.py` names
them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bench.cli import app
from bench.errors import BadRequest
from bench.measure.checkpoint import Tensors, formats, model_in, quantization_of, step_weights
from bench.measure.step_tokens import decode
from kernels.common.quantization import E2M1
from kernels.decode_step.op import OP, StepCase
from kernels.op import Target

CPU = Target(kind="cpu", name="cpu", sm_count=1)
HIDDEN, FFN, HEADS, KV, D, VOCAB, LAYERS, EXPERTS = 256, 384, 4, 2, 64, 130, 2, 3
CODE = Callable[[str, int, int, torch.Generator], tuple[dict[str, torch.Tensor], torch.Tensor]]
"""Name, N, K and random numbers -> the tensors that a library stores, and W."""

ATTENTION = {"q_proj": (HEADS * D, HIDDEN), "k_proj": (KV * D, HIDDEN), "v_proj": (KV * D, HIDDEN)}
ATTENTION |= {"o_proj": (HIDDEN, HEADS * D)}
DENSE = {"gate_proj": (FFN, HIDDEN), "up_proj": (FFN, HIDDEN), "down_proj": (HIDDEN, FFN)}


def levels(N: int, groups: int, draw: torch.Generator) -> torch.Tensor:
    return (torch.rand(N, groups, generator=draw) + 0.5) / 64


def fp8_codes(N: int, K: int, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(N, K, generator=draw).to(torch.float8_e4m3fn)


def block_fp8(name: str, N: int, K: int, draw: torch.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    w, scale = fp8_codes(N, K, draw), levels(-(-N // 128), -(-K // 128), draw)
    whole = torch.kron(scale, torch.ones(128, 128))[:N, :K]
    return {f"{name}.weight": w, f"{name}.weight_scale_inv": scale}, w.float() * whole


def channel_fp8(name: str, N: int, K: int, draw: torch.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    w, scale = fp8_codes(N, K, draw), levels(N, 1, draw)
    return {f"{name}.weight": w, f"{name}.weight_scale": scale}, w.float() * scale


def tensor_fp8(name: str, N: int, K: int, draw: torch.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    w, scale = fp8_codes(N, K, draw), levels(1, 1, draw)[0]
    return {f"{name}.weight": w, f"{name}.weight_scale": scale}, w.float() * scale


def channel_int8(name: str, N: int, K: int, draw: torch.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    w, scale = torch.randint(-127, 128, (N, K), generator=draw, dtype=torch.int8), levels(N, 1, draw) / 64
    return {f"{name}.weight": w, f"{name}.weight_scale": scale}, w.float() * scale


def words(codes: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """[..., 8 n] -> int32 [..., n]: the code of place `order[i]` in bits 4 i to 4 i + 3."""
    found = torch.zeros(*codes.shape[:-1], codes.shape[-1] // 8, dtype=torch.int64)
    for i, place in enumerate(order):
        found |= codes[..., place::8].long() << 4 * i
    return torch.where(found >= 1 << 31, found - (1 << 32), found).to(torch.int32)


def four_bits(
    N: int, K: int, draw: torch.Generator, *, zeros: bool, size: int = 128
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales, zero points and W; scales are numbers that fp16 has."""
    codes, scale = torch.randint(0, 16, (N, K), generator=draw), (levels(N, K // size, draw) / 4).half()
    zero = torch.randint(1, 16, (N, K // size), generator=draw) if zeros else torch.full((N, K // size), 8)
    each = torch.arange(K) // size
    return codes, scale, zero, (codes - zero[:, each]).float() * scale.float()[:, each]


def packed(zeros: bool, size: int = 128) -> CODE:
    def store(name: str, N: int, K: int, draw: torch.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        codes, scale, zero, w = four_bits(N, K, draw, zeros=zeros, size=size)
        found = {f"{name}.weight_packed": words(codes), f"{name}.weight_scale": scale}
        found[f"{name}.weight_shape"] = torch.tensor([N, K])
        return found | ({f"{name}.weight_zero_point": words(zero.T).T.contiguous()} if zeros else {}), w

    return store


def gptq(zeros: bool, less: int = 1, order: bool = False) -> CODE:
    def store(name: str, N: int, K: int, draw: torch.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        codes, scale, zero, w = four_bits(N, K, draw, zeros=zeros)
        groups = torch.arange(K) // 128
        if order:
            groups = groups[torch.randperm(K, generator=draw)]
            w = (codes - zero[:, groups]).float() * scale.float()[:, groups]
        found = {f"{name}.qweight": words(codes).T.contiguous(), f"{name}.scales": scale.T.contiguous()}
        found |= {f"{name}.qzeros": words(zero.T - less), f"{name}.g_idx": groups.int()}
        return found, w

    return store


def awq(name: str, N: int, K: int, draw: torch.Generator) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    codes, scale, zero, w = four_bits(N, K, draw, zeros=True)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    found = {f"{name}.qweight": words(codes.T, order), f"{name}.qzeros": words(zero.T, order)}
    return found | {f"{name}.scales": scale.T.contiguous()}, w


CT, FP8 = {"quant_method": "compressed-tensors"}, {"quant_method": "fp8", "weight_block_size": [128, 128]}
LIBRARIES: dict[str, tuple[dict[str, Any], CODE, str]] = {
    "blocks of fp8": (FP8, block_fp8, "fp8_block"),
    "rows of fp8": (CT, channel_fp8, "fp8"),
    "fp8": ({"quant_method": "modelopt", "quant_algo": "FP8"}, tensor_fp8, "fp8"),
    "rows of int8": (CT, channel_int8, "int8"),
    "compressed int4": (CT, packed(False), "int4"),
    "compressed int4 with zero points": (CT, packed(True), "int4_zp"),
    "GPTQ": ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, gptq(False), "int4"),
    "GPTQ with zero points": ({"quant_method": "gptq", "bits": 4, "sym": False}, gptq(True), "int4_zp"),
    "GPTQ, second format": (
        {"quant_method": "gptq", "bits": 4, "sym": False, "checkpoint_format": "gptq_v2"},
        gptq(True, less=0),
        "int4_zp",
    ),
    "AWQ": ({"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}, awq, "int4_zp"),
}


def written(directory: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    save_file = pytest.importorskip("safetensors.torch").save_file
    directory.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def llama(
    tmp_path: Path, given: dict[str, Any], store: CODE, *, plain: tuple[str, ...] = (), **changes: Any
) -> tuple[Path, Path]:
    """A quantized checkpoint, and the same one dequantized; all else in fp32. `plain` modules are not quantized."""
    draw = torch.Generator().manual_seed(0)
    config = {"model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_attention_heads": HEADS}
    config |= {
        "num_key_value_heads": KV,
        "head_dim": D,
        "num_hidden_layers": LAYERS,
        "intermediate_size": FFN,
        **changes,
    }
    other = {n: torch.randn(VOCAB, HIDDEN, generator=draw) for n in ("model.embed_tokens.weight", "lm_head.weight")}
    other["model.norm.weight"] = torch.ones(HIDDEN)
    packed_up, meant = {}, {}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            other[f"{at}{name}.weight"] = torch.rand(HIDDEN, generator=draw) + 0.5
        modules = {f"self_attn.{n}": size for n, size in ATTENTION.items()} | {f"mlp.{n}": s for n, s in DENSE.items()}
        modules["self_attn.k_proj"] = modules["self_attn.v_proj"] = (config["num_key_value_heads"] * D, HIDDEN)
        for name, (N, K) in modules.items():
            stored, w = store(at + name, N, K, draw)
            meant[f"{at}{name}.weight"] = w
            packed_up |= {f"{at}{name}.weight": w} if name.endswith(plain or "-") else stored
    quantized = written(tmp_path / "quantized", config | {"quantization_config": given}, other | packed_up)
    return quantized, written(tmp_path / "plain", config, other | meant)


def logits(directory: Path, dequantize: bool = False, choice: int = 0) -> tuple[StepCase, torch.Tensor]:
    """The case of a step and what the reference makes of its weights, after a few tokens of a cache that is drawn."""
    tensors, given = Tensors(directory), quantization_of(directory)
    fields = formats(tensors, given, dequantize)[choice]
    case = StepCase(model=model_in(directory), B=2, T=9, page=4, lengths="ragged", dtype="fp32", **fields)
    drawn = OP.inputs(replace(case, weights="", experts=""), "cpu", 0)
    inputs = drawn | step_weights(case, tensors, given, dequantize)
    return case, OP.reference(case, inputs | {"tokens": torch.tensor([3, 77])})


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_step_has_the_weights_that_the_codes_stand_for(library: str, tmp_path: Path) -> None:
    given, store, format = LIBRARIES[library]
    quantized, plain = llama(tmp_path, given, store)
    case, found = logits(quantized)
    assert case.weights == format
    expected = logits(plain)[1]
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["blocks of fp8", "rows of int8", "GPTQ", "AWQ"])
def test_a_host_decodes_the_tokens_of_the_dequantized_weights(library: str, tmp_path: Path) -> None:
    given, store, format = LIBRARIES[library]
    quantized, plain = llama(tmp_path, given, store)
    ours = decode(quantized, "5,1,77", 4, CPU)
    assert ours.weights == format
    assert ours.tokens == decode(plain, "5,1,77", 4, CPU).tokens


@pytest.mark.parametrize(
    ("store", "given", "more", "said"),
    [
        (packed(False, size=32), CT, {}, r"q_proj.weight_packed is stored as int4 in groups of 32"),
        (gptq(True, order=True), {"quant_method": "gptq", "bits": 4, "desc_act": True}, {}, "in the order of activ"),
        (block_fp8, FP8, {"num_key_value_heads": 1}, "q_proj.weight and what is one product with it have two scales"),
        (channel_int8, CT, {"plain": ("o_proj",)}, r"0.o is stored in 16 bits, but others of its kind as int8"),
        (channel_int8, CT, {"plain": ("k_proj",)}, r"q_proj.weight is stored as int8, a matrix beside it as float32"),
    ],
    ids=["groups of 32", "activation order", "half a block", "o in 16 bits", "k in 16 bits"],
)
def test_what_no_product_takes_is_refused_by_name_and_dequantized_on_request(
    store: CODE, given: dict[str, Any], more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    quantized, plain = llama(tmp_path, given, store, **more)
    with pytest.raises(BadRequest, match=said) as refused:
        logits(quantized)
    assert "\n" not in str(refused.value)
    case, found = logits(quantized, dequantize=True, choice=-1)
    assert not case.quantized
    torch.testing.assert_close(found, logits(plain)[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_command_dequantizes_on_request_alone(tmp_path: Path) -> None:
    quantized, plain = llama(tmp_path, CT, packed(False, size=32))
    asked = ["step", "--checkpoint", str(quantized), "--prompt-ids", "5,1", "--tokens", "2", "--device", "cpu"]
    refused = CliRunner().invoke(app, asked)
    assert isinstance(refused.exception, BadRequest)
    assert "int4 in groups of 32" in str(refused.exception)
    assert "--dequantize" in str(refused.exception)
    found = json.loads(CliRunner().invoke(app, [*asked, "--dequantize", "--json"]).stdout)
    assert found["weights"] == "fp32"
    assert tuple(found["tokens"]) == decode(plain, "5,1", 2, CPU).tokens


def test_what_is_not_read_is_one_line(tmp_path: Path) -> None:
    def refusal(name: str, given: dict[str, Any], store: CODE = channel_int8) -> str:
        quantized, _ = llama(tmp_path / name, given, store)
        with pytest.raises(BadRequest) as refused:
            decode(quantized, "5,1", 2, CPU)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    assert "quant_method 'bitsandbytes' is not read" in refusal("a", {"quant_method": "bitsandbytes"})
    assert "awq with 4 bits, version gemv" in refusal("b", {"quant_method": "awq", "bits": 4, "version": "gemv"}, awq)
    assert "gptq with 8 bits" in refusal("c", {"quant_method": "gptq", "bits": 8}, gptq(False))

    def with_zero_points(
        name: str, N: int, K: int, draw: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        found, w = channel_int8(name, N, K, draw)
        return found | {f"{name}.weight_zero_point": torch.zeros(N, 1, dtype=torch.int8)}, w

    assert "scales of another layout" in refusal("d", CT, with_zero_points)


# ---- experts


def e2m1(codes: torch.Tensor) -> torch.Tensor:
    return torch.tensor([*E2M1, *(-value for value in E2M1)])[codes.long()]


@pytest.mark.slow
def test_experts_of_gpt_oss_stay_in_mxfp4(tmp_path: Path) -> None:
    """All else is in 16 bits. Rows of gate and up take turns. On a host no product takes them: they are dequantized on
    request."""
    pytest.importorskip("transformers")
    from tests.support.transformers_models import model_of, need

    need("toy-gpt-oss")
    model = model_of("toy-gpt-oss")
    model.save_pretrained(tmp_path / "plain")
    whole, draw = dict(Tensors(tmp_path / "plain")), torch.Generator().manual_seed(2)
    kept = {name: tensor for name, tensor in whole.items() if not name.endswith(("gate_up_proj", "down_proj"))}
    meant = dict(kept)
    config = json.loads((tmp_path / "plain" / "config.json").read_text()) | {"intermediate_size": 64}
    hidden, E, F = config["hidden_size"], config["num_local_experts"], 64
    for name in [n for n in kept if n.endswith("gate_up_proj_bias")]:
        kept[name] = meant[name] = torch.randn(E, 2 * F, generator=draw)
    for name in sorted(whole.keys() - kept.keys()):
        N, K = (2 * F, hidden) if "gate_up" in name else (hidden, F)
        codes = torch.randint(0, 16, (E, N, K // 32, 32), generator=draw)
        scales = torch.randint(121, 124, (E, N, codes.shape[2]), generator=draw)
        w = (e2m1(codes) * 2.0 ** (scales[..., None] - 127.0)).flatten(-2)
        kept[f"{name}_blocks"] = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
        kept[f"{name}_scales"], meant[name] = scales.to(torch.uint8), w.transpose(1, 2)
    plain = written(tmp_path / "meant", config, meant)
    quantized = written(tmp_path / "quantized", config | {"quantization_config": {"quant_method": "mxfp4"}}, kept)
    case, found = logits(quantized)
    assert (case.weights, case.experts, case.quantized) == ("fp32", "mxfp4", False)
    torch.testing.assert_close(found, logits(plain)[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(BadRequest, match="multiplies experts in fp32, not in mxfp4"):
        decode(quantized, "5,1", 2, CPU)
    case, found = logits(quantized, dequantize=True, choice=1)
    assert not case.experts
    torch.testing.assert_close(found, logits(plain)[1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_deepseek_in_fp8_has_only_the_products_by_head_in_16_bits(tmp_path: Path) -> None:
    """Blocks of 128 x 128, experts one by one. kv_b_proj is multiplied head by head, and has no such product."""
    pytest.importorskip("transformers")
    from tests.support.transformers_models import model_of, need

    need("toy-deepseek-v3")
    model = model_of("toy-deepseek-v3")
    model.save_pretrained(tmp_path / "toy")
    whole, draw = dict(Tensors(tmp_path / "toy")), torch.Generator().manual_seed(2)
    kept, meant = {}, {}
    for name, tensor in whole.items():
        plain = tensor.dim() < 2 or name.endswith(("embed_tokens.weight", "lm_head.weight", "gate.weight"))
        stored, meant[name] = ({name: tensor}, tensor) if plain else block_fp8(name[:-7], *tensor.shape, draw)
        kept |= stored
    config = json.loads((tmp_path / "toy" / "config.json").read_text())
    for name in [n for n in kept if n.endswith("weight_scale_inv")]:  # one block: all rows of a toy are in it
        again = name.replace("weight_scale_inv", "weight")
        kept[name].fill_(1 / 64)
        meant[again] = kept[again].float() / 64
    plain = written(tmp_path / "meant", config, meant)
    quantized = written(tmp_path / "quantized", config | {"quantization_config": FP8}, kept)
    with pytest.raises(BadRequest, match=r"kv_b_proj.weight is stored as fp8_block, .* only in fp32"):
        logits(quantized)
    case, found = logits(quantized, dequantize=True)
    assert (case.weights, case.experts_in) == ("fp8_block", "fp8_block")
    torch.testing.assert_close(found, logits(plain)[1], rtol=1e-4, atol=1e-4)
    assert logits(quantized, dequantize=True, choice=1)[0].experts == "fp32"
