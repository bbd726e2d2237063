//! Modules, libraries, functions, launches. Code is accepted and never run: a launch is a place in stream order.

pub(crate) mod functions;
pub(crate) mod launch;
pub(crate) mod libraries;
pub(crate) mod modules;
pub(crate) mod occupancy;
