"""Quantized matrices of published checkpoints -> codes and scales as `kernels/common/quantization.py` has them.

Tensors of a matrix W `[N, K]`, by the library that writes them, and the format that it becomes:

| library                    | tensors                                                            | format        |
|----------------------------|--------------------------------------------------------------------|---------------|
| fp8 of DeepSeek and Qwen   | `weight` e4m3 [N, K], `weight_scale_inv` [N/128, K/128]            | fp8_block     |
| compressed-tensors, fbgemm | `weight` e4m3 or int8 [N, K], `weight_scale` [N, 1] or [1]         | fp8, int8     |
| compressed-tensors, packed | `weight_packed` int32 [N, K/8], `weight_scale` [N, K/128], and     | int4, int4_zp |
|                            | `weight_zero_point` int32 [N/8, K/128]                             |               |
| GPTQ                       | `qweight` int32 [K/8, N], `scales` [K/128, N], `qzeros` int32      | int4, int4_zp |
|                            | [K/128, N/8] less one, `g_idx` [K]                                 |               |
| AWQ (gemm)                 | `qweight` int32 [K, N/8], `scales` [K/128, N], `qzeros` int32      | int4_zp       |
|                            | [K/128, N/8]                                                       |               |
| gpt-oss                    | `_blocks` uint8 [E, N, K/32, 16], `_scales` uint8 [E, N, K/32]     | mxfp4         |

An int32 holds eight codes, the first one in its lowest bits; in AWQ they are those of columns 0, 2, 4, 6, 1, 3, 5, 7.
Sources: DeepSeek-V3, README_WEIGHTS.md; compressed-tensors, compressors/pack_quantized (`pack_to_int32`, which adds 8
to codes and to zero points); AutoGPTQ, qlinear_cuda_old.py (`pack`), whose `checkpoint_format` gptq_v2 stores zero
points as they are; AutoAWQ, utils/packing_utils.py (`AWQ_ORDER`); transformers 5.24, integrations/mxfp4.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernels.common.integers import cdiv
from kernels.common.quantization import FORMATS, nibble_values

if TYPE_CHECKING:
    import torch

Stored = Mapping[str, Any]
"""Tensors by the names of a checkpoint's files."""

METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "gptq", "awq", "mxfp4", "modelopt")
"""`quant_method` of a config.json whose tensors are read here, of modelopt those in fp8."""

AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where each of eight columns is in an int32 of AWQ."""

CODES, SCALE, ZERO = "w", "scale", "zero"


class Packed:
    """A matrix as codes and scales, with the operations on rows that a tensor has.

    `parts` have the rows of the matrix, [..., N, columns of the part], so that what moves rows moves all of them alike:
    codes [N, K] or [N, K/2], scales [N, groups] and, where there are any, zero points [N, groups]. `format` is one of
    `FORMATS`, or the words for a layout that no product has. `kind` tells what codes mean: int8, fp8, int4 or mxfp4.
    """

    ROWS = ("chunk", "flatten", "split", "unflatten")

    def __init__(self, name: str, format: str, kind: str, parts: Mapping[str, torch.Tensor]) -> None:
        self.name, self.format, self.kind, self.parts = name, format, kind, parts

    def like(self, parts: Mapping[str, torch.Tensor]) -> Packed:
        return Packed(self.name, self.format, self.kind, parts)

    @property
    def shape(self) -> tuple[int, ...]:
        *rows, columns = self.parts[CODES].shape
        return (*rows, columns * (1 if self.kind in ("int8", "fp8") else 2))

    def __getitem__(self, at: Any) -> Packed:
        return self.like({name: part[at] for name, part in self.parts.items()})

    def __mul__(self, factor: float) -> Packed:
        assert self.kind != "mxfp4", "its scales are powers of two"
        return self.like({**self.parts, SCALE: self.parts[SCALE] * factor})

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self.ROWS:
            raise AttributeError(name)

        def moved(*args: Any, **more: Any) -> Any:
            found = {part: getattr(tensor, name)(*args, **more) for part, tensor in self.parts.items()}
            if not isinstance(found[CODES], tuple | list):
                return self.like(found)
            return tuple(self.like(dict(zip(found, each, strict=True))) for each in zip(*found.values(), strict=True))

        return moved

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), more: Any = None) -> Any:
        """`torch.cat` and `torch.stack` of matrices in one format. Raises ValueError for other ones."""
        import torch

        if function not in (torch.cat, torch.stack):
            return NotImplemented
        matrices: Sequence[Any] = args[0]
        first = next(each for each in matrices if isinstance(each, Packed))
        for each in matrices:
            other = each.format if isinstance(each, Packed) else str(each.dtype).removeprefix("torch.")
            if other != first.format:
                raise ValueError(f"{first.name} is stored as {first.format}, a matrix beside it as {other}")
        joined = {
            part: function([each.parts[part] for each in matrices], *args[1:], **more or {}) for part in first.parts
        }
        return first.like(joined)

    def with_zero_points(self) -> Packed:
        """int4, whose zero points are all 8, as int4_zp."""
        import torch

        zeros = torch.full_like(self.parts[SCALE], 8, dtype=torch.uint8)
        return Packed(self.name, "int4_zp", self.kind, {**self.parts, ZERO: zeros})

    def dequantized(self) -> torch.Tensor:
        """W in fp32."""
        import torch

        codes, scale, K = self.parts[CODES], self.parts[SCALE].float(), self.shape[-1]
        values = codes.float() if self.kind in ("int8", "fp8") else nibble_values(self.kind, codes.contiguous())
        if self.kind == "mxfp4":
            scale = torch.exp2(scale - 127)
        if self.kind == "int4":
            values = values - (wide(self.parts[ZERO].float(), K) if ZERO in self.parts else 8)
        return values * wide(scale, K)

    def inputs(self, name: str, scale_type: torch.dtype, height: int = 0) -> dict[str, torch.Tensor]:
        """`name`, `name_scale` and so on, as a step takes them. `height`: see `quantization.Format.scale_shape`. Raises
        ValueError for a block with two scales."""
        scale = self.parts[SCALE].flatten(0, -2)
        if self.format == "fp8_block":
            scale = of_blocks(self.name, scale.unflatten(0, (-1, height or self.shape[-2]))).flatten(0, 1)
        elif not FORMATS[self.format].group_k:
            scale = scale[:, 0]
        found = {name: self.parts[CODES].contiguous()}
        found[f"{name}_scale"] = (scale if self.kind == "mxfp4" else scale.to(scale_type)).contiguous()
        if ZERO in self.parts:
            found[f"{name}_zero"] = self.parts[ZERO].flatten(0, -2).contiguous()
        return found


def wide(groups: torch.Tensor, K: int) -> torch.Tensor:
    """[..., G] -> [..., K]: a value of a group stands for each of its columns. The last group may have fewer."""
    G = groups.shape[-1]
    size = 128 if cdiv(K, 128) == G else cdiv(K, G)
    return groups.repeat_interleave(size, dim=-1)[..., :K]


def of_blocks(name: str, scale: torch.Tensor) -> torch.Tensor:
    """[..., N, G] -> [..., N/128, G]: one row of 128, of which all must be the same."""
    N = scale.shape[-2]
    found = scale[..., ::128, :]
    if not bool((found.repeat_interleave(128, dim=-2)[..., :N, :] == scale).all()):
        raise ValueError(f"{name} and what is one product with it have two scales in a block of 128 rows")
    return found


# ---- the layouts


def halves(codes: torch.Tensor) -> torch.Tensor:
    """Codes [..., K] -> bytes [..., K/2], the even column in the low half."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def eights(words: torch.Tensor, dim: int) -> torch.Tensor:
    """int32 words -> uint8 codes: eight in the place of each along `dim` (0 or 1), that of the lowest bits first."""
    import torch

    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    codes = (words.unsqueeze(dim + 1) >> shifts.view(-1, *([1] * (1 - dim)))) & 15
    return codes.to(torch.uint8).flatten(dim, dim + 1)


