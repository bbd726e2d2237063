"""PyTorch on stratalloc: `enable`, and what then works."""

import os
from contextlib import contextmanager

from . import _build, _extension, _lib, _pluggable
from .errors import CompilationFailed, CompilerMissing, CudaMissing, EnabledTooLate, UnsupportedTorch

__all__ = [
    "cache_folder",
    "capabilities",
    "enable",
    "enabled",
    "offload_activations",
    "offload_optimizer",
    "shareable",
]

_FALLBACKS = ("auto", "never", "only")

_mode = None

#: What each way offers, in the order in which people ask. The texts are what a user needs to know.
_CAPABILITIES = {
    # feature: (with the extension, with the pluggable fallback)
    "allocation": ("works", "works"),
    "record_stream": ("works", "works"),
    "empty_cache": ("works", "works"),
    "memory_fraction": ("works", "setting works; reading raises RuntimeError"),
    "graph_capture": ("works", "works"),
    "out_of_memory": (
        "raises torch.OutOfMemoryError with an explanation",
        "raises RuntimeError with an explanation; `except torch.OutOfMemoryError` does not catch it",
    ),
    "memory_stats": ("works", "raises RuntimeError"),
    "memory_snapshot": ("works", "raises RuntimeError"),
    "memory_history": ("works", "raises RuntimeError"),
    "out_of_memory_observers": ("works", "raises RuntimeError"),
    "mem_pool": ("works", "raises RuntimeError"),
    "mem_pool_with_own_allocator": ("raises NotImplementedError", "raises RuntimeError"),
    "mem_pool_no_split": ("raises NotImplementedError", "raises RuntimeError"),
    "cudagraph_trees": ("works", "raises RuntimeError"),
    "caching_allocator_enable": ("works", "raises NotImplementedError"),
    "memory_metadata": ("works", "is not recorded, of which torch 2.15 warns and 2.11 does not"),
    "profiler_memory_events": ("works", "none are reported: torch's pluggable allocator does not"),
    "peer_access": ("works", "raises RuntimeError"),
    "share_between_processes": (
        "works for tensors made inside of stratalloc.torch.shareable(), raises NotImplementedError for others",
        "raises RuntimeError",
    ),
    "tiers": ("works", "works"),
    "allocate_at_address": ("raises NotImplementedError", "raises RuntimeError"),
}


def enabled():
    """`"extension"`, `"pluggable"`, or None where PyTorch's own allocator is in use."""
    return _mode


def capabilities(mode=None):
    """What works and what raises, by feature, with the way that is enabled or with the one named. None of it is silent."""
    mode = mode or _mode or "extension"
    if mode not in ("extension", "pluggable"):
        raise ValueError(f"there is no way named {mode!r}: 'extension' or 'pluggable'")
    column = 0 if mode == "extension" else 1
    return {feature: texts[column] for feature, texts in _CAPABILITIES.items()}


def enable(conf=None, *, fallback="auto", require_device=True, verbose=False):
    """Makes PyTorch allocate CUDA memory from stratalloc, in this process, from now on.

    Call it after `import torch` or before, but before anything uses CUDA. The first call with a version of PyTorch compiles an
    extension of a few hundred KB, which takes some ten seconds; it is kept.

    Args:
        conf: the configuration, as in `STRATALLOC_CONF`, such as `"limit:0.9"`. None takes it from the environment.
        fallback: `"auto"` uses torch's pluggable allocator where the extension cannot be compiled, `"never"` raises then,
            `"only"` does not try the extension. `capabilities()` says what the fallback lacks.
        require_device: raise CudaMissing where there is no CUDA device, rather than wait until one is used.
        verbose: print the compiler's command line.

    Returns `"extension"` or `"pluggable"`.

    Raises EnabledTooLate, UnsupportedTorch, LibraryNotFound, CudaMissing, InvalidConfig, and with `fallback="never"`
    CompilerMissing or CompilationFailed. PyTorch is unchanged then.
    """
    global _mode
    if fallback not in _FALLBACKS:
        raise ValueError(f"fallback is one of {', '.join(_FALLBACKS)}, not {fallback!r}")
    if conf is not None and not isinstance(conf, str):
        raise TypeError(f"conf is a text such as 'limit:0.9', not {type(conf).__name__}")
    torch = _import_torch()
    if _mode is not None:
        raise EnabledTooLate(f"stratalloc is enabled already in this process, as the {_mode} allocator.")
    if torch.cuda.is_initialized():
        raise EnabledTooLate(
            "CUDA is initialised already in this process, so tensors may live in PyTorch's own allocator. Call "
            "stratalloc.torch.enable() before anything uses CUDA, or start the program with `python -m stratalloc run`."
        )
    if torch.version.cuda is None:
        raise CudaMissing(f"torch {torch.__version__} was built without CUDA; stratalloc manages CUDA memory.")
    path, library = _lib.find()
    if require_device and torch.cuda.device_count() == 0:
        raise CudaMissing("PyTorch finds no CUDA device: no driver, no GPU, or CUDA_VISIBLE_DEVICES hides it.")
    _mode = _install(torch, path, library, conf, fallback, verbose)
    return _mode


