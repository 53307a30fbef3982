"""How a checkpoint stores its weights: the `quantization_config` of a config.json, module by module.

Read are FP8 (per tensor, per channel or in blocks), NVFP4, MXFP4, AWQ, GPTQ, bitsandbytes, modelopt, compressed-tensors
and a few that are like them. Embedding, `lm_head` and router stay in 16 bits unless the file names them, as does every
module that its list of exceptions names. Standard library only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernels.model_config import Reading
from kernels.model_config.fields import BadConfig, Fields
from kernels.model_config.names import Names, paths_of
from kernels.models import modules


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How one weight is stored, and the type in which it is multiplied."""

    name: str
    bits: float
    """Of one weight, without scales."""
    scale_bits: float = 0.0
    """Scales and zero points, per weight."""
    row_bits: float = 0.0
    """Scales, per row of a matrix."""
    computes: str = "16"
    """`16`, `fp8`, `int8` or `fp4`: the type of its tensor-core instruction."""


PLAIN = {
    "bfloat16": Stored(name="bf16", bits=16),
    "float16": Stored(name="fp16", bits=16),
    "float32": Stored(name="fp32", bits=32, computes="32"),
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """For each kind of module (`kernels.models.modules`), how its weights are stored and the share of its layers."""

    name: str
    plain: Stored
    modules: Mapping[str, tuple[tuple[Stored, float], ...]] = field(default_factory=dict)
    """Kinds that are missing here are stored as `plain`."""
    kv: str | None = None
    """The type of the KV cache that the file asks for."""
    notes: tuple[str, ...] = ()

    def of(self, module: str) -> tuple[tuple[Stored, float], ...]:
        return self.modules.get(module, ((self.plain, 1.0),))


Scheme = tuple[Stored, Names]
"""How the modules with these names are stored."""


def checkpoint(config: Mapping[str, Any], reading: Reading) -> Checkpoint:
    """How the weights of this file are stored. Raises `BadConfig` where its quantization is not known."""
    plain = _plain(config, reading.text)
    given = next((c["quantization_config"] for c in (config, reading.text) if c.get("quantization_config")), None)
    if given is None:
        return Checkpoint(name=plain.name, plain=plain, notes=_unread(config, reading))
    if not isinstance(given, Mapping):
        raise BadConfig("config.json: field 'quantization_config' is not an object")
    fields = Fields("quantization_config", given, {})
    method = str(given.get("quant_method") or ("modelopt" if "quant_algo" in given else ""))
    read = METHODS.get(method)
    if read is None:
        known = ", ".join(METHODS)
        raise BadConfig(
            f"config.json: quant_method {method!r} is not known; known: {known}; --weights says how to count without it"
        )
    schemes, ignored = read(fields)
    found = _by_module(reading, plain, schemes, ignored)
    if not any(stored != plain for each in found.values() for stored, _ in each):
        raise BadConfig("config.json: field 'quantization_config' names no module of this model")
    names = Counter({stored.name: share for each in found.values() for stored, share in each})
    main = [name for name, _ in names.most_common() if name != plain.name] or [plain.name]
    return Checkpoint(
        name="+".join(main[:2]), plain=plain, modules=found, kv=_kv(fields), notes=_unread(config, reading)
    )


def _unread(config: Mapping[str, Any], reading: Reading) -> tuple[str, ...]:
    """What the file holds besides the decoder, and is not counted."""
    towers = [name for name in ("vision_config", "audio_config") if isinstance(config.get(name), Mapping)]
    said = [f"not counted: what sees or hears ({', '.join(towers)})"] if towers else []
    layers = reading.text.get("num_nextn_predict_layers") or reading.text.get("mtp_num_hidden_layers")
    if not isinstance(layers, bool) and isinstance(layers, int) and layers >= 1:
        said.append(f"not counted: {layers} more layer{'s' if layers > 1 else ''} for multi-token prediction")
    return tuple(said)


def _plain(config: Mapping[str, Any], text: Mapping[str, Any]) -> Stored:
    for name in ("dtype", "torch_dtype"):
        for fields in (text, config):
            found = fields.get(name)
            if isinstance(found, str) and found.removeprefix("torch.") in PLAIN:
                return PLAIN[found.removeprefix("torch.")]
    return PLAIN["bfloat16"]


def _by_module(
    reading: Reading, plain: Stored, schemes: list[Scheme], ignored: Names
) -> dict[str, tuple[tuple[Stored, float], ...]]:
    """The share of each way of storing, over the layers that have a module. Routers are never quantized."""
    counts: dict[str, Counter[Stored]] = {}
    for module in sorted({module.name for module in modules(reading.shape)} - {"router"}):
        for path in paths_of(module, reading):
            found = plain
            if not ignored.name(path):
                found = next((stored for stored, names in schemes if names.name(path)), plain)
            counts.setdefault(module, Counter())[found] += 1
    return {
        module: tuple((stored, count / sum(found.values())) for stored, count in found.items())
        for module, found in counts.items()
    }


# --------------------------------------------------------------------------- formats


def fp8(*, block: float = 0, computes: str = "fp8", channel: bool = False) -> Stored:
    """e4m3 with a fp32 scale per block of `block` weights, per row, or per tensor."""
    if block:
        return Stored(name="fp8", bits=8, scale_bits=32 / block, computes=computes)
    return Stored(name="fp8", bits=8, row_bits=32 if channel else 0, computes=computes)


def grouped(bits: int, group: int, *, zero: bool, scale: int = 16) -> Stored:
    """Integers with a 16-bit scale per group, and a zero point of the same bits; a group of 0 is a whole row."""
    extra = scale + (bits if zero else 0)
    name = f"int{bits}"
    if group <= 0:
        return Stored(name=name, bits=bits, row_bits=extra)
    return Stored(name=name, bits=bits, scale_bits=extra / group)


MXFP4 = Stored(name="mxfp4", bits=4, scale_bits=8 / 32)
NVFP4 = Stored(name="nvfp4", bits=4, scale_bits=8 / 16, computes="fp4")
NF4 = {
    False: Stored(name="nf4", bits=4, scale_bits=32 / 64),
    True: Stored(name="nf4", bits=4, scale_bits=8 / 64 + 32 / 16384),
}
"""bitsandbytes: a fp32 scale for 64 weights; if scales are quantized too, 8 bits, and a fp32 scale for 256 of them."""

Read = tuple[list[Scheme], Names]


def _exceptions(fields: Fields, *names: str) -> Names:
    """The modules that the first of these fields lists."""
    found = next((name for name in names if name in fields), None)
    value = fields.get(found) if found else []
    if not isinstance(value, list) or any(not isinstance(each, str) for each in value):
        raise fields.wrong(str(found), "a list of module names")
    return Names(value)


def _everywhere(stored: Stored, ignored: Names) -> Read:
    """All linear layers of the decoder, but not `lm_head`."""
    return [(stored, Names(["re:.*layers\\."]))], ignored


def _fp8(fields: Fields) -> Read:
    block = 0
    if "weight_block_size" in fields:
        sizes = fields.get("weight_block_size")
        if not isinstance(sizes, list) or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
            raise fields.wrong("weight_block_size", "a list of positive whole numbers")
        block = math.prod(sizes)
    return _everywhere(fp8(block=block), _exceptions(fields, "modules_to_not_convert", "ignored_layers"))


def _fbgemm(fields: Fields) -> Read:
    return _everywhere(fp8(channel=True), _exceptions(fields, "modules_to_not_convert"))


def _integer(fields: Fields) -> Read:
    """AWQ and GPTQ, and auto-round, which stores like them."""
    bits = fields.whole("bits", "w_bit", most=16)
    group = _group(fields, "group_size", "q_group_size")
    zero = fields.truth("zero_point", default=not fields.truth("sym", default=False))
    stored = grouped(bits, group, zero=zero or fields.get("quant_method") == "gptq")
    schemes, ignored = _everywhere(stored, _exceptions(fields, "modules_to_not_convert", "modules_to_not_quantize"))
    if fields.get("lm_head") is True:
        schemes.append((stored, Names(["lm_head"])))
    return schemes, ignored


def _group(fields: Fields, *names: str) -> int:
    found = next((name for name in names if name in fields), None)
    if found is None or fields.get(found) == -1:
        return 0
    return fields.whole(found)


def _bitsandbytes(fields: Fields) -> Read:
    ignored = _exceptions(fields, "llm_int8_skip_modules")
    if fields.truth("load_in_4bit", default=fields.truth("_load_in_4bit", default=False)):
        # files that bitsandbytes writes have this field; where it is missing, as in published nf4 files, scales are
        # quantized too
        return _everywhere(NF4[fields.truth("bnb_4bit_use_double_quant", default=True)], ignored)
    return _everywhere(Stored(name="int8", bits=8, row_bits=32, computes="int8"), ignored)


def _mxfp4(fields: Fields) -> Read:
    """Experts alone, as gpt-oss has them."""
    experts = Names(["re:.*\\.experts(\\.|$)"])
    return [(MXFP4, experts)], _exceptions(fields, "modules_to_not_convert")


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
    "W4A8_AWQ": Stored(name="int4", bits=4, scale_bits=16 / 128, computes="fp8"),
}
"""`quant_algo` of modelopt."""


