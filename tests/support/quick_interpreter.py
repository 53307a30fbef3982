"""Triton's interpreter without work that it does again in each call of a device function: half of its time."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from typing import Any

from triton.language.core import dtype, is_builtin
from triton.runtime import interpreter


@cache
def builtins_of(package: Any) -> list[tuple[str, Any]]:
    """Names and functions of the language that a module or class has before the interpreter replaces them."""
    return [(name, member) for name, member in inspect.getmembers(package) if is_builtin(member)]


def patch_builtin(package: Any, *arguments: Any) -> None:
    """`interpreter._patch_builtin`, which searches all members. Here they are searched once."""
    for name, member in builtins_of(package):
        if getattr(package, name) is member:
            interpreter._patch_attr(package, name, member, *arguments)


slow_np_dtype = interpreter._get_np_dtype
np_dtype_of_scalar = cache(slow_np_dtype)


def np_dtype(kind: Any) -> Any:
    """`interpreter._get_np_dtype`, which makes a table of all types. Here each type of numbers is looked up once."""
    return np_dtype_of_scalar(kind.scalar) if type(kind.scalar) is dtype else slow_np_dtype(kind)


def install() -> None:
    """Also without checks of integers for overflow: the interpreter asserts their result only for debugging."""
    interpreter._patch_builtin = patch_builtin
    interpreter._get_np_dtype = np_dtype
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)
