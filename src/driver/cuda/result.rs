//! What the driver's result codes mean to this library.

use cudarc::driver::sys::CUresult::{self, *};

use crate::error::DriverErrorKind::{self, *};

/// Codes with a kind of their own. Every other code is [`DriverErrorKind::Other`].
const KINDS: &[(CUresult, DriverErrorKind)] = &[
    (CUDA_ERROR_OUT_OF_MEMORY, OutOfMemory),
    (CUDA_ERROR_INVALID_VALUE, InvalidValue),
    (CUDA_ERROR_MISALIGNED_ADDRESS, Sticky),
    (CUDA_ERROR_ALREADY_MAPPED, InvalidValue),
    (CUDA_ERROR_NOT_MAPPED, InvalidValue),
    (CUDA_ERROR_INVALID_CONTEXT, InvalidHandle),
    (CUDA_ERROR_INVALID_HANDLE, InvalidHandle),
    (CUDA_ERROR_STUB_LIBRARY, LibraryMissing),
    (CUDA_ERROR_NO_DEVICE, NoDevice),
    (CUDA_ERROR_INVALID_DEVICE, NoDevice),
    (CUDA_ERROR_DEVICE_UNAVAILABLE, NoDevice),
    (CUDA_ERROR_NOT_SUPPORTED, NotSupported),
    (CUDA_ERROR_PEER_ACCESS_UNSUPPORTED, NotSupported),
    (CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, Capturing),
    (CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, Capturing),
    (CUDA_ERROR_STREAM_CAPTURE_MERGE, Capturing),
    (CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, Capturing),
    (CUDA_ERROR_STREAM_CAPTURE_UNJOINED, Capturing),
    (CUDA_ERROR_STREAM_CAPTURE_ISOLATION, Capturing),
    (CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, Capturing),
    (CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, Capturing),
    (CUDA_ERROR_CAPTURED_EVENT, Capturing),
    // After these, every later call of the context fails too. The last two are seen while the process exits.
    (CUDA_ERROR_ECC_UNCORRECTABLE, Sticky),
    (CUDA_ERROR_NVLINK_UNCORRECTABLE, Sticky),
    (CUDA_ERROR_ILLEGAL_ADDRESS, Sticky),
    (CUDA_ERROR_LAUNCH_TIMEOUT, Sticky),
    (CUDA_ERROR_CONTEXT_IS_DESTROYED, Sticky),
    (CUDA_ERROR_ASSERT, Sticky),
    (CUDA_ERROR_HARDWARE_STACK_ERROR, Sticky),
    (CUDA_ERROR_ILLEGAL_INSTRUCTION, Sticky),
    (CUDA_ERROR_INVALID_ADDRESS_SPACE, Sticky),
    (CUDA_ERROR_INVALID_PC, Sticky),
    (CUDA_ERROR_LAUNCH_FAILED, Sticky),
    (CUDA_ERROR_MPS_CLIENT_TERMINATED, Sticky),
    (CUDA_ERROR_EXTERNAL_DEVICE, Sticky),
    (CUDA_ERROR_DEINITIALIZED, Sticky),
    (CUDA_ERROR_NOT_INITIALIZED, Sticky),
];

/// The kind of a failure with this code.
pub(super) fn kind_of(status: u32) -> DriverErrorKind {
    KINDS.iter().find(|(code, _)| *code as u32 == status).map_or(Other, |(_, kind)| *kind)
}