def grouped(name: str, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Packed:
    """int4 with groups of 128 or of a multiple of it; others have the words for theirs as format."""
    K, G = 2 * codes.shape[-1], scale.shape[-1]
    size, parts = cdiv(K, G), {CODES: codes, SCALE: scale}
    if zero is not None and not bool((zero == 8).all()):
        parts[ZERO] = zero
    if size % 128 == 0 or G in (1, cdiv(K, 128)):
        spread = {n: wide(p, K)[..., ::128].contiguous() if n != CODES else p for n, p in parts.items()}
        return Packed(name, "int4_zp" if ZERO in parts else "int4", "int4", spread)
    return Packed(name, f"int4 in groups of {size}", "int4", parts)


def block_fp8(stored: Stored, at: str, given: Mapping[str, Any]) -> Packed:
    w, scale = stored[f"{at}.weight"], stored[f"{at}.weight_scale_inv"].float()
    rows, columns = given.get("weight_block_size") or (128, 128)
    scale = scale.repeat_interleave(int(rows), dim=0)[: len(w)]
    plain = rows == columns == 128
    return Packed(
        f"{at}.weight", "fp8_block" if plain else f"fp8 in blocks of {rows}x{columns}", "fp8", {CODES: w, SCALE: scale}
    )


def by_rows(stored: Stored, at: str, given: Mapping[str, Any]) -> Packed:
    """One scale per row, per matrix, or, where compressed-tensors says `block`, per 128 x 128."""
    import torch

    w, scale = stored[f"{at}.weight"], stored[f"{at}.weight_scale"].float()
    kind = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}.get(w.dtype)
    if kind is None or any(f"{at}.{more}" in stored for more in ("weight_scale_2", "weight_zero_point")):
        raise ValueError(f"{at}.weight is stored as {w.dtype} with scales of another layout than is read here")
    if scale.numel() == 1:
        scale = scale.reshape(1, 1).expand(len(w), 1)
    elif scale.numel() == len(w):
        scale = scale.reshape(-1, 1)
    elif kind == "fp8" and tuple(scale.shape) == (cdiv(w.shape[0], 128), cdiv(w.shape[1], 128)):
        return Packed(
            f"{at}.weight", "fp8_block", kind, {CODES: w, SCALE: scale.repeat_interleave(128, dim=0)[: len(w)]}
        )
    else:
        raise ValueError(
            f"{at}.weight_scale has the shape {tuple(scale.shape)}: read are one per row and one per matrix"
        )
    return Packed(f"{at}.weight", kind, kind, {CODES: w, SCALE: scale})


