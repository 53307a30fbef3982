"""Lengths and shared prefixes of public traces of requests, for simulations."""

from __future__ import annotations

import random
from collections.abc import Sequence

AZURE = "AzureLLMInferenceTrace of 2023 (Azure/AzurePublicDataset at b469a11, CC BY 4.0; Splitwise, ISCA 2024)"
MOONCAKE = "conversation_trace.jsonl (kvcache-ai/Mooncake at 3b5a594, FAST25-release, Apache-2.0; FAST 2025)"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


OUTPUTS: dict[str, tuple[int, ...]] = {
    "code (Azure)": _numbers(
        """
    6 6 6 6 6 6 6 6 7 7 7 7 7 7 7 8 8 8 8 8 8 9 9 9 9 9 9 9 9 9 10 10 10 10 10 10 11 11 11 11 11 11 12 12 12 12 12
    13 13 13 13 13 14 14 14 14 15 15 15 15 16 16 16 17 17 18 18 19 19 20 20 21 22 22 23 24 25 26 27 28 30 31 33 35
    37 40 43 46 49 53 57 62 69 76 84 97 115 145 201 361
        """
    ),
    "conversations (Azure)": _numbers(
        """
    14 18 28 36 40 43 46 48 50 53 56 58 60 63 66 68 70 72 74 76 78 80 82 83 84 86 87 88 89 90 91 92 93 94 95 97 98
    99 101 102 104 106 108 110 112 114 117 120 124 127 131 135 139 143 148 153 159 162 167 172 179 184 195 207 217
    219 296 373 376 382 385 388 391 393 394 396 396 396 397 399 401 403 406 409 411 413 414 416 419 421 426 429 430
    438 446 460 490 522 571 644
        """
    ),
    "conversations (Mooncake)": _numbers(
        """
    1 3 3 7 9 12 14 17 20 23 26 29 32 37 42 51 61 72 85 95 106 116 127 139 150 163 176 189 199 208 217 225 235 243
    251 261 268 275 281 287 295 302 308 314 319 325 330 336 342 347 354 358 363 368 372 378 383 388 393 397 401 406
    410 415 420 425 430 435 440 445 450 455 459 464 468 475 480 487 494 501 508 515 522 531 539 547 556 566 577 590
    604 620 639 659 682 719 764 836 968 1570
        """
    ),
}
"""Generated tokens of 8,819, 19,366 and 12,031 requests: the middles of 100 equal parts of each, in their order. The
longest half percent is left out."""

PROMPTS: dict[str, tuple[int, ...]] = {
    "code (Azure)": _numbers(
        """
    12 24 44 56 68 81 92 102 122 139 152 173 185 199 222 242 263 299 337 364 395 445 484 521 555 592 627 679 720 759
    786 833 863 895 919 952 984 1016 1037 1059 1088 1118 1153 1188 1229 1278 1323 1370 1393 1451 1481 1528 1585 1623
    1667 1702 1745 1798 1849 1888 1926 2002 2048 2096 2144 2187 2255 2305 2359 2417 2454 2513 2578 2646 2707 2777
    2844 2942 3016 3133 3231 3353 3538 3640 3811 4035 4228 4434 4678 4926 5475 5822 6097 6397 6965 7419 7435 7435
    7436 7436
        """
    ),
    "conversations (Azure)": _numbers(
        """
    16 58 120 174 181 181 194 200 203 206 209 215 235 298 369 373 376 379 382 385 388 391 393 394 396 397 398 400
    401 402 404 406 407 409 412 417 421 428 440 530 791 884 922 960 979 989 998 1005 1012 1018 1023 1028 1034 1039
    1043 1048 1053 1058 1063 1068 1073 1078 1083 1089 1094 1100 1106 1112 1118 1126 1135 1143 1153 1165 1181 1201
    1231 1277 1313 1314 1317 1350 1434 1604 1786 1970 2135 2310 2480 2613 2923 3789 4075 4078 4081 4084 4088 4092
    4110 4831
        """
    ),
}
"""Tokens of the prompts of the same requests of Azure, likewise."""

SHARED_BLOCKS = _numbers(
    """
    1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1
    1 1 1 1 1 2 2 2 2 2 3 3 3 4 4 5 6 6 7 8 8 9 10 11 11 12 13 14 16 17 18 20 22 24 27 29 32 36 39 46 51 59 81 143
    """
)
"""Leading blocks of 512 tokens that an earlier request of Mooncake's conversations has too, if nothing is ever dropped:
the middles of 100 equal parts of 12,031 requests. 37% of all prompt tokens are in such blocks."""
SHARED_BLOCK = 512


def draw(lengths: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """Lengths drawn at random, each part alike."""
    return [rng.choice(lengths) for _ in range(count)]


def shared_prefixes(count: int, seed: int = 0) -> list[int]:
    """Tokens of shared prefixes.

    Where one ends within the block after its last shared one is not published: all tokens there are equally likely.
    """
    rng = random.Random(seed)
    return [blocks * SHARED_BLOCK + rng.randrange(SHARED_BLOCK) for blocks in draw(SHARED_BLOCKS, count, rng)]