def _modelopt(fields: Fields) -> Read:
    ignored = _exceptions(fields, "exclude_modules", "ignore")
    algorithm = fields.get("quant_algo")
    layers = fields.get("quantized_layers")
    if isinstance(layers, Mapping):
        return [(_algorithm(fields, each), Names([name])) for name, each in _quantized_layers(layers)], ignored
    if algorithm is None and "config_groups" in fields:
        return _compressed(fields)
    return _everywhere(_algorithm(fields, algorithm), ignored)


def _quantized_layers(layers: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, each.get("quant_algo") if isinstance(each, Mapping) else None) for name, each in layers.items()]


def _algorithm(fields: Fields, algorithm: Any) -> Stored:
    if not isinstance(algorithm, str) or algorithm.upper() not in ALGORITHMS:
        raise BadConfig(f"config.json: quant_algo {algorithm!r} is not known; known: {', '.join(ALGORITHMS)}")
    return ALGORITHMS[algorithm.upper()]


def _compressed(fields: Fields) -> Read:
    """compressed-tensors: groups of modules with a format each."""
    groups = fields.part("config_groups")
    schemes: list[Scheme] = []
    for name in groups.given:
        group = groups.part(name)
        if "weights" not in group:
            continue
        targets = _exceptions(group, "targets")
        linear = [target for target in targets.patterns if target == "Linear"]
        names = Names(["re:.*layers\\.", "lm_head"]) if linear or not targets.patterns else targets
        schemes.append((_scheme(group), names))
    if not schemes:
        raise BadConfig("config.json: field 'config_groups' names no group with weights")
    return schemes, _exceptions(fields, "ignore")