def _install(torch, path, library, conf, fallback, verbose):
    if fallback != "only":
        try:
            _extension.install(torch, path, conf, verbose)
            return "extension"
        except (CompilerMissing, CompilationFailed, UnsupportedTorch) as error:
            if fallback == "never":
                raise
            _warn_of_fallback(error)
    _pluggable.install(torch, path, library, conf)
    return "pluggable"


def _warn_of_fallback(error):
    import warnings

    lacks = sorted(name for name, text in capabilities("pluggable").items() if text != "works")
    warnings.warn(
        "stratalloc uses PyTorch's pluggable allocator, since its extension cannot be used "
        f"({type(error).__name__}: {str(error).splitlines()[0]}). Less than in full, or an error: {', '.join(lacks)}; "
        "stratalloc.torch.capabilities() says which. fallback='never' makes this an error.",
        stacklevel=4,
    )


@contextmanager
def shareable():
    """What this thread allocates inside may be sent to other processes (torch.multiprocessing): each tensor has an allocation of
    its own, at least 2 MiB, which is slower to make. Others cannot be sent: CUDA exports whole allocations."""
    if _mode != "extension":
        raise NotImplementedError(
            "stratalloc.torch.shareable() wants stratalloc enabled with its extension"
            + (", and it runs as the pluggable allocator." if _mode else ": call stratalloc.torch.enable() first.")
        )
    _extension.shareable(True)
    try:
        yield
    finally:
        _extension.shareable(False)


def offload_activations(min_bytes=1 << 20, keep_last=1, prefetch=2, tier=None):
    """A context for the forward pass: what autograd saves inside for the backward pass goes to a tier, and comes back as the backward pass
    comes to it. Gradients are those without, bit for bit; the device holds less in between.

        with stratalloc.torch.offload_activations():
            loss = model(batch).sum()
        loss.backward()

    Copies run on streams of their own, beside the arithmetic: nothing waits for the device as a whole. A tensor's memory is free for
    others once its copy has read it. Tensors that share a storage go once, whole. Weights stay, and so does what is no plain CUDA tensor, a
    small part of something large, or made while a graph is captured. What finds no room in the tier stays, and is told in one warning.

    Args:
        min_bytes: storages smaller than this stay.
        keep_last: so many storages, those saved last, stay: the backward pass begins with them.
        prefetch: so many storages come back ahead of the one that is asked for.
        tier: the name of a configured tier, such as `"nvme"`; None is the first with room.

    The context has `bytes_out`, `bytes_in` and `bytes_refused`."""
    from . import _offload

    return _offload.offload_activations(min_bytes, keep_last, prefetch, tier)


def offload_optimizer(optimizer, tier=None, min_bytes=1 << 20):
    """Keeps an optimizer's state in a tier between its steps: it comes back, at the same address, before each step and leaves after it. Values
    are those without. State that is there already leaves now. Call `offload` of what this returns after `load_state_dict`, `restore` before
    reading the state, as `state_dict` does, and `remove` to have it stay on the device.

    Args:
        tier: the name of a configured tier, such as `"nvme"`; None is the first with room.
        min_bytes: smaller tensors stay."""
    from . import _offload

    return _offload.OptimizerOffload(optimizer, tier, min_bytes)


def _import_torch():
    try:
        import torch
    except ImportError as error:
        raise UnsupportedTorch(f"PyTorch is not installed: {error}") from error
    except (OSError, ValueError) as error:
        # What torch raises where the CUDA libraries that it links to are absent.
        raise CudaMissing(f"PyTorch cannot be imported: {error}") from error
    return torch


def cache_folder():
    """Where compiled extensions are kept; removing it costs a compilation."""
    return os.fspath(_build.cache_folder())
