"""Cascade attention: a prefix that all sequences share is read once for many of them, the rest once per sequence.

First, the query rows of as many sequences as a tile of 64 rows holds attend to the prefix together: each KV token that
is read serves 64 rows instead of H_q / H_kv. Then split-KV attention reads the tokens after the prefix, and merges each
sequence's prefix result by log-sum-exp as one more part. Both launches are `split_kv_kernel` over different work lists.
"""

from __future__ import annotations

import torch

from kernels.attention_decode.op import AttentionCase
from kernels.attention_decode.split_plan import prefix_plan, prefix_sequences, suffix_plan
from kernels.attention_decode.split_stages import cascade_stages, cascade_supports
from kernels.attention_decode.triton_split_kv import merge_launches, split_launch
from kernels.common.triton_kv import new_parts, table
from kernels.launch import Built, triton_impl
from kernels.op import Inputs, Target


def build(case: AttentionCase, inputs: Inputs, target: Target) -> Built:
    """Two launches, and a third if a suffix is cut into many parts."""
    prefix, suffix = prefix_plan(case, target), suffix_plan(case, target)
    sequences = prefix_sequences(case, target)
    o = torch.empty_like(inputs["q"], memory_format=torch.contiguous_format)
    prefix_parts = new_parts(prefix.slots, sequences * case.rows, case.D, o.device)
    parts = new_parts(suffix.slots, case.rows, case.D, o.device)
    slots = [(s.first_slot, s.parts) for s in prefix.segments if s.is_first]
    taken_in = (prefix_parts, table(slots, o.device), sequences, suffix.merge_tile)
    return Built(
        launches=(
            split_launch(case, inputs, prefix, prefix_parts, o, sequences=sequences, parts_only=True),
            split_launch(case, inputs, suffix, parts, o, prefix=taken_in),
            *merge_launches(case, suffix, parts, o),
        ),
        output=o,
    )


IMPLS = (triton_impl(name="triton-cascade", build=build, stages=cascade_stages, supports=cascade_supports),)
