"""What can go wrong before PyTorch runs on stratalloc. Each says what to do about it."""


class StratallocError(RuntimeError):
    """The base of all of them."""


class EnabledTooLate(StratallocError):
    """CUDA is initialised already: tensors may live in PyTorch's own allocator."""


class UnsupportedTorch(StratallocError):
    """This version of PyTorch was never compiled against, or PyTorch is not installed."""


class LibraryNotFound(StratallocError):
    """libstratalloc.so was not found, could not be loaded, or has another ABI."""


class CudaMissing(StratallocError):
    """PyTorch was built without CUDA, or finds no driver or device."""


class CompilerMissing(StratallocError):
    """The extension is not compiled yet, and there is no C++ compiler or a header is missing."""


class CompilationFailed(StratallocError):
    """The compiler refused the extension. The text has its output."""


class InvalidConfig(StratallocError, ValueError):
    """The configuration has an unknown key or a value out of range."""


class NotEnabled(StratallocError):
    """PyTorch's memory does not come from stratalloc in this process."""


class TierError(StratallocError):
    """Bytes could not be moved between the device and a tier. They are where they were."""
