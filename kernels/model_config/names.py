"""Names of modules in checkpoints, and the lists that pick some of them.

A list has plain names, which stand for a module and all inside it (`lm_head`, `model.layers.3.mlp.gate`, `self_attn`),
names with `*`, and regular expressions after `re:`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernels.model_config import Reading

ROOTS = ("model.", "model.language_model.", "language_model.model.", "backbone.", "transformer.", "")
"""What stands before `layers.` in checkpoints; text models inside others have the second or third."""

ATTENTION = ("self_attn", "mixer", "attention", "attn")
FFN = ("mlp", "feed_forward", "mixer", "block_sparse_moe", "ffn", "shared_mlp", "moe")
STATE = ("linear_attn", "mamba", "mixer", "conv", "self_attn")


def _under(parents: Sequence[str], *names: str) -> tuple[str, ...]:
    return tuple(f"{parent}.{name}" for parent in parents for name in names)


PATHS: dict[str, tuple[str, ...]] = {
    "q": _under(ATTENTION, "q_proj", "qkv_proj"),
    "k": _under(ATTENTION, "k_proj", "qkv_proj"),
    "v": _under(ATTENTION, "v_proj", "qkv_proj"),
    "o": _under(ATTENTION, "o_proj"),
    "attention_gate": _under(ATTENTION, "q_proj", "g_proj"),
    "q_a": _under(ATTENTION, "q_a_proj"),
    "q_b": _under(ATTENTION, "q_b_proj"),
    "kv_a": _under(ATTENTION, "kv_a_proj_with_mqa"),
    "kv_b": _under(ATTENTION, "kv_b_proj"),
    "index_q": _under(ATTENTION, "indexer.wq_b"),
    "index_k": _under(ATTENTION, "indexer.wk"),
    "state_in": _under(STATE, "in_proj", "in_proj_qkvz", "in_proj_qkv"),
    "state_inner": _under(STATE, "x_proj", "dt_proj", "f_b_proj"),
    "state_out": _under(STATE, "out_proj"),
    "gate": _under(FFN, "gate_proj", "gate_up_proj", "input_linear"),
    "up": _under(FFN, "up_proj", "gate_up_proj", "input_linear"),
    "down": _under(FFN, "down_proj", "output_linear"),
    "router": _under(FFN, "gate", "router"),
    "latent_in": _under(FFN, "fc1_latent_proj"),
    "latent_out": _under(FFN, "fc2_latent_proj"),
    **{
        f"{kind}_{name}": _under(FFN, *(f"{group}.{projection}" for group in groups for projection in projections))
        for kind, groups in (("expert", ("experts.0", "experts")), ("shared", ("shared_experts", "shared_expert")))
        for name, projections in (
            ("gate", ("gate_proj", "gate_up_proj", "w1")),
            ("up", ("up_proj", "gate_up_proj", "w3")),
            ("down", ("down_proj", "w2")),
        )
    },
    "o_a": _under(ATTENTION, "o_a_proj", "wo_a"),
    "layer_embedding_in": ("per_layer_model_projection",),
    "layer_embedding_gate": ("per_layer_input_gate",),
    "layer_embedding_out": ("per_layer_projection",),
    "laurel_in": ("laurel.linear_left",),
    "laurel_out": ("laurel.linear_right",),
    "compressor_sparse": _under(ATTENTION, "compressor.kv_proj", "compressor.wkv"),
    "compressor_heavy": _under(ATTENTION, "compressor.kv_proj", "compressor.wkv"),
    "attention_experts": ("self_attention.experts.input_linear",),
    "use_out": ("linear",),
    "receptance": ("feed_forward.receptance",),
    "lm_head": ("lm_head",),
    "embedding": ("embed_tokens",),
}
"""What the modules of `kernels.models.modules` are called inside a layer; each family uses one of the names."""

Path = tuple[str, ...]
"""The names that one module may have in a checkpoint."""


def paths_of(module: str, reading: Reading) -> Iterator[Path]:
    """The names of this module in each layer that has one."""
    if module in ("lm_head", "embedding"):
        yield PATHS[module]
        return
    if module not in PATHS:  # small ones, which no checkpoint quantizes
        yield ()
        return
    mixers: tuple[str, ...] = ("none",)
    ffns: tuple[str, ...] = ()
    if module.startswith("state"):
        mixers = ("state", "both")
    elif any(path.startswith("self_attn") for path in PATHS[module]):
        mixers = ("attention", "both")
    elif module in {extra.name for extra in reading.shape.extras}:
        mixers, ffns = ("attention", "state", "both"), ("dense", "moe")
    else:
        mixers, ffns = (), ("dense",) if module in ("gate", "up", "down") else ("moe",)
    for number, layer in enumerate(reading.layers):
        if layer.mixer in mixers or layer.ffn in ffns:
            yield tuple(f"layers.{number}.{path}" for path in PATHS[module])


class Names:
    """A list of patterns. `name` tells whether it picks a module."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        self._plain = {_bare(each) for each in self.patterns if "*" not in each and not each.startswith("re:")}
        globs = [fnmatch.translate(_bare(each)) for each in self.patterns if "*" in each and not each.startswith("re:")]
        globs = [each.removesuffix(r"\Z").removesuffix(r"\z") + r"(\..*)?\Z" for each in globs]
        self._globs = re.compile("|".join(globs)) if globs else None
        self._expressions = [_compiled(each.removeprefix("re:")) for each in self.patterns if each.startswith("re:")]

    def name(self, path: Path) -> bool:
        """Whether it picks a module with one of these names, or a module around it."""
        return any(self._picks(each) for each in path)

    def _picks(self, name: str) -> bool:
        parts = name.split(".")
        ends = range(1, len(parts) + 1)
        if self._plain and any(".".join(parts[i:j]) in self._plain for i in range(len(parts)) for j in ends if i < j):
            return True
        if self._globs and any(self._globs.match(".".join(parts[i:])) for i in range(len(parts))):
            return True
        return any(expression.match(root + name) for expression in self._expressions for root in ROOTS)


def _bare(pattern: str) -> str:
    """Without what stands before `layers.`, `lm_head` and `embed_tokens`."""
    for root in sorted(ROOTS, key=len, reverse=True):
        if root and pattern.startswith(root):
            return pattern.removeprefix(root)
    return pattern.removeprefix("language_model.")


def _compiled(expression: str) -> re.Pattern[str]:
    from kernels.model_config.fields import BadConfig

    try:
        return re.compile(expression)
    except re.error as error:
        raise BadConfig(f"config.json: {expression[:60]!r} is no regular expression: {error}") from None
