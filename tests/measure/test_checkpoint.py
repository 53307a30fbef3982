"""A checkpoint on disk is read as transformers wrote it, and decodes the tokens that transformers generates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bench.cli import app
from bench.errors import BadRequest
from bench.measure.checkpoint import Tensors, model_in
from bench.measure.step_tokens import decode, prompt_of
from kernels.decode_step.toys import TOYS
from kernels.decode_step.wiring import wiring_of
from kernels.op import Target

CPU = Target(kind="cpu", name="cpu", sm_count=1)
PROMPT = "5,1,77,30,2,90,14"
"""As many tokens as the smallest window has, and one more."""


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def saved(name: str, directory: Path, **more: Any) -> Any:
    pytest.importorskip("transformers")
    from tests.support.transformers_models import model_of, need

    need(name)
    model = model_of(name)
    model.save_pretrained(directory, **more)
    return model


def generated(model: Any, count: int) -> list[int]:
    """Greedy, without a cache of transformers' own."""
    text = [int(each) for each in PROMPT.split(",")]
    with torch.inference_mode():
        for _ in range(count):
            text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(PROMPT.split(",")) :]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", TOYS)
def test_a_checkpoint_decodes_what_transformers_generates(name: str, tmp_path: Path) -> None:
    """Past one page, so that caches move to a new place. The wiring read from config.json is that of the family."""
    model = saved(name, tmp_path)
    found = decode(tmp_path, PROMPT, 12, CPU)
    assert list(found.tokens) == generated(model, 12)
    read, known = wiring_of(model_in(tmp_path)), wiring_of(name)
    names = ("rope", "window_rope", "epsilon", "score_factor", "activation", "sink_logits")
    names += ("selective", "latent_epsilon")
    names += ("rotary_share", "state", "embedding_factor", "residual_factor", "logits_factor")
    names += ("state_norm", "norm_first", "blocks", "factors")
    assert [getattr(read, each) for each in names] == [getattr(known, each) for each in names]


@pytest.mark.slow
def test_shards_in_bf16_are_read_through_their_index(tmp_path: Path) -> None:
    model = saved("toy-llama-3", tmp_path / "whole")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    tensors = Tensors(tmp_path / "parts")
    assert tensors.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensors[name], tensor)


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    config = {"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "num_attention_heads": 2}
    config |= {"num_hidden_layers": 1, "intermediate_size": 8}

    def refusal(**changes: Any) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(BadRequest) as refused:
            model_in(tmp_path)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "no step is composed" in refusal(model_type="olmo2")
    assert "hidden_act 'relu'" in refusal(hidden_act="relu")
    assert "rope_type 'dynamic'" in refusal(rope_scaling={"type": "dynamic", "factor": 2.0})
    assert "mlp_bias" in refusal(mlp_bias=True)
    assert "rotates whole heads" in refusal(partial_rotary_factor=0.5)
    hybrid = {"model_type": "bamba", "mamba_n_heads": 2, "mamba_d_state": 8, "attn_layer_indices": []}
    assert "mamba_proj_bias" in refusal(**hybrid, mamba_proj_bias=True)
    assert "time_step_limit" in refusal(**hybrid, time_step_limit=[0.1, 1.0])
    assert "mamba_d_head" in refusal(**hybrid, mamba_d_head=3)
    nemotron = {"model_type": "nemotron_h", "hybrid_override_pattern": "M-", "n_groups": 1}
    nemotron |= {
        "mamba_num_heads": 2,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "num_key_value_heads": 2,
        "head_dim": 4,
    }
    assert "mlp_hidden_act 'silu'" in refusal(**nemotron, mlp_hidden_act="silu")
    assert "'use_bias' is True" in refusal(**nemotron, use_bias=True)
    assert "time_step_limit" in refusal(**nemotron, time_step_limit=[0.0, 1.0])
    falcon = {"model_type": "falcon_h1", "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_state": 8}
    assert "mamba_d_head" in refusal(**falcon, mamba_d_head=3)
    assert "'projectors_bias' is True" in refusal(**falcon, projectors_bias=True)
    assert "use_bias" in refusal(model_type="falcon_mamba", use_bias=True)
    assert "time_step_limit" in refusal(model_type="mamba2", time_step_limit=[0.0, 1.0])
    experts = {"model_type": "jamba", "num_experts": 2, "num_experts_per_tok": 1}
    assert "mamba_proj_bias" in refusal(**experts, mamba_proj_bias=True)
    with pytest.raises(BadRequest, match=r"has no \*\.safetensors"):
        Tensors(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((1000).to_bytes(8, "little") + b"{}")
    with pytest.raises(BadRequest, match="no whole file"):
        Tensors(tmp_path)
    header = b'{"a": {"dtype": "F8_E5M2", "shape": [1], "data_offsets": [0, 1]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1")
    with pytest.raises(BadRequest, match="F8_E5M2"):
        Tensors(tmp_path)["a"]


def test_the_scaling_of_llama_3_1_is_that_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(hidden_size=256, num_attention_heads=2, rope_parameters=rope)
    config.save_pretrained(tmp_path)
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    expected = LlamaRotaryEmbedding(config).inv_freq
    found = wiring_of(model_in(tmp_path)).rope.frequencies(128)
    torch.testing.assert_close(torch.tensor(found), expected)


def test_prompts_are_ids_of_the_vocabulary() -> None:
    assert prompt_of("1,2,3", 8) == (1, 2, 3)
    assert len(prompt_of("", 8)) == 8
    for text, reason in (("1,9", "9 is no token id"), ("a", "expected whole numbers")):
        with pytest.raises(BadRequest, match=reason):
            prompt_of(text, 8)


def test_the_command_wants_one_of_a_model_and_a_checkpoint(tmp_path: Path) -> None:
    runner = CliRunner()
    assert "--checkpoint" in str(runner.invoke(app, ["step"]).exception)
    both = runner.invoke(app, ["step", "--model", "llama-3.1-8b", "--checkpoint", str(tmp_path)])
    assert "leave it out" in str(both.exception)
