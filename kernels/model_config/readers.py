"""Readers of `quantization_config`, one for each library that writes it: which modules are stored how.

Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kernels.model_config.fields import BadConfig, Fields
from kernels.model_config.formats import (
    MXFP4,
    NF4,
    NVFP4,
    Read,
    Scheme,
    Stored,
    everywhere,
    exceptions,
    fp8,
    group_size,
    grouped,
)
from kernels.model_config.names import Names


def _fp8(fields: Fields) -> Read:
    block = 0
    if "weight_block_size" in fields:
        sizes = fields.get("weight_block_size")
        if not isinstance(sizes, list) or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
            raise fields.wrong("weight_block_size", "a list of positive whole numbers")
        block = math.prod(sizes)
    schemes, ignored = everywhere(fp8(block=block), exceptions(fields, "modules_to_not_convert", "ignored_layers"))
    if fields.get("expert_dtype") == "fp4":  # DeepSeek-V4
        experts = Stored(name="mxfp4", bits=4, scale_bits=8 / 32, computes="fp8")
        schemes.insert(0, (experts, Names(["re:.*\\.experts(\\.|$)"])))
    return schemes, ignored


def _fbgemm(fields: Fields) -> Read:
    return everywhere(fp8(channel=True), exceptions(fields, "modules_to_not_convert"))


def _integer(fields: Fields) -> Read:
    """AWQ and GPTQ, and auto-round, which stores like them; all may say other bits for some modules."""
    stored = _packed(fields)
    schemes, ignored = everywhere(stored, exceptions(fields, "modules_to_not_convert", "modules_to_not_quantize"))
    if fields.get("lm_head") is True:
        schemes.append((stored, Names(["lm_head"])))
    own, left = _dynamic(fields)
    own_extra, left_extra = _extra(fields)
    return [*own, *own_extra, *schemes], Names([*ignored.patterns, *left, *left_extra])


def _packed(fields: Fields) -> Stored:
    kind = str(fields.get("data_type") or "int")
    if kind.startswith(("mx_fp", "nv_fp")):
        known = {("mx_fp", 4): MXFP4, ("nv_fp", 4): NVFP4, ("mx_fp", 8): ALGORITHMS["MXFP8"]}
        bits = fields.whole("bits", most=16)
        if (kind[:5], bits) not in known:
            raise fields.wrong("data_type", "mx_fp of 4 or 8 bits, or nv_fp of 4")
        return known[kind[:5], bits]
    zero = fields.truth("zero_point", default=not fields.truth("sym", default=False))
    size = group_size(fields, "group_size", "q_group_size")
    return grouped(fields.whole("bits", "w_bit", most=16), size, zero=zero or fields.get("quant_method") == "gptq")


def _dynamic(fields: Fields) -> tuple[list[Scheme], list[str]]:
    """GPTQModel's `dynamic`: `-:` and an expression leaves modules out, `+:` changes their bits or group."""
    given = fields.part("dynamic").given
    own: list[Scheme] = []
    for name, changes in given.items():
        if not name.startswith("-:"):
            each = fields.plus(changes if isinstance(changes, Mapping) else {})
            own.append((_packed(each), Names(["re:" + name.removeprefix("+:")])))
    return own, ["re:" + name[2:] for name in given if name.startswith("-:")]


def _extra(fields: Fields) -> tuple[list[Scheme], list[str]]:
    """auto-round's `extra_config`: modules with bits or a group of their own; 16 bits are none."""
    own: list[Scheme] = []
    left: list[str] = []
    for name, changes in fields.part("extra_config").given.items():
        each = fields.plus(changes if isinstance(changes, Mapping) else {})
        if each.whole("bits", "w_bit", most=32) >= 16:
            left.append(name)
        else:
            own.append((_packed(each), Names([name])))
    return own, left


def _bitsandbytes(fields: Fields) -> Read:
    ignored = exceptions(fields, "llm_int8_skip_modules")
    if fields.truth("load_in_4bit", default=fields.truth("_load_in_4bit", default=False)):
        # files that bitsandbytes writes have this field; where it is missing, as in published nf4 files, scales are
        # quantized too
        return everywhere(NF4[fields.truth("bnb_4bit_use_double_quant", default=True)], ignored)
    return everywhere(Stored(name="int8", bits=8, row_bits=32, computes="int8"), ignored)


def _mxfp4(fields: Fields) -> Read:
    """Experts alone, as gpt-oss has them."""
    experts = Names(["re:.*\\.experts(\\.|$)"])
    return [(MXFP4, experts)], exceptions(fields, "modules_to_not_convert")


