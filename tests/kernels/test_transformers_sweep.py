"""Every decoder that the installed transformers knows: counted as its model on the meta device is, or refused.

Models are built from the defaults of their classes. Norms, biases and convolutions are not counted here.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from kernels import models
from kernels.model_config import FAMILIES, BadConfig, from_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
auto = pytest.importorskip("transformers.models.auto.modeling_auto")

DECODERS = tuple(sorted(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
AMONG_THEM = ("glm4_moe_lite", "gemma3n_text", "gemma4_text", "jetmoe", "lfm3", "recurrent_gemma", "zamba2", "xlstm")
"""Small enough to be built in every run, and each of another kind."""

LEARNED = ("biogpt", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "opt", "openai-gpt", "xglm", "fuyu")
"""Their positions are learned, and not counted: `tests/kernels/test_older_models.py`."""
APART = {
    "longcat_flash": "transformers gives gate and up to experts without weights too: test_newer_families.py",
    **dict.fromkeys(("phi4_multimodal", "got_ocr2", "moss_transcribe_diarize"), "its model also sees or hears"),
    "deepseek_v2": "its class has no number of experts per token: test_model_config.py",
    "mamba": "its state is a parameter of a small model: test_model_config.py",
    "falcon_mamba": "its state is a parameter of a small model: test_model_config.py",
    **dict.fromkeys(LEARNED, "learned positions"),
}
SHARING = ("zamba", "zamba2")


def fields_and_model(model_type: str, **changes: Any) -> tuple[dict[str, Any], int]:
    """The fields that transformers writes, and the number of parameters. Skips what the release cannot build."""
    try:
        config = transformers.CONFIG_MAPPING[model_type](**changes)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config.get_text_config())
        model.tie_weights()  # older releases leave that out on the meta device
    except Exception as error:  # classes without usable defaults raise whatever they meet first
        pytest.skip(f"transformers {transformers.__version__} builds no {model_type}: {type(error).__name__}")
    fields = json.loads(json.dumps(config.to_dict(), default=str))
    return fields, sum(parameter.numel() for parameter in model.parameters())


def check(model_type: str, **changes: Any) -> None:
    if model_type in APART:
        pytest.skip(APART[model_type])
    fields, counted = fields_and_model(model_type, **changes)
    if model_type not in FAMILIES and f"{model_type}_text" not in FAMILIES:
        with pytest.raises(BadConfig) as refused:
            from_config(fields)
        assert "\n" not in str(refused.value)
        return
    shape = from_config(fields)
    assert models.parameters(shape) == pytest.approx(counted, rel=0.01)
    assert models.active_parameters(shape) > 0
    assert models.kv_bytes_per_token(shape, 2) + shape.state_bytes_per_request > 0


@pytest.mark.parametrize("model_type", AMONG_THEM)
def test_some_decoders(model_type: str) -> None:
    check(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", DECODERS)
def test_all_decoders(model_type: str) -> None:
    check(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", DECODERS)
def test_all_decoders_with_embeddings_tied_the_other_way(model_type: str) -> None:
    if model_type in SHARING:
        pytest.skip("there the field unties the weights that layers share, too")
    fields, _ = fields_and_model(model_type)
    check(model_type, tie_word_embeddings=not fields.get("tie_word_embeddings", False))