def _scheme(group: Fields) -> Stored:
    weights, inputs = group.part("weights"), group.part("input_activations")
    bits, kind = weights.whole("num_bits", most=16), weights.get("type")
    size = _group(weights, "group_size")
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
    """AMD Quark: the type and group of weights are in `global_quant_config`."""
    weight = fields.part("global_quant_config").part("weight")
    types = {"fp8_e4m3": fp8(), "fp4": MXFP4, "int8": ALGORITHMS["INT8_SQ"]}
    types |= {"int4": grouped(4, _group(weight, "group_size"), zero=False), "uint4": grouped(4, 128, zero=True)}
    if weight.get("dtype") not in types:
        raise BadConfig(f"config.json: quark stores weights as {weight.get('dtype')!r}; known: {', '.join(types)}")
    return _everywhere(types[str(weight.get("dtype"))], _exceptions(fields, "exclude"))


METHODS = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "awq": _integer,
    "gptq": _integer,
    "auto-round": _integer,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "compressed-tensors": _compressed,
    "quark": _quark,
}
"""Readers by `quant_method`."""


def _kv(fields: Fields) -> str | None:
    """The type of the KV cache: `kv_cache_scheme`, or modelopt's `kv_cache_quant_algo`."""
    if isinstance(fields.get("kv_cache_quant_algo"), str):
        known = {"FP8": "fp8", "NVFP4": "fp4", "INT8": "int8"}
        algorithm = str(fields.get("kv_cache_quant_algo")).upper()
        if algorithm not in known:
            raise fields.wrong("kv_cache_quant_algo", " or ".join(known))
        return known[algorithm]
    if "kv_cache_scheme" not in fields:
        return None
    scheme = fields.part("kv_cache_scheme")
    kind = (scheme.whole("num_bits", most=16), scheme.get("type"))
    names = {(8, "float"): "fp8", (8, "int"): "int8", (4, "int"): "int4", (4, "float"): "fp4"}
    if kind not in names:
        raise scheme.wrong("num_bits", "8 or 4 of type float or int")
    return names[kind]