def compressed(stored: Stored, at: str, given: Mapping[str, Any]) -> Packed:
    import torch

    words, scale = stored[f"{at}.weight_packed"], stored[f"{at}.weight_scale"]
    N, K = (int(n) for n in stored[f"{at}.weight_shape"])
    if words.dtype != torch.int32 or tuple(words.shape) != (N, K // 8) or f"{at}.weight_g_idx" in stored:
        raise ValueError(f"{at}.weight_packed: read are 4 bits, and groups of neighbours")
    zero = stored.get(f"{at}.weight_zero_point")
    if zero is not None:
        zero = eights(zero, 0)[:N] if zero.dtype == torch.int32 else (zero + 8).to(torch.uint8)
    return grouped(f"{at}.weight_packed", words.contiguous().view(torch.uint8), scale, zero)


def gptq(stored: Stored, at: str, given: Mapping[str, Any]) -> Packed:
    """Without `desc_act` a column's group is its number over the size of groups."""
    import torch

    name, scale = f"{at}.qweight", stored[f"{at}.scales"].T
    codes = halves(eights(stored[name], 0).T)
    zero = eights(stored[f"{at}.qzeros"], 1).T + (given.get("checkpoint_format") != "gptq_v2")
    K, size = 2 * codes.shape[1], int(given.get("group_size", 128))
    groups = stored.get(f"{at}.g_idx")
    if groups is not None and not torch.equal(groups.long(), torch.arange(K) // (size if size > 0 else K)):
        parts = {CODES: codes, SCALE: scale[:, groups.long()], ZERO: zero[:, groups.long()]}
        return Packed(name, "int4 in the order of activations", "int4", parts)
    return grouped(name, codes, scale, zero)


def awq(stored: Stored, at: str, given: Mapping[str, Any]) -> Packed:
    def columns(words: torch.Tensor) -> torch.Tensor:
        return eights(words, 1).unflatten(1, (-1, 8))[..., AWQ_PLACES].flatten(1).T

    zero = columns(stored[f"{at}.qzeros"]) if f"{at}.qzeros" in stored else None
    return grouped(f"{at}.qweight", halves(columns(stored[f"{at}.qweight"])), stored[f"{at}.scales"].T, zero)


def blocks(stored: Stored, at: str, given: Mapping[str, Any]) -> Packed:
    parts = {CODES: stored[f"{at}_blocks"].flatten(-2), SCALE: stored[f"{at}_scales"]}
    return Packed(f"{at}_blocks", "mxfp4", "mxfp4", parts)


ENDS = ("_blocks", ".qweight", ".weight_packed", ".weight_scale_inv", ".weight_scale")
"""What tells that a matrix is quantized, and how: the tensor beside its name."""

READ: Mapping[str, Callable[[Stored, str, Mapping[str, Any]], Packed]] = {
    "_blocks": blocks,
    ".weight_packed": compressed,
    ".weight_scale_inv": block_fp8,
    ".weight_scale": by_rows,
}


class Quantized(Mapping[str, Any]):
    """The tensors of a checkpoint under the names that they would have in 16 bits: plain ones as they are, quantized
    ones as `Packed`, or as `wanted` turns them.

    `given` is `quantization_config` of config.json.
    """

    def __init__(
        self, stored: Stored, given: Mapping[str, Any], wanted: Callable[[str, Packed], Any] | None = None
    ) -> None:
        """Raises ValueError for a method that is not read."""
        self.stored, self.given, self.wanted = stored, given, wanted
        self.method = str(given.get("quant_method") or "modelopt")
        self.matrices: dict[str, str] = {}
        """The end of the tensor that tells how each matrix is stored."""
        if not given:
            return
        if self.method not in METHODS:
            raise ValueError(f"quant_method {self.method!r} is not read; read are {', '.join(METHODS)}")
        bits = given.get("bits", given.get("w_bit", 4))
        version = given.get("version", "gemm")
        if self.method in ("gptq", "awq") and (bits != 4 or str(version).lower() != "gemm"):
            raise ValueError(f"{self.method} with {bits} bits, version {version}: read are 4 bits, of AWQ version gemm")
        for end in reversed(ENDS):
            plain = "" if end == "_blocks" else ".weight"
            self.matrices |= {n.removesuffix(end) + plain: end for n in stored if n.endswith(end)}

    def packed(self, name: str) -> Packed:
        end = self.matrices[name]
        read = READ.get(end) or {"gptq": gptq, "awq": awq}.get(self.method)
        if read is None:
            raise ValueError(f"{name}: {self.method} stores no {end.removeprefix('.')}")
        return read(self.stored, name.removesuffix(".weight"), self.given)

    def __getitem__(self, name: str) -> Any:
        if name not in self.matrices:
            return self.stored[name]
        found = self.packed(name)
        return self.wanted(name, found) if self.wanted else found

    def __contains__(self, name: object) -> bool:
        """Without reading it."""
        return name in self.matrices or name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.stored, *self.matrices)))

    def __len__(self) -> int:
        return len(list(iter(self)))


def is_expert(name: str) -> bool:
    """Whether a tensor is of routed experts."""
    return ".experts." in name


def by_heads(name: str) -> bool:
    """Whether a step multiplies it head by head, in 16 bits only."""
    return ".kv_b_proj." in name


def formats(stored: Stored, given: Mapping[str, Any]) -> tuple[str, str]:
    """The formats of the products and of the experts of a quantized checkpoint, by the first matrix of either; "" for
    none that a product has. If some matrices in int4 have zero points, all are taken to have them."""
    tensors = Quantized(stored, given)
    inside = [name for name in tensors.matrices if ".layers." in name and not by_heads(name)]
    zero_points = tensors.method == "awq" or (tensors.method == "gptq" and not given.get("sym", True))
    zero_points |= any(name.endswith(".weight_zero_point") for name in stored)

    def of(experts: bool) -> str:
        first = next((name for name in inside if is_expert(name) == experts), None)
        found = tensors.packed(first).format if first else ""
        if found not in FORMATS:
            return ""
        return "int4_zp" if found == "int4" and zero_points else found

    return of(False), of(True)
