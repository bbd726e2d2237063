//! Modules, libraries, functions, launches. Code is accepted and not run, but for the kernels of the library
//! `stratalloc`, which the software device runs on the CPU: any other launch is a place in stream order.

pub(crate) mod functions;
pub(crate) mod launch;
pub(crate) mod libraries;
pub(crate) mod modules;
pub(crate) mod occupancy;
