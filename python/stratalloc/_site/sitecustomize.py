"""Found first by an interpreter that `python -m stratalloc run` starts, and by those that it starts in turn: enables
stratalloc as soon as torch is imported. Then lets the machine's own sitecustomize have its turn."""

import importlib.abc
import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


class _AfterTorch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Runs torch's own loader, then enables."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        self._loader = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        # torch is to see itself as an ordinary import.
        module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
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
    """Imports the sitecustomize that this one hides, if there is one."""
    before = list(sys.path)
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != HERE]
    ours = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # noqa: F401
    except ImportError:
        if ours is not None:
            sys.modules["sitecustomize"] = ours
    finally:
        sys.path[:] = [entry for entry in before if os.path.abspath(entry or ".") != HERE]


if os.environ.get("STRATALLOC_TORCH"):
    sys.meta_path.insert(0, _AfterTorch())
_pass_on()
