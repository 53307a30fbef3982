"""How a checkpoint stores its weights: the `quantization_config` of a config.json, module by module.

What each library writes is read in `readers.py`, and how a weight may be stored is said in `formats.py`.
Embedding, `lm_head` and router stay in 16 bits unless the file names them, as does every
module that its list of exceptions names. Standard library only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernels.model_config import Reading
from kernels.model_config.fields import BadConfig, Fields
from kernels.model_config.formats import PLAIN, Scheme, Stored
from kernels.model_config.names import Names, paths_of
from kernels.model_config.readers import METHODS
from kernels.models import modules


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


def checkpoint(config: Mapping[str, Any], reading: Reading) -> Checkpoint:
    """How the weights of this file are stored. Raises `BadConfig` where its quantization is not known."""
    plain = _plain(config, reading.text)
    given = next((c["quantization_config"] for c in (config, reading.text) if c.get("quantization_config")), None)
    if given is None:
        return Checkpoint(name=plain.name, plain=plain, notes=_unread(config, reading))
    if not isinstance(given, Mapping):
        raise BadConfig("config.json: field 'quantization_config' is not an object")
    outer = next((c["expert_dtype"] for c in (config, reading.text) if c.get("expert_dtype")), None)
    fields = Fields("quantization_config", {"expert_dtype": outer, **given}, {})
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
    names = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "num_mtp_modules")
    layers = next((reading.text[name] for name in names if reading.text.get(name)), 0)
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


def _kv(fields: Fields) -> str | None:
    """The type of the KV cache: `kv_cache_scheme`, or modelopt's `kv_cache_quant_algo`."""
    if isinstance(fields.get("kv_cache_quant_algo"), str):
        known = {"FP8": "fp8", "NVFP4": "fp4", "INT8": "int8"}
        algorithm = str(fields.get("kv_cache_quant_algo")).upper()
        if algorithm not in known:
            raise fields.wrong("kv_cache_quant_algo", " or ".join(known))
        return known[algorithm]
    if "fp8_e4m3" in str(fields.get("kv_cache_quant_config")):  # quark
        return "fp8"
    if "kv_cache_scheme" not in fields:
        return None
    scheme = fields.part("kv_cache_scheme")
    kind = (scheme.whole("num_bits", most=16), scheme.get("type"))
    names = {(8, "float"): "fp8", (8, "int"): "int8", (4, "int"): "int4", (4, "float"): "fp4"}
    if kind not in names:
        raise scheme.wrong("num_bits", "8 or 4 of type float or int")
    return names[kind]
