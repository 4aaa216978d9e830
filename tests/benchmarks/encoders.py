"""Images a second that EfficientNet-Lite0 embeds on one core, against the same network written
plainly: batch normalisation apart, contiguous memory, eager.

    python -m tests.benchmarks.encoders [--json FILE] [--quick]

Patches of 224 px, 32 a call, one thread, CPU time; bf16 only where the processor has instructions
for it. Held to AVX2 with `ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from tests.benchmarks import harness
from tests.support.plain_efficientnet import embed, published_weights
from training.encoder.encoder import Encoder, load_encoder
from training.precision import precision_for

BATCH = 32


def rows(*, pairs: int) -> Iterator[harness.Row]:
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (BATCH, 224, 224, 3), np.uint8)
    for precision in sorted({"f32", precision_for(torch.device("cpu"))}, reverse=True):
        encoder = load_encoder("efficientnet_lite0", precision=precision)
        yield harness.compare(
            f"lite0-{precision}",
            _ours(encoder, patches),
            _plain(torch.from_numpy(patches)),
            pairs=pairs,
            reference="plain, f32",
            unit="images/s/core",
            goal=2.0,
        )


def _ours(encoder: Encoder, patches: NDArray[np.uint8]) -> Callable[[], float]:
    return lambda: harness.cpu_rate(lambda: len(encoder.embed(patches)))


def _plain(images: torch.Tensor) -> Callable[[], float]:
    state = published_weights()

    def embedded() -> int:
        with torch.inference_mode():
            return len(embed(state, images))

    return lambda: harness.cpu_rate(embedded)


def main() -> None:
    given = harness.arguments(__doc__ or "")
    torch.set_num_threads(1)
    found = list(rows(pairs=3 if given.quick else 9))
    harness.report("encoders", found, given, packages=("torch", "numpy"))


if __name__ == "__main__":
    main()
