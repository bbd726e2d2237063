"""GPU memory for PyTorch from stratalloc.

    import stratalloc
    stratalloc.torch.enable("limit:0.9")

before anything uses CUDA, or ``python -m stratalloc run script.py`` with no change to the script.
"""

from . import torch
from ._memory import defragment, export_plan, import_plan, step
from .errors import (
    CompilationFailed,
    CompilerMissing,
    CudaMissing,
    EnabledTooLate,
    InvalidConfig,
    LibraryNotFound,
    NotEnabled,
    StratallocError,
    TierError,
    UnsupportedTorch,
)
from .tiers import (
    Residency,
    is_evictable,
    offload,
    on_residency,
    pin,
    prefetch,
    residency,
    restore,
    sleep,
    tag,
    tier_stats,
    wake,
)

__version__ = "0.1.0"

__all__ = [
    "CompilationFailed",
    "CompilerMissing",
    "CudaMissing",
    "EnabledTooLate",
    "InvalidConfig",
    "LibraryNotFound",
    "NotEnabled",
    "Residency",
    "StratallocError",
    "TierError",
    "UnsupportedTorch",
    "defragment",
    "export_plan",
    "import_plan",
    "step",
    "is_evictable",
    "offload",
    "on_residency",
    "pin",
    "prefetch",
    "residency",
    "restore",
    "sleep",
    "tag",
    "tier_stats",
    "torch",
    "wake",
]
