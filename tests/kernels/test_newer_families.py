"""Families of 2025 and 2026: compressed caches, zero experts, double layers, latents of queries, shared weights."""

from __future__ import annotations

from typing import Any

import pytest

from bench.devices import find
from bench.predict.step_model import step
from bench.predict.step_work import expected_experts
from kernels import models
from kernels.model_config import BadConfig, from_config


def shape(model_type: str, **changes: Any) -> models.ModelShape:
    return from_config({"text_config": {"model_type": model_type} | changes})


def test_the_cache_of_deepseek_v4_is_the_published_one() -> None:
    """DeepSeek-V4-Flash: 284 B parameters, 13 B active. V4-Pro: 9.62 GiB for 1,048,576 tokens in 16 bits, which 31
    layers of 128 tokens a row and 30 layers of 4 make.

    Source: the announcement of April 2026, as news.triggerhive.com/entry/2026-04-25 quotes it.
    """
    flash = shape("deepseek_v4")
    assert models.parameters(flash) == pytest.approx(284e9, rel=2e-3)
    assert models.active_parameters(flash) == pytest.approx(13e9, rel=0.05)
    pro = shape("deepseek_v4", num_hidden_layers=61, compress_ratios=[128] * 31 + [4] * 30)
    assert models.kv_bytes(pro, 1 << 20, 2) == pytest.approx(9.62 * 2**30, rel=2e-3)


