"""Arithmetic for the software device, whose kernels do nothing: inside of `OnHost`, what torch would have the device compute is computed on
the CPU, with the device's memory as it is. Copies are real there, so contents and gradients are real numbers."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

#: What computes nothing is left to the device. Views are told by their schema.
_PLAIN = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.detach.default,
    torch.ops.aten.record_stream.default,
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.resize_.default,
    torch.ops.aten.set_.source_Storage_storage_offset,
    torch.ops.aten.set_.source_Storage,
}


def _is_view(function):
    return any(argument.alias_info is not None and not argument.alias_info.is_write for argument in function._schema.arguments)


def to_host(tensor):
    """A copy with the same sizes and strides, byte for byte."""
    host = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    read, written = tensor.untyped_storage(), host.untyped_storage()
    start = tensor.storage_offset() * tensor.element_size()
    count = min(written.nbytes(), read.nbytes() - start)
    if count > 0:
        bytes_of(host)[:count].copy_(bytes_of(tensor)[start : start + count])
    return host


def bytes_of(tensor):
    """The whole storage as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


class OnHost(TorchDispatchMode):
    def __enter__(self):
        # Attention as operations that the CPU has too.
        self._math = sdpa_kernel(SDPBackend.MATH)
        self._math.__enter__()
        return super().__enter__()

    def __exit__(self, *reason):
        super().__exit__(*reason)
        self._math.__exit__(*reason)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = dict(options or {})
        if function in _PLAIN or _is_view(function):
            return function(*arguments, **options)
        device = None
        copies = {}

        def down(value):
            nonlocal device
            if isinstance(value, torch.Tensor) and value.is_cuda:
                device = value.device
                if id(value) not in copies:
                    copies[id(value)] = (value, to_host(value))
                return copies[id(value)][1]
            if isinstance(value, torch.device) and value.type == "cuda":
                device = value
                return torch.device("cpu")
            return value

        hosted, host_options = tree_map(down, (list(arguments), options))
        result = function(*hosted, **host_options)
        to_cpu = function is torch.ops.aten._to_copy.default and torch.device(options.get("device") or "cuda").type == "cpu"
        if device is None or to_cpu:
            return result
        written = {id(host): value for value, host in copies.values()}
        if any(argument.alias_info is not None for argument in function._schema.arguments):
            for value, host in copies.values():
                _up(host, value)

        def up(value):
            if not isinstance(value, torch.Tensor):
                return value
            if id(value) in written:
                return written[id(value)]
            made = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=device)
            _up(value, made)
            return made

        return tree_map(up, result)


def _up(host, device):
    start = device.storage_offset() * device.element_size()
    count = min(host.untyped_storage().nbytes(), device.untyped_storage().nbytes() - start)
    if count > 0:
        bytes_of(device)[start : start + count].copy_(bytes_of(host)[:count])
