"""Names of torch that are not public, each behind a function that says what it is needed for.

tests/test_private_apis.py fails with a sentence when a version of torch no longer has one of them.
"""

from __future__ import annotations

import torch


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 by torch's own kernels; elsewhere it is emulated, many times slower.

    What torch itself asks before it calls such a kernel, of which the one for LSTMs fails elsewhere. The public
    ``torch.cpu.get_capabilities`` lists instructions, and the rule that torch makes of them is oneDNN's: it differs by
    the kind of CPU, and by ONEDNN_MAX_CPU_ISA.
    """
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
