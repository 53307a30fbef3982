"""A published checkpoint on disk: which model is it, and its weights as a decode step takes them.

The format of the weights (huggingface/safetensors, README): 8 bytes with the length of a JSON header, the header, then
raw bytes. The header gives the type, the shape and the two offsets of each tensor. Files are mapped, so that a tensor
is read when it is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BadRequest
from bench.predict.model_file import json_object
from kernels.model_config import BadConfig, read
from kernels.op import discover

if TYPE_CHECKING:
    import torch

TYPES = {"BF16": ("bfloat16", "bf16"), "F16": ("float16", "fp16"), "F32": ("float32", "fp32")}
"""By the names of the format: torch's names and ours."""

EMBEDDINGS = (".embed_tokens.weight", ".embeddings.weight")
"""How most families and Nemotron-H name it."""

CODES = {"F8_E4M3": "float8_e4m3fn", "I8": "int8", "U8": "uint8", "I32": "int32", "I64": "int64"}
"""Types of codes, scales and groups in quantized checkpoints, by the names of the format: torch's names."""

LARGEST_HEADER = 100 << 20
"""The format allows no larger one."""


class Tensors(Mapping[str, "torch.Tensor"]):
    """The tensors of all files of a directory by name, each as a view of its mapped file."""

    def __init__(self, directory: Path) -> None:
        """Raises `BadRequest` for a directory without weights, and for a file that is not whole."""
        self.directory = directory
        paths = sorted(directory.glob("*.safetensors"))
        index = directory / "model.safetensors.index.json"
        if index.is_file():
            paths = [
                directory / name for name in sorted(set(json_object(index, LARGEST_HEADER)["weight_map"].values()))
            ]
        if not paths:
            raise BadRequest(f"{directory} has no *.safetensors; give the directory of a Hugging Face checkpoint")
        self.entries: dict[str, tuple[Path, int, Mapping[str, Any]]] = {}
        for path in paths:
            self.entries |= {name: (path, start, each) for name, start, each in header(path)}

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        path, start, each = self.entries[name]
        if each["dtype"] not in (*TYPES, *CODES):
            raise BadRequest(
                f"{path.name}: {name} is stored as {each['dtype']}; a step reads {', '.join((*TYPES, *CODES))}"
            )
        kind = getattr(torch, CODES.get(each["dtype"]) or TYPES[each["dtype"]][0])
        size = path.stat().st_size
        whole = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        first, last = (start + offset for offset in each["data_offsets"])
        mine = whole[first:last]
        return (mine if first % kind.itemsize == 0 else mine.clone()).view(kind).view(each["shape"])

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def header(path: Path) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Name, where the data begins, and the entry of each tensor. Raises `BadRequest` for a file that is not whole."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            start, size = 8 + length, path.stat().st_size
            if length > LARGEST_HEADER or start > size:
                raise ValueError
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        for name, each in entries.items():
            first, last = each["data_offsets"]
            if not 0 <= first <= last <= size - start or min(each["shape"], default=0) < 0:
                raise ValueError
            yield name, start, each
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadRequest(f"{path} is no whole file of safetensors; fetch it again") from None


def model_in(directory: Path) -> str:
    """The name under which this process knows the model of a checkpoint from now on. Raises `BadRequest`."""
    config = json_object(directory / "config.json")
    name = str(directory.resolve()).lower()
    try:
        discover()["decode_step"].case_type.learn(read(config, name=name))
    except BadConfig as error:
        raise BadRequest(f"{directory}: {error}") from None
    return name


def quantization_of(directory: Path) -> dict[str, Any]:
    """`quantization_config` of config.json; empty for weights that are not quantized. Raises `BadRequest`."""
    found = json_object(directory / "config.json").get("quantization_config") or {}
    if not isinstance(found, dict):
        raise BadRequest(f"{directory}: field 'quantization_config' of config.json is not an object")
    return found


def formats(tensors: Tensors, quantization: dict[str, Any], dequantize: bool) -> list[dict[str, str]]:
    """How a step may take the weights: fields of its case, the first choice first. As they are stored; on request also
    with experts in the type of the step, or all. Raises `BadRequest`."""
    if not quantization:
        return [{}]
    try:
        products, experts = discover()["decode_step"].case_type.stored_formats(tensors, quantization)
    except (KeyError, ValueError) as error:
        raise BadRequest(f"{tensors.directory}: {error}") from None
    plain = stored_type(tensors)
    # a step without other experts than those of its products has no type for them
    other = {"experts": experts or plain} if any(".experts." in name for name in tensors) else {}
    found = [{"weights": products, **other}]
    if dequantize:
        found += [{"weights": products, **dict.fromkeys(other, plain)}, {}]
    return found


def stored_type(tensors: Tensors) -> str:
    """The type of the embedding, in which the step computes."""
    name = next((name for end in EMBEDDINGS for name in tensors if f".{name}".endswith(end)), "")
    if not name:
        raise BadRequest(f"{tensors.directory}: no tensor is named embed_tokens.weight; is it a whole decoder?")
    kind = tensors.entries[name][2]["dtype"]
    if kind not in TYPES:
        raise BadRequest(f"{tensors.directory}: {name} is stored as {kind}; a step reads {', '.join(TYPES)}")
    return TYPES[kind][1]


def step_weights(
    case: Any, tensors: Tensors, quantization: dict[str, Any] | None = None, dequantize: bool = False
) -> dict[str, torch.Tensor]:
    """All weights of a step, each of the size that the case asks for. Raises `BadRequest`."""
    try:
        return case.published(tensors, quantization, dequantize)
    except KeyError as error:
        raise BadRequest(f"{tensors.directory} has no tensor {error.args[0]}") from None
    except ValueError as error:
        raise BadRequest(f"{tensors.directory}: {error}") from None
