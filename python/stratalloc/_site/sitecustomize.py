"""Found first by an interpreter that `python -m stratalloc run` starts, and by those that it starts in turn: enables
stratalloc as soon as torch is imported. Then lets the machine's own sitecustomize have its turn."""

import importlib.abc
import importlib.util
import os
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))


class _Finder(importlib.abc.MetaPathFinder):
    """Puts a loader of ours before torch's own, until torch has been imported: who only asks whether torch is there (as
    `importlib.util.find_spec` does) gets a spec, and imports nothing."""

    def __init__(self):
        # A thread's own, so that another thread's import finds ours meanwhile.
        self._asking = threading.local()

    def find_spec(self, name, path=None, target=None):
        if name != "torch" or getattr(self._asking, "now", False):
            return None
        self._asking.now = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking.now = False
        if spec is None or spec.loader is None:
            return None
        spec.loader = _Loader(self, spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Runs torch's own loader, then enables."""

    def __init__(self, finder, loader):
        self._finder = finder
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        # torch is to see itself as an ordinary import.
        module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        sys.meta_path.remove(self._finder)
        _enable()

    def __getattr__(self, name):
        return getattr(self._loader, name)


def _enable():
    from stratalloc import StratallocError
    from stratalloc import torch as ours

    try:
        ours.enable(fallback=os.environ.get("STRATALLOC_TORCH", "auto"), require_device=False)
    except StratallocError as error:
        sys.exit(f"stratalloc: {type(error).__name__}: {error}")


def _pass_on():
    """Imports the sitecustomize that this one hides, if there is one. What it does to sys.path stays."""
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != HERE]
    ours = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # noqa: F401
    except ImportError as error:
        if error.name != "sitecustomize":
            # Theirs is there and broken, which Python says as it would without us.
            raise
        if ours is not None:
            sys.modules["sitecustomize"] = ours


if os.environ.get("STRATALLOC_TORCH"):
    sys.meta_path.insert(0, _Finder())
_pass_on()
