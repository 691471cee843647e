"""Two runs, the same bytes: torch's deterministic kernels, on CUDA as on the CPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import set_seed

from larpo.errors import UserError, one_line

# cuBLAS reads it once, at its first product; without it torch refuses matrix products in deterministic mode.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

NO_KERNEL = "does not have a deterministic implementation"  # torch raises a bare RuntimeError


@contextmanager
def deterministic(seed: int, section: str, on: bool = True) -> Iterator[None]:
    """Seed every generator, and in this block use kernels that give the same bytes twice.

    `warn_only` stays off: with it, ATen's fused attention keeps the backward kernel that adds in any order.

    Raises
    ------
    UserError
        An operation has no such kernel; names it, and the parameter of `section` that permits another.
    """
    set_seed(seed)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on)
    # Memory that is not read before it is written need not be filled.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    except RuntimeError as error:
        if NO_KERNEL not in str(error):
            raise
        operation = one_line(error).partition(" does not")[0]
        raise UserError(
            f"params.yaml: {section}.deterministic: {operation} has no kernel that gives the same bytes twice; "
            f"{section}.deterministic=false permits another, and the manifest says so"
        ) from None
    finally:
        torch.use_deterministic_algorithms(before)
