"""What the updates of Mamba's and of KDA's states move beside the states: tokens that several products give, decays.

A state of Mamba has 16 numbers for each channel, and as many decays. So its decays are half as many bytes as it reads
and writes at batch 1, and its token is a twentieth. In other mixers all of this is below 2% and is not counted.
"""

from __future__ import annotations

from bench.predict.step_op import ACTIVATION_BYTES, StepOp
from kernels.models import StateMixer
from kernels.op import Work

DECAY_BYTES = 4
"""Decays, biases of dt and skips: fp32."""


def beside_states(mixer: StateMixer, tokens: int) -> tuple[int, int]:
    """Bytes read and written in one layer for so many tokens, as `kernels/state_update` counts them."""
    width = mixer.output[1]
    if mixer.kind == "mamba":  # x, z and dt of each channel, b and c; a decay for each number, dt's bias and the skip
        token = 3 * width + 2 * mixer.state // width
        decays = mixer.state + 2 * width
        return tokens * token * ACTIVATION_BYTES + decays * DECAY_BYTES, tokens * width * ACTIVATION_BYTES
    if mixer.kind == "KDA":  # q, k, v and a decay of each channel, beta of each head; the convolution, dt's bias
        heads = width * width // mixer.state
        token, taps = 4 * width + heads, mixer.conv + 3 * width
        read = (tokens * token + taps) * ACTIVATION_BYTES + (width + heads) * DECAY_BYTES
        return read, tokens * width * ACTIVATION_BYTES
    return 0, 0


def beside_flops(mixer: StateMixer) -> int:
    """FLOP of KDA's convolutions for a token and layer, which are above 2% too."""
    return 2 * (mixer.conv + 3 * mixer.output[1]) if mixer.kind == "KDA" else 0


def convolution(mixer: StateMixer, requests: int, tokens: int, devices: int) -> StepOp:
    """Mamba's convolution, which is an operation of its own: a product follows it. The tokens before the new ones are
    read once, and the new ones, the taps and the bias; new ones and what comes out are written."""
    width = mixer.output[1]
    taps = mixer.conv // width + 1
    read = requests * mixer.conv + tokens * width + (taps + 1) * width
    work = Work(
        flops={"fma_fp32": round((2 * taps + 4) * mixer.layers * tokens * width / devices)},
        bytes_read=round(mixer.layers * read * ACTIVATION_BYTES / devices),
        bytes_written=round(mixer.layers * 2 * tokens * width * ACTIVATION_BYTES / devices),
    )
    return StepOp(name="state_conv", calls=mixer.layers, work=work)
