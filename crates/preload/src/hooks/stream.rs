//! Captures, during which the allocator must leave events alone, and streams that go.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use super::{make_room, stream_number};
use crate::abi::*;
use crate::device::{Device, current_context, current_ordinal};
use crate::state::Shim;

/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const RELAXED: c_int = 2;

/// Which streams are being captured, and what waits for that to end.
#[derive(Default)]
pub(crate) struct Captures {
    /// The streams that captures were begun on, with their contexts: a capture goes with its context, and nobody ends it.
    streams: Mutex<HashMap<usize, usize>>,
    /// How many they are, to be read without the lock.
    count: AtomicUsize,
    /// Blocks that were freed during a capture, with their devices.
    aside: Mutex<Vec<(u64, usize)>>,
    aside_count: AtomicUsize,
    /// Whether a device was given access to another.
    peers: AtomicBool,
}

impl Captures {
    /// Whether any capture is under way.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    /// Adds a device that was just opened: `list` puts it where the next capture finds it.
    pub(crate) fn adopt(&self, device: &Arc<Device>, list: impl FnOnce()) {
        let streams = self.streams.lock();
        if !streams.is_empty() {
            device.set_capturing(true);
        }
        list();
    }

    /// Blocks that wait for captures to end.
    pub(crate) fn set_aside(&self) -> usize {
        self.aside_count.load(Relaxed)
    }

    pub(crate) fn put_aside(&self, ptr: u64, device: usize) {
        let mut aside = self.aside.lock();
        aside.push((ptr, device));
        self.aside_count.store(aside.len(), Relaxed);
    }

    /// Takes what waits on a device.
    pub(crate) fn take_aside(&self, device: usize) -> Vec<u64> {
        let mut aside = self.aside.lock();
        let taken = aside.iter().filter(|(_, on)| *on == device).map(|(ptr, _)| *ptr).collect();
        aside.retain(|(_, on)| *on != device);
        self.aside_count.store(aside.len(), Relaxed);
        taken
    }

    pub(crate) fn has_peers(&self) -> bool {
        self.peers.load(Relaxed)
    }

    pub(crate) fn note_peers(&self) {
        self.peers.store(true, Relaxed);
    }

    /// Before a capture begins. Returns whether the stream was not under capture.
    fn begin(&self, shim: &Shim, key: usize, context: usize) -> bool {
        let mut streams = self.streams.lock();
        let is_first = streams.is_empty();
        let is_new = streams.insert(key, context).is_none();
        self.count.store(streams.len(), Relaxed);
        if is_first {
            shim.devices.all().iter().for_each(|device| device.set_capturing(true));
        }
        is_new
    }

    /// After a capture has ended.
    fn end(&self, shim: &Shim, key: usize) {
        self.end_those(shim, |ended, _| ended == key);
    }

    /// After a context has gone, and the captures of its streams with it.
    pub(super) fn end_with_context(&self, shim: &Shim, context: usize) {
        self.end_those(shim, |_, of| of == context);
    }

    /// Before a context goes: ends the captures of its streams, as far as the driver lets this thread. While one is open, the driver lets nobody
    /// wait for the context, and what is not waited for cannot be given back.
    pub(super) fn abandon(&self, shim: &Shim, context: usize) {
        let of_context = |(key, of): (&usize, &usize)| (*of == context && *key & 1 == 0).then_some(*key);
        // Odd keys are no handles, see `key_of`.
        let open: Vec<usize> = self.streams.lock().iter().filter_map(of_context).collect();
        for key in open {
            let mut graph: Opaque = std::ptr::null_mut();
            // SAFETY: the pointer is to a local; the driver knows the stream, which is struck off the list when it goes.
            let code = unsafe { shim.driver.cuStreamEndCapture(key as Opaque, &mut graph) };
            if code == SUCCESS && !graph.is_null() {
                // SAFETY: the driver has just made the graph, and nobody else has it.
                let _ = unsafe { shim.driver.cuGraphDestroy(graph) };
            }
            if code == SUCCESS {
                self.end(shim, key);
            }
        }
    }

    /// Ends captures, which are told by their keys and contexts.
    fn end_those(&self, shim: &Shim, has_ended: impl Fn(usize, usize) -> bool) {
        let mut streams = self.streams.lock();
        let before = streams.len();
        streams.retain(|key, context| !has_ended(*key, *context));
        if streams.is_empty() && before > 0 {
            shim.devices.all().iter().for_each(|device| device.set_capturing(false));
        }
        self.count.store(streams.len(), Relaxed);
    }
}

/// A key for a stream. Per-thread streams have one handle and are told apart by their thread.
fn key_of(stream: Opaque, per_thread: bool) -> usize {
    let handle = stream as usize;
    if handle == STREAM_PER_THREAD || (handle == 0 && per_thread) {
        // SAFETY: takes nothing and cannot fail.
        let thread = unsafe { libc::pthread_self() } as usize;
        // Odd, so unlike any stream's handle.
        return thread | 1;
    }
    if handle == STREAM_LEGACY { 0 } else { handle }
}

/// While less than this part of a device is free, the allocator gives back what nobody uses before a capture: a graph's memory is
/// the driver's, and during the capture nothing can be given back.
const LOW: usize = 16;

