"""Claims about where a model's parameters are."""

from __future__ import annotations

from bench.judge.claims.base import APPROXIMATE, MEASURED, Claim, Comparison, number, our_range
from bench.judge.claims.common import DEEPSEEK_V3, LLAMA_2_7B, LLAMA_8B, LLAMA_70B, decode, predicted
from kernels.models import ModelShape, ffn_projections, model, parameters

MODELS = (
    LLAMA_2_7B,
    LLAMA_8B,
    LLAMA_70B,
    model("qwen2.5-7b"),
    model("gemma-3-27b"),
    model("mixtral-8x7b"),
    DEEPSEEK_V3,
)

# ------------------------------------------------------------------------------------------- I17: the FFN's share

I17_SHARE = our_range("share of the parameters in the FFN", 2 / 3, 2 / 3, "", MEASURED)
I17_WIDTH = number("width of the FFN over the hidden size", 4, "x", APPROXIMATE)


def ffn_parameters(shape: ModelShape) -> int:
    """Gate, up and down of all layers; of a MoE with all experts."""
    each = sum(n * k for n, k in ffn_projections(shape).values())
    if not shape.is_moe:
        return shape.layers * each
    dense = 3 * shape.hidden * shape.ffn * shape.dense_layers
    return dense + shape.moe_layers * each * (shape.experts + shape.shared_experts)


def predict_i17() -> list[Comparison]:
    found = []
    for shape in MODELS:
        share = ffn_parameters(shape) / parameters(shape)
        found += [
            predicted(I17_SHARE, share, "gate, up and down of all layers / all parameters", model=shape.name),
            predicted(I17_WIDTH, shape.ffn / shape.hidden, "FFN width / hidden size", model=shape.name),
        ]
    return found


I17 = Claim(
    id="I17",
    text="the FFN holds about two thirds of the parameters and widens about 4 times",
    plain="Two thirds of a model is in the part that looks at each word by itself",
    source="A",
    how="P",
    published=(I17_SHARE, I17_WIDTH),
    setting="Seven models, dense and with experts",
    predict=predict_i17,
)

# --------------------------------------------------------------------------------------------- I18: the vocabulary

I18_SHARE = our_range("share of the vocabulary's matrices in all parameters", 0.1, 1, "")
I18_STEP = our_range("share of `lm_head` in a step's bytes at batch 1", 0.1, 1, "")


def predict_i18() -> list[Comparison]:
    found = []
    for shape in MODELS:
        table = shape.vocab * shape.hidden * (1 if shape.tied_embeddings else 2)
        step = decode(shape, context=1024)
        read = step.op("lm_head").work.bytes / sum(op.work.bytes for op in step.ops)
        found += [
            predicted(I18_SHARE, table / parameters(shape), "embedding and lm_head / all", model=shape.name),
            predicted(
                I18_STEP, read, "bytes of lm_head / bytes of a step; the embedding is looked up", model=shape.name
            ),
        ]
    return found


I18 = Claim(
    id="I18",
    text="larger vocabularies bloat the embedding table",
    plain="Knowing more words makes a model's dictionary a tenth of it or more",
    source="A",
    how="P M",
    published=(I18_SHARE, I18_STEP),
    setting="Seven models with vocabularies of 32,000 to 262,000. Bloated: a tenth of the model",
    predict=predict_i18,
    never="its numbers are shares of parameters and of bytes, which follow from the shapes; a run has times alone",
)
