//! The binary interface: result codes, structures, pointers.

pub(crate) mod codes;
pub(crate) mod pointers;
pub(crate) mod structs;