def test_a_step_of_deepseek_v4_reads_its_window_and_the_best_rows() -> None:
    ops = {op.name: op for op in step(shape("deepseek_v4"), device=find("b200"), batch=1, context=65_536).ops}
    row = 512 * 2
    assert ops["attention_sparse"].kv_bytes == 20 * (128 + 512) * row
    assert ops["attention_heavy"].kv_bytes == 23 * (128 + 65_536 // 128) * row
    assert ops["index"].kv_bytes == 20 * 65_536 // 4 * 128 * 2
    assert ops["o_a_sparse"].weight_bytes == 20 * 8192 * 4096 * 2


def test_ratios_of_deepseek_v4_may_go_on_with_layers_for_prediction() -> None:
    ratios = [0, 0] + [4, 128] * 20 + [4]
    assert shape("deepseek_v4", compress_ratios=[*ratios, 0]) == shape("deepseek_v4", compress_ratios=ratios)
    with pytest.raises(BadConfig, match="'compress_ratios' is "):
        shape("deepseek_v4", compress_ratios=[5] * 43)


def test_zero_experts_and_two_attentions_in_a_layer() -> None:
    """LongCat-Flash: 560 B parameters, 27 B active on average (arXiv 2509.01322): 8 of the 12 chosen have weights."""
    found = shape("longcat_flash")
    assert models.parameters(found) == pytest.approx(560e9, rel=2e-3)
    assert models.active_parameters(found) == pytest.approx(27e9, rel=0.02)
    assert (found.layers, found.moe_layers, found.dense_ffn_layers) == (56, 28, 0)
    assert found.real_experts_per_token == 8
    assert expected_experts(found, 1) == pytest.approx(8)
    assert models.kv_bytes_per_token(found, 2) == 56 * 576 * 2
    plain = shape("longcat_flash", zero_expert_num=0)
    assert models.active_parameters(plain) > models.active_parameters(found)


def test_queries_through_a_latent() -> None:
    """Step-3 with the defaults of its text config in vLLM: 316 B parameters and 38 B active (arXiv 2507.19427)."""
    given = {"hidden_size": 7168, "intermediate_size": 18432, "num_attention_heads": 64, "num_attention_groups": 1}
    given |= {"num_hidden_layers": 61, "vocab_size": 128815, "moe_intermediate_size": 5120, "moe_num_experts": 48}
    given |= {"moe_top_k": 3, "max_position_embedding": 65536, "share_expert_dim": 5120, "share_q_dim": 2048}
    given |= {"head_dim": 256, "moe_layers_enum": ",".join(map(str, range(4, 60))), "tie_word_embeddings": False}
    found = from_config({"model_type": "step3_vl", "text_config": {"model_type": "step3_text"} | given})
    assert models.parameters(found) == pytest.approx(316e9, rel=0.01)
    assert models.active_parameters(found) == pytest.approx(38e9, rel=0.02)
    assert models.kv_bytes_per_token(found, 2) == 61 * 2 * 256 * 2
    with pytest.raises(BadConfig, match="'moe_layers_enum' is '4;5', not whole numbers with commas"):
        from_config({"model_type": "step3_text"} | given | {"moe_layers_enum": "4;5"})


def test_step_3_5_reads_the_names_of_its_first_files() -> None:
    kinds = ["full_attention", *["sliding_attention"] * 3] * 12
    given: dict[str, Any] = {"layer_types": kinds, "sliding_window": 512, "num_attention_groups": 8}
    given |= {"attention_other_setting": {"num_attention_heads": 96}, "moe_layers_enum": "3,4,5"}
    found = shape("step3p5", **given)
    assert (found.windowed_layers, found.window_heads, found.kv_heads, found.moe_layers) == (33, 96, 8, 3)


def test_layers_that_share_weights() -> None:
    """Zamba2: 54 Mamba layers, and 9 uses of one set of attention and FFN."""
    found = shape("zamba2", hybrid_layer_ids=[6, 12, 18, 24, 30, 36, 42, 47, 51])
    assert (found.attention_layers, found.weight_sets) == (9, 1)
    assert models.kv_bytes_per_token(found, 2) == 9 * 2 * 32 * 160 * 2
    q = next(module for module in models.modules(found) if module.name == "q")
    assert (q.elements, q.active) == (5120 * 5120, 9 * 5120 * 5120)


@pytest.mark.parametrize(
    ("model_type", "state"),
    [
        ("rwkv", 32 * (3 * 4096 * 4 + 2 * 4096 * 2)),
        ("xlstm", 32 * (2048 * 4096 // 8 + 2048 + 8) * 4),
        ("recurrent_gemma", 18 * (2560 * 4 + 3 * 2560 * 2)),
        ("bailing_hybrid", 35 * (32 * 128 * 128 * 4 + 3 * 3 * 4096 * 2)),
    ],
)
def test_states_by_hand(model_type: str, state: int) -> None:
    found = shape(model_type)
    assert found.state_bytes_per_request == state
    assert step(found, device=find("h100-sxm"), batch=2, context=100).seconds > 0


def test_lightning_attention_instead_of_kda() -> None:
    """Ling 2.5 and Ring 2.5 have fields of lightning attention; what is left of the groups at the end attends."""
    found = shape("bailing_hybrid", group_norm_size=8, head_dim=128, num_hidden_layers=45)
    assert found.state_mixer is not None
    assert (found.state_mixer.kind, found.attention_layers) == ("lightning attention", 7 + 3)
    assert found.state_bytes_per_request == 35 * 32 * 128 * 128 * 4


def test_sparse_blocks_of_minimax_m3() -> None:
    kinds = ["full_attention"] * 3 + ["minimax_m3_sparse"] * 57
    found = shape("minimax_m3_vl_text", layer_types=kinds, moe_layer_freq=[0] * 3 + [1] * 57)
    older = {"sparse_attention_freq": [0] * 3 + [1] * 57, "sparse_topk_blocks": 8}
    assert shape("minimax_m3_vl_text", sparse_attention_config=older).kinds[1].changes[0][1].top == 8 * 128
    assert models.kv_bytes_per_token(found, 2) == 60 * 2 * 4 * 128 * 2 + 57 * 128 * 2
    ops = {op.name: op for op in step(found, device=find("b200"), batch=1, context=65_536).ops}
    assert ops["attention_sparse"].kv_bytes == 57 * 16 * 128 * 2 * 4 * 128 * 2
    assert ops["attention"].kv_bytes == 3 * 65_536 * 2 * 4 * 128 * 2


def test_rwkv_7_in_the_fields_of_flash_linear_attention() -> None:
    """By hand: r, k, v and output of 2560 x 2560, four low-rank pairs, and an FFN of two matrices."""
    given = {"hidden_size": 2560, "num_hidden_layers": 32, "vocab_size": 65536, "intermediate_size": 10240}
    ranks = {"decay_low_rank_dim": 96, "gate_low_rank_dim": 320, "a_low_rank_dim": 96, "v_low_rank_dim": 64}
    found = from_config({"model_type": "rwkv7", "tie_word_embeddings": False, "head_dim": 64} | given | ranks)
    layer = 2560 * (4 * 2560 + 2 * (96 + 320 + 96 + 64) + 2 * 10240)
    assert models.parameters(found) == 2 * 65536 * 2560 + 32 * layer
    assert found.state_bytes_per_request == 32 * (2560 * 64 * 4 + 2 * 2560 * 2)
    with pytest.raises(BadConfig, match="'decay_low_rank_dim' is missing"):
        from_config({"model_type": "rwkv7", "head_dim": 64} | given)


def test_deepseek_without_mla_has_plain_attention() -> None:
    """The decoder of DeepSeek-VL2-tiny and DeepSeek-OCR: `use_mla` is false, and the latents are null."""
    sizes = {"hidden_size": 1280, "num_hidden_layers": 12, "num_attention_heads": 10, "vocab_size": 129280}
    sizes |= {"intermediate_size": 6848, "moe_intermediate_size": 896, "n_routed_experts": 64, "n_shared_experts": 2}
    sizes |= {"num_experts_per_tok": 6, "first_k_dense_replace": 1, "num_key_value_heads": 10}
    sizes |= {"use_mla": False, "kv_lora_rank": None, "q_lora_rank": None, "max_position_embeddings": 8192}
    found = from_config({"model_type": "deepseek_vl_v2", "language_config": {"model_type": "deepseek_v2"} | sizes})
    assert models.kv_bytes_per_token(found, 2) == 12 * 2 * 1280 * 2
    experts = 11 * (66 * 3 * 896 * 1280 + 64 * 1280)
    assert models.parameters(found) == 2 * 129280 * 1280 + 12 * 4 * 1280**2 + 3 * 1280 * 6848 + experts
    assert not found.is_mla
    assert found.q_latent == 0


def test_layers_that_a_search_changed() -> None:
    """Fields of Llama-Nemotron (`nemotron-nas`): KV heads in groups, layers without attention, other FFNs or none."""
    sizes = {"hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16, "vocab_size": 1000}
    plain = {"attention": {"n_heads_in_group": 4}, "ffn": {"ffn_mult": 3.0}}
    blocks = [plain, plain, {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.5}}]
    blocks += [{"attention": {"n_heads_in_group": 8}, "ffn": {"no_op": True}}]
    given = {"model_type": "nemotron-nas", "max_position_embeddings": 4096, "tie_word_embeddings": False} | sizes
    found = from_config(given | {"block_configs": blocks})
    assert models.kv_bytes_per_token(found, 2) == (2 * 4 + 2) * 2 * 64 * 2
    attention = 2 * (2 * 1024 + 2 * 256) * 1024 + (2 * 1024 + 2 * 128) * 1024
    assert models.parameters(found) == 2 * 1000 * 1024 + attention + 3 * 1024 * (2 * 2048 + 1024)
    with pytest.raises(BadConfig, match=r"'block_configs' is .*, not a list of 4 objects"):
        from_config(given | {"block_configs": blocks[:2]})


def test_publishers_own_fields() -> None:
    """ChatGLM3 and the first Qwen, by hand."""
    glm = {"model_type": "chatglm", "hidden_size": 512, "num_layers": 2, "num_attention_heads": 8, "seq_length": 99}
    glm |= {"padded_vocab_size": 100, "ffn_hidden_size": 700, "kv_channels": 64, "multi_query_attention": True}
    found = from_config(glm | {"multi_query_group_num": 2, "tie_word_embeddings": False})
    assert models.parameters(found) == 2 * 100 * 512 + 2 * 512 * (2 * 512 + 2 * 128 + 3 * 700)
    qwen = {"model_type": "qwen", "hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8}
    qwen |= {"vocab_size": 100, "intermediate_size": 1400, "seq_length": 99, "tie_word_embeddings": False}
    assert models.parameters(from_config(qwen)) == 2 * 100 * 512 + 2 * 512 * (4 * 512 + 3 * 700)


def test_layers_that_attend_to_an_image_keep_no_cache_of_text() -> None:
    """Llama 3.2 Vision: 8 of 40 layers."""
    found = shape("mllama_text_model", cross_attention_layers=[3, 8, 13, 18, 23, 28, 33, 38])
    assert models.kv_bytes_per_token(found, 2) == 32 * 2 * 8 * 128 * 2
    assert models.parameters(shape("mllama_text_model")) == models.parameters(found)
    assert models.active_parameters(found) < models.active_parameters(shape("mllama_text_model"))


def test_a_dense_family_does_not_hide_experts() -> None:
    with pytest.raises(BadConfig, match="'num_experts' is 8, not absent: 'minicpm' is read without experts here"):
        shape("minicpm", num_experts=8)