ALGORITHMS = {
    "FP8": fp8(),
    "FP8_PB_WO": fp8(block=128 * 128),
    "FP8_PER_CHANNEL_PER_TOKEN": fp8(channel=True),
    "NVFP4": NVFP4,
    "NVFP4_AWQ": NVFP4,
    "W4A16_NVFP4": Stored(name="nvfp4", bits=4, scale_bits=8 / 16),
    "MXFP4": MXFP4,
    "W4A8_MXFP4_FP8": Stored(name="mxfp4", bits=4, scale_bits=8 / 32, computes="fp8"),
    "MXFP8": Stored(name="mxfp8", bits=8, scale_bits=8 / 32, computes="fp8"),
    "INT8_SQ": Stored(name="int8", bits=8, row_bits=32, computes="int8"),
    "W4A16_AWQ": grouped(4, 128, zero=False),
    "W8A16": Stored(name="int8", bits=8, row_bits=16),
    "W4A8_NVFP4_FP8": Stored(name="nvfp4", bits=4, scale_bits=8 / 16, computes="fp8"),
    "NVFP4_SVDQUANT": NVFP4,
    "W4A8_MXFP4_INT8": Stored(name="mxfp4", bits=4, scale_bits=8 / 32, computes="int8"),
    "W4A8_AWQ": Stored(name="int4", bits=4, scale_bits=16 / 128, computes="fp8"),
}
"""`quant_algo` of modelopt."""


def _modelopt(fields: Fields) -> Read:
    ignored = exceptions(fields, "exclude_modules", "ignore")
    algorithm = fields.get("quant_algo")
    layers = fields.get("quantized_layers")
    if isinstance(layers, Mapping):
        return [(_algorithm(fields, each), Names([name])) for name, each in _quantized_layers(layers)], ignored
    if algorithm is None and "config_groups" in fields:
        return _compressed(fields)
    return everywhere(_algorithm(fields, algorithm), ignored)


def _quantized_layers(layers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, each.get("quant_algo") if isinstance(each, Mapping) else None) for name, each in layers.items()]


def _algorithm(fields: Fields, algorithm: Any) -> Stored:
    if not isinstance(algorithm, str) or algorithm.upper() not in ALGORITHMS:
        raise BadConfig(f"config.json: quant_algo {algorithm!r} is not known; known: {', '.join(ALGORITHMS)}")
    found = ALGORITHMS[algorithm.upper()]
    size = group_size(fields, "group_size")
    if found.name == "int4" and size:
        return replace(found, scale_bits=16 / size)
    return found


def _compressed(fields: Fields) -> Read:
    """compressed-tensors: groups of modules with a format each."""
    if fields.part("sparsity_config").get("format") not in (None, "dense"):
        raise fields.wrong("sparsity_config", "null or dense: weights without their zeros are not counted")
    groups = fields.part("config_groups")
    schemes: list[Scheme] = []
    for name in groups.given:
        group = groups.part(name)
        if "weights" not in group:
            continue
        targets = exceptions(group, "targets")
        linear = [target for target in targets.patterns if target == "Linear"]
        names = Names(["re:.*layers\\.", "lm_head"]) if linear or not targets.patterns else targets
        schemes.append((_scheme(group), names))
    if not schemes:
        raise BadConfig("config.json: field 'config_groups' names no group with weights")
    return schemes, exceptions(fields, "ignore")


def _scheme(group: Fields) -> Stored:
    weights, inputs = group.part("weights"), group.part("input_activations")
    bits, kind = weights.whole("num_bits", most=16), weights.get("type")
    size = group_size(weights, "group_size")
    computes = "16"
    if "num_bits" in inputs:
        computes = {(8, "float"): "fp8", (8, "int"): "int8", (4, "float"): "fp4"}.get(
            (inputs.whole("num_bits", most=16), str(inputs.get("type") or kind)), "16"
        )
    if kind == "float" and bits == 4:
        found = MXFP4 if size == 32 else NVFP4
        return Stored(name=found.name, bits=4, scale_bits=found.scale_bits, computes=computes)
    strategy = weights.get("strategy")
    if kind == "float":
        block = weights.get("block_structure")
        if strategy == "block" and isinstance(block, list) and all(type(n) is int and n > 0 for n in block):
            return fp8(block=math.prod(block), computes=computes)
        if strategy == "group" and size:
            return Stored(name="fp8", bits=8, scale_bits=16 / size, computes=computes)
        return fp8(channel=strategy == "channel", computes=computes)
    found = grouped(bits, size, zero=not weights.truth("symmetric", default=True))
    return Stored(name=found.name, bits=bits, scale_bits=found.scale_bits, row_bits=found.row_bits, computes=computes)


def _quark(fields: Fields) -> Read:
    """AMD Quark: weights as `global_quant_config` says, but for the modules that `layer_quant_config` lists."""
    own = [
        (_quark_weight(fields.part("layer_quant_config").part(name)), Names([name]))
        for name in fields.part("layer_quant_config").given
    ]
    schemes, ignored = everywhere(_quark_weight(fields.part("global_quant_config")), exceptions(fields, "exclude"))
    return [*own, *schemes], ignored


