"""SASS and resource usage of compiled kernels, by the tools that Triton ships."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from bench.inspection.codegen import parse


@cache
def tool(name: str) -> str:
    """`nvdisasm` or `cuobjdump` as Triton ships it."""
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def said(name: str, content: bytes, *flags: str) -> str:
    """What a tool prints about a file with this content."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(content)
        file.flush()
        done = subprocess.run([tool(name), *flags, file.name], capture_output=True, text=True, check=True)
    return done.stdout


def usage(cubin: bytes) -> parse.Resources:
    """What the kernel of a cubin uses."""
    return parse.resources(said("cuobjdump", cubin, "--dump-resource-usage"))


def code_of(cubin: bytes) -> bytes:
    """The instructions of a cubin: its sections `.text.*`, one after the other.

    A cubin is a 64-bit ELF file; the fields are those of `Elf64_Ehdr` and `Elf64_Shdr` in elf(5).
    """
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("a cubin is a 64-bit ELF file, and this is none")
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry, count, names_at = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + entry * i) for i in range(count)]
    names = sections[names_at][4]
    texts = [(at, size) for name, _, _, _, at, size in sections if cubin.startswith(b".text.", names + name)]
    return b"".join(cubin[at : at + size] for at, size in texts)


def sass(cubins: Sequence[bytes], sm: int) -> list[list[parse.Instruction]]:
    """The instructions of each cubin, all compiled for `sm`. Addresses of one go on behind those of the one before.

    One process reads them all, as raw code: `nvdisasm` takes about 0.35 s to start and 0.05 s to read a kernel.
    """
    if not cubins:
        return []
    codes = [code_of(cubin) for cubin in cubins]
    architecture = f"SM{sm}a" if sm >= 90 else f"SM{sm}"
    listing = said("nvdisasm", b"".join(codes), "--binary", architecture, "--no-dataflow")
    instructions = parse.sass_instructions(listing)
    found, start = [], 0
    for code in codes:
        found.append([each for each in instructions if start <= each.at < start + len(code)])
        start += len(code)
    return found
