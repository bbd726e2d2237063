//! Streams, events, captures, and the work that is queued.

pub(crate) mod capture;
pub(crate) mod events;
pub(crate) mod host_functions;
pub(crate) mod shared_event;
pub(crate) mod streams;
pub(crate) mod values;
pub(crate) mod work;

/// The default stream, by a handle of its own. Null means it as well, unless a program asks for a default stream a thread.
pub(crate) const LEGACY: usize = 1;
/// The calling thread's own default stream.
pub(crate) const PER_THREAD: usize = 2;

/// The stream that null means in functions of the kind "a default stream a thread".
pub(crate) fn per_thread(stream: usize) -> usize {
    if stream == 0 { PER_THREAD } else { stream }
}
