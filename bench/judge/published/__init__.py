"""What did others measure? Their published times of decode's kernels and servers, in our own terms.

    from bench.judge import published

    table = published.load()                                    # the committed table: no extra, no network
    rows = table.where(op="attention_decode", part="h100-sxm", stored="bf16")
    rows["seconds"], rows["B"], rows["T"]                       # numpy arrays
    rows.text("software"), rows.text("cache")                   # names of a coded column, as an array of str
    rows.frame()                                                # the same as a pandas frame
    published.case_of(rows, 0)                                  # our operation and `Case` of a row, or None
    work = published.work(rows)                                 # compulsory bytes and FLOPs, floor seconds
    servers = published.load("servers")                         # whole servers: seconds are TPOT
    published.facts()                                           # figures from READMEs, issues and papers, one dict each

Columns of a row:

- `op`: an operation of `kernels/`, or `gated_delta_net`, `kda`, `state_update`, `all_reduce`, `dsa_topk`,
  `dsa_indexer`, `all_to_all` (NCCL's, of equal parts), `dispatch` and `combine` (DeepEP's rows of experts)
- `part`: a key of `bench.devices`
- `software`, `version`, `kernel`: who measured what: `vllm`, `0.24.0`, `vllm_flash_attn_fa3`. A collective that was
  launched from the host one by one says `eager`: its time holds the launch
- `stored`: the type of the weights, of the KV cache or of the state: a key of `work.BYTES`
- `activations`: the type that they are multiplied with: `bf16`, `fp8`, `nvfp4`, `int8`
- `seconds`: the published time
- `cache`: `warm` if the bytes are fewer than four times the part's L2 (one buffer was read again and again, and the L2
  not flushed), `cold` if they are more, `unknown` where the size of the L2 is not known
- `B`, `H_q`, `H_kv`, `D`, `T`, `window`, `N`, `K`, `E`, `k`, `H`, `F`: fields as in the operation's `Case`; 0 where it
  has no such field. Each part of an all-reduce or an all-to-all has `N` elements; each part of a dispatch or a combine
  has `B` tokens of `H` elements. The states of `gated_delta_net` and `kda` are `D` x `N`
- `tp`: how many parts share each expert, or reduce together
- `routing`, `balanced`, `gated`: how a MoE's tokens are spread, whether evenly, and whether it has three matrices
- `source`: the table that a row comes from. `table.sources` says the package, its version, licence and hash

`aiconfigurator.py` reads NVIDIA's tables (the extra `published`), `servers.py` their whole servers, `facts.py` the
figures from other sources. `distill.py` makes the committed table. Rows that do not map are counted in
`table.left_out`, by reason.
"""

from bench.judge.published.cases import case_of as case_of
from bench.judge.published.facts import facts as facts
from bench.judge.published.table import Table as Table
from bench.judge.published.table import load as load
from bench.judge.published.work import Floor as Floor
from bench.judge.published.work import work as work