def _quark_weight(fields: Fields) -> Stored:
    given = fields.get("weight")
    if isinstance(given, list) and given:  # several steps; the last is what is stored
        fields = fields.plus({"weight": given[-1]})
    weight = fields.part("weight")
    size = group_size(weight, "group_size")
    channel = weight.get("qscheme") == "per_channel"
    types = {"fp8_e4m3": fp8(channel=channel), "fp4": MXFP4, "int8": ALGORITHMS["INT8_SQ"]}
    types |= {"int4": grouped(4, size, zero=False), "uint4": grouped(4, size or 128, zero=True)}
    types["mxfp4"] = MXFP4
    if weight.get("dtype") not in types:
        raise BadConfig(f"config.json: quark stores weights as {weight.get('dtype')!r}; known: {', '.join(types)}")
    return types[str(weight.get("dtype"))]


TORCHAO = {
    "int4weightonly": grouped(4, 128, zero=False, scale=32),
    "int8weightonly": Stored(name="int8", bits=8, row_bits=16),
    "int8dynamicactivationint8weight": Stored(name="int8", bits=8, row_bits=16, computes="int8"),
    "int8dynamicactivationint4weight": grouped(4, 32, zero=False),
    "float8weightonly": Stored(name="fp8", bits=8, row_bits=32),
    "float8dynamicactivationfloat8weight": fp8(channel=True),
}
"""torchao's types, without `_`, `Config` and capitals. Its int4 has a scale and a zero point of 16 bits for a group."""


def _torchao(fields: Fields) -> Read:
    """`quant_type` is a name, or an object whose `default` says one, as torchao writes it since 0.10."""
    given, options = fields.get("quant_type"), fields.part("quant_type_kwargs")
    if isinstance(given, Mapping):
        default = fields.part("quant_type").part("default")
        given, options = default.get("_type"), default.part("_data")
    name = str(given).replace("_", "").lower().removesuffix("config")
    if name not in TORCHAO:
        known = ", ".join(TORCHAO)
        raise BadConfig(f"config.json: torchao's quant_type {str(given)[:60]!r} is not known; known: {known}")
    stored, size = TORCHAO[name], group_size(options, "group_size")
    if size and stored.scale_bits:
        stored = replace(stored, scale_bits=(32 if name == "int4weightonly" else 16) / size)
    schemes, ignored = everywhere(stored, exceptions(fields, "modules_to_not_convert"))
    if fields.truth("include_input_output_embeddings", default=False):
        schemes.append((stored, Names(["lm_head", "embed_tokens"])))
    return schemes, ignored


def _hqq(fields: Fields) -> Read:
    """A scale and a zero point of 16 bits for each group; one setting for all modules."""
    params = fields.part("quant_config").part("weight_quant_params")
    if not params.given:
        raise BadConfig("config.json: hqq without 'weight_quant_params' for all modules is not read here")
    bits, size = params.whole("nbits", most=8), group_size(params, "group_size")
    return everywhere(grouped(bits, size, zero=False, scale=32), exceptions(fields, "skip_modules"))


def _exl(fields: Fields) -> Read:
    """exllama: `bits` of a weight on average, all that comes with it counted, and `head_bits` of `lm_head`."""
    method, bits, head = str(fields.get("quant_method")), fields.real("bits"), fields.real("head_bits")
    if not 0 < bits <= 16 or head > 16:
        raise fields.wrong("bits", "a number above 0, 16 at most")
    schemes, ignored = everywhere(Stored(name=method, bits=bits), Names(()))
    if head:
        schemes.append((Stored(name=method, bits=head), Names(["lm_head"])))
    return schemes, ignored


def _quanto(fields: Fields) -> Read:
    types = {"int8": Stored(name="int8", bits=8, row_bits=16), "float8": fp8(), "int4": grouped(4, 128, zero=True)}
    if fields.get("weights") not in types:
        raise fields.wrong("weights", " or ".join(types))
    return everywhere(types[str(fields.get("weights"))], exceptions(fields, "modules_to_not_convert"))


def _eetq(fields: Fields) -> Read:
    return everywhere(Stored(name="int8", bits=8, row_bits=16), exceptions(fields, "modules_to_not_convert"))


def _bitnet(fields: Fields) -> Read:
    """Three values in 2 bits, and one scale for a matrix."""
    return everywhere(Stored(name="ternary", bits=2), exceptions(fields, "modules_to_not_convert"))


def _fp_quant(fields: Fields) -> Read:
    types = {"mxfp4": MXFP4, "nvfp4": NVFP4}
    kind = str(fields.get("forward_dtype") or "nvfp4")
    if kind not in types:
        raise fields.wrong("forward_dtype", " or ".join(types))
    return everywhere(types[kind], exceptions(fields, "modules_to_not_convert"))


METHODS: dict[str, Callable[[Fields], Read]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "awq": _integer,
    "gptq": _integer,
    "auto-round": _integer,
    "auto_round": _integer,
    "intel/auto-round": _integer,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "modelopt_mixed": _modelopt,
    "compressed-tensors": _compressed,
    "quark": _quark,
    "torchao": _torchao,
    "hqq": _hqq,
    "exl2": _exl,
    "exl3": _exl,
    "quanto": _quanto,
    "eetq": _eetq,
    "bitnet": _bitnet,
    "fp_quant": _fp_quant,
}
"""Readers by `quant_method`."""
