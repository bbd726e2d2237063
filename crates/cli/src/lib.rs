//! The parts of the `stratalloc` command, as a library so that tests and fuzz targets reach them.
//!
//! | module | what |
//! |---|---|
//! | [`trace`] | the format of recorded traces: a strict decoder and a writer |

pub mod trace;