/// Makes room for a graph's memory on the current device.
fn prepare(shim: &Shim) {
    let (mut free, mut total) = (0usize, 0usize);
    // SAFETY: the pointers are to locals.
    if unsafe { shim.driver.cuMemGetInfo_v2(&mut free, &mut total) } == SUCCESS
        && free < total / LOW
        && let Some(device) = current_ordinal(shim.driver)
    {
        make_room(shim, device);
    }
}

/// The context of a stream, of which the null stream and a thread's own have the current one's.
fn context_of(shim: &Shim, stream: Opaque) -> usize {
    let mut context: Opaque = std::ptr::null_mut();
    // SAFETY: the pointer is to a local, the stream is the program's own argument.
    let code = unsafe { shim.driver.cuStreamGetCtx(stream, &mut context) };
    if code == SUCCESS { context as usize } else { current_context(shim.driver) as usize }
}

fn begin(shim: &Shim, key: usize, stream: Opaque, real: impl FnOnce() -> Status) -> Status {
    if !shim.captures.any() {
        prepare(shim);
    }
    // First: from the driver's call on, no event may be recorded.
    let is_new = shim.captures.begin(shim, key, context_of(shim, stream));
    let code = real();
    if code != SUCCESS && is_new {
        shim.captures.end(shim, key);
    }
    code
}

fn end(shim: &Shim, key: usize, stream: Opaque, real: impl FnOnce() -> Status) -> Status {
    let code = real();
    let mut status: c_int = 0;
    // SAFETY: the pointer is to a local, the stream is the program's own argument.
    let asked = code == SUCCESS || unsafe { shim.driver.cuStreamIsCapturing(stream, &mut status) } == SUCCESS;
    // A capture that could not be ended, by another thread for instance, goes on.
    if asked && status == 0 {
        shim.captures.end(shim, key);
    }
    code
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn begin_capture(shim: &'static Shim, stream: Opaque, mode: c_int) -> Status {
    // SAFETY: the program's own arguments.
    begin(shim, key_of(stream, false), stream, || unsafe { shim.driver.cuStreamBeginCapture_v2(stream, mode) })
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn begin_capture_ptsz(shim: &'static Shim, stream: Opaque, mode: c_int) -> Status {
    // SAFETY: the program's own arguments.
    begin(shim, key_of(stream, true), stream, || unsafe { shim.driver.cuStreamBeginCapture_v2_ptsz(stream, mode) })
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn begin_capture_to(
    shim: &'static Shim,
    stream: Opaque,
    graph: Opaque,
    dependencies: *const Opaque,
    data: *const c_void,
    count: usize,
    mode: c_int,
) -> Status {
    begin(shim, key_of(stream, false), stream, || {
        // SAFETY: the program's own arguments.
        unsafe { shim.driver.cuStreamBeginCaptureToGraph(stream, graph, dependencies, data, count, mode) }
    })
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn begin_capture_to_ptsz(
    shim: &'static Shim,
    stream: Opaque,
    graph: Opaque,
    dependencies: *const Opaque,
    data: *const c_void,
    count: usize,
    mode: c_int,
) -> Status {
    begin(shim, key_of(stream, true), stream, || {
        // SAFETY: the program's own arguments.
        unsafe { shim.driver.cuStreamBeginCaptureToGraph_ptsz(stream, graph, dependencies, data, count, mode) }
    })
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn end_capture(shim: &'static Shim, stream: Opaque, graph: *mut Opaque) -> Status {
    // SAFETY: the program's own arguments.
    end(shim, key_of(stream, false), stream, || unsafe { shim.driver.cuStreamEndCapture(stream, graph) })
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn end_capture_ptsz(shim: &'static Shim, stream: Opaque, graph: *mut Opaque) -> Status {
    // SAFETY: the program's own arguments.
    end(shim, key_of(stream, true), stream, || unsafe { shim.driver.cuStreamEndCapture_ptsz(stream, graph) })
}

/// A stream that blocks were served for is waited for before it goes: the driver may give its handle to a new stream, which the
/// allocator would take for the old one, with work that is long done.
///
/// # Safety
/// As for the C function.
pub(crate) unsafe fn destroy(shim: &'static Shim, stream: Opaque) -> Status {
    let number = stream_number(stream);
    let key = key_of(stream, false);
    if !stream.is_null() && shim.blocks.knows_stream(number) {
        let mut mode = RELAXED;
        let mut status: c_int = 0;
        // SAFETY: the pointers are to locals, the stream is the program's own argument. In relaxed mode, waiting for a stream that is not
        // under capture does not disturb the capture of another.
        unsafe {
            let exchanged = shim.driver.cuThreadExchangeStreamCaptureMode(&mut mode) == SUCCESS;
            if shim.driver.cuStreamIsCapturing(stream, &mut status) == SUCCESS && status == 0 {
                let _ = shim.driver.cuStreamSynchronize(stream);
            }
            if exchanged {
                let _ = shim.driver.cuThreadExchangeStreamCaptureMode(&mut mode);
            }
        }
        for ordinal in shim.blocks.forget_stream(number) {
            if let Some(device) = shim.devices.of_ordinal(ordinal) {
                device.gate.bury(number);
            }
        }
    }
    // SAFETY: the program's own argument.
    let code = unsafe { shim.driver.cuStreamDestroy_v2(stream) };
    if code == SUCCESS && shim.captures.any() {
        // Destroying a stream ends its capture.
        shim.captures.end(shim, key);
    }
    code
}
