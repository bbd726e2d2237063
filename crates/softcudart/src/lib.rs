//! The CUDA runtime API on top of the driver API.
//!
//! The driver is found as NVIDIA's dynamic runtime finds it: `dlopen("libcuda.so.1")`, `dlsym("cuGetProcAddress_v2")`, and
//! every other entry point from that, once, at the first call that needs it (`driver`). So whatever stands between a
//! program and its driver is between this library and its driver too.
//!
//! Every entry point is declared by one of the macros in `entry`, which keep what all have in common: the table is there,
//! a context is current, a panic does not leave, an error is remembered for `cudaGetLastError`.
//!
//! One archive makes two libraries. Where CUDA 12 and 13 differ, there are two functions, `softcudart12_X` and
//! `softcudart13_X`, and the link of each library calls one of them `X` (`xtask/src/softcuda`).
#![allow(non_snake_case, reason = "entry points have CUDA's names")]
#![allow(
    missing_docs,
    reason = "CUDA's documentation says what an entry point does; here is said only what is particular"
)]

mod context;
mod device;
mod driver;
mod entry;
mod error;
mod event;
mod graph;
mod kernel;
mod memory;
mod stream;
