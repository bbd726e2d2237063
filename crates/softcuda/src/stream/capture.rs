//! Captures: work of a stream becomes nodes of a graph.
//!
//! A capture is a graph that grows, and for each stream in it the nodes that its next work comes after. Calls that would
//! disturb a capture are refused, and spoil it, by CUDA's rules: a capture in global mode forbids them to all threads, one in
//! thread-local mode to its own thread, and a thread in relaxed mode may make them all the same.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::streams::{self, Stream};
use super::work::Op;
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::{In, Out};
use crate::abi::structs::EdgeData;
use crate::graph::{self, Edge, Graph};
use crate::process::devices::Device;

const GLOBAL: u32 = 0;
const THREAD_LOCAL: u32 = 1;
const RELAXED: u32 = 2;

const STATUS_NONE: u32 = 0;
const STATUS_ACTIVE: u32 = 1;
const STATUS_INVALIDATED: u32 = 2;

/// A capture under way.
#[derive(Debug)]
pub(crate) struct Capture {
    id: u64,
    graph: Arc<Graph>,
    /// Whether the graph is the caller's.
    given: bool,
    mode: u32,
    thread: u64,
    /// The stream on which it began.
    origin: usize,
    streams: Mutex<Vec<Arc<Stream>>>,
    invalidated: AtomicBool,
}

/// A stream's place in a capture.
#[derive(Debug, Clone)]
pub(crate) struct Joined {
    pub(crate) capture: Arc<Capture>,
    /// What comes before the next work.
    pub(crate) after: Vec<Edge>,
}

/// All captures under way, and how many are in global mode and in thread-local mode.
static OPEN: Mutex<Vec<Arc<Capture>>> = Mutex::new(Vec::new());
static GLOBAL_CAPTURES: AtomicUsize = AtomicUsize::new(0);
static LOCAL_CAPTURES: AtomicUsize = AtomicUsize::new(0);
static NEXT_ID: AtomicU64 = AtomicU64::new(1);
static NEXT_THREAD: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static MODE: Cell<u32> = const { Cell::new(GLOBAL) };
    static THREAD: u64 = NEXT_THREAD.fetch_add(1, Ordering::Relaxed);
}

fn this_thread() -> u64 {
    THREAD.try_with(|thread| *thread).unwrap_or(0)
}

impl Capture {
    pub(crate) fn invalidate(&self) {
        self.invalidated.store(true, Ordering::Release);
    }

    fn check(&self) -> Res {
        if self.invalidated.load(Ordering::Acquire) { Err(Code::STREAM_CAPTURE_INVALIDATED) } else { Ok(()) }
    }
}

// ---- what captures forbid -------------------------------------------------------------------------------------------------

/// Fails, and spoils the captures in question, where a call that may disturb captures is made by this thread now.
#[inline]
pub(crate) fn refuse_unsafe() -> Res {
    if GLOBAL_CAPTURES.load(Ordering::Relaxed) == 0 && LOCAL_CAPTURES.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    refuse_unsafe_slow()
}

#[cold]
fn refuse_unsafe_slow() -> Res {
    let mode = MODE.try_with(Cell::get).unwrap_or(GLOBAL);
    if mode == RELAXED {
        return Ok(());
    }
    let thread = this_thread();
    let mut refused = Ok(());
    for capture in OPEN.lock().iter() {
        let forbids = match capture.mode {
            GLOBAL => mode == GLOBAL || capture.thread == thread,
            THREAD_LOCAL => capture.thread == thread,
            _ => false,
        };
        if forbids {
            capture.invalidate();
            refused = Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
    }
    refused
}

/// Fails where a stream of the device is captured: waiting for the device is never permitted then.
pub(crate) fn refuse_device_wait(device: &Device) -> Res {
    if device.captures.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    for capture in OPEN.lock().iter() {
        if capture.streams.lock().iter().any(|stream| stream.device.ordinal == device.ordinal) {
            capture.invalidate();
        }
    }
    Err(Code::STREAM_CAPTURE_UNSUPPORTED)
}

/// Spoils the capture that a stream is in, and gives the error for it.
pub(crate) fn refuse(stream: &Stream) -> Code {
    if let Some(joined) = stream.joined.lock().as_ref() {
        joined.capture.invalidate();
    }
    Code::STREAM_CAPTURE_UNSUPPORTED
}

/// Spoils the captures of streams that are ordered with the device's default stream.
pub(crate) fn invalidate_blocking(device: &Device) {
    for capture in OPEN.lock().iter() {
        let blocks = |stream: &Arc<Stream>| stream.device.ordinal == device.ordinal && stream.is_blocking();
        if capture.streams.lock().iter().any(blocks) {
            capture.invalidate();
        }
    }
}

pub(crate) fn exchange_mode(mode: Out<u32>) -> Res {
    let wanted = mode.get()?;
    if wanted > RELAXED {
        return Err(Code::INVALID_VALUE);
    }
    let before = MODE.try_with(|mode| mode.replace(wanted)).unwrap_or(GLOBAL);
    mode.set(before)
}

// ---- beginning and ending -------------------------------------------------------------------------------------------------

pub(crate) fn begin_v1(stream: usize) -> Res {
    begin(stream, GLOBAL)
}

pub(crate) fn begin(stream: usize, mode: u32) -> Res {
    begin_in(stream, mode, None, Vec::new())
}

pub(crate) fn begin_to_graph(
    stream: usize,
    graph: usize,
    dependencies: In<usize>,
    edges: In<EdgeData>,
    count: usize,
    mode: u32,
) -> Res {
    let graph = graph::by_handle(graph)?;
    let after = graph::edges_from(&graph, dependencies, edges, count)?;
    begin_in(stream, mode, Some(graph), after)
}

fn begin_in(stream: usize, mode: u32, given: Option<Arc<Graph>>, after: Vec<Edge>) -> Res {
    let found = streams::resolve(stream)?;
    if mode > RELAXED {
        return Err(Code::INVALID_VALUE);
    }
    if stream <= super::LEGACY {
        return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
    }
    if found.is_capturing() {
        return Err(Code::ILLEGAL_STATE);
    }
    let (graph, given) = match given {
        Some(graph) => (graph, true),
        None => (Graph::make()?, false),
    };
    let capture = Arc::new(Capture {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        graph,
        given,
        mode,
        thread: this_thread(),
        origin: found.handle,
        streams: Mutex::default(),
        invalidated: AtomicBool::new(false),
    });
    match mode {
        GLOBAL => drop(GLOBAL_CAPTURES.fetch_add(1, Ordering::Relaxed)),
        THREAD_LOCAL => drop(LOCAL_CAPTURES.fetch_add(1, Ordering::Relaxed)),
        _ => {}
    }
    OPEN.lock().push(Arc::clone(&capture));
    enter(&found, Joined { capture, after });
    Ok(())
}

/// Takes a stream into a capture.
fn enter(stream: &Arc<Stream>, joined: Joined) {
    stream.device.captures.fetch_add(1, Ordering::Relaxed);
    if stream.is_blocking() {
        stream.device.blocking_captures.fetch_add(1, Ordering::Relaxed);
    }
    joined.capture.streams.lock().push(Arc::clone(stream));
    stream.set_joined(Some(joined));
}

/// Lets a stream wait for a place in a capture: it joins, or comes after both.
pub(crate) fn join(stream: &Arc<Stream>, place: Joined) -> Res {
    let open = OPEN.lock().iter().any(|open| open.id == place.capture.id);
    if !open {
        // The capture is over, and the event stands for nothing.
        return if stream.is_capturing() { Ok(()) } else { Err(Code::CAPTURED_EVENT) };
    }
    place.capture.check()?;
    let mut joined = stream.joined.lock();
    match joined.as_mut() {
        None => {
            drop(joined);
            enter(stream, place);
        }
        Some(own) if own.capture.id == place.capture.id => {
            for edge in place.after {
                if !own.after.iter().any(|other| other.node == edge.node) {
                    own.after.push(edge);
                }
            }
        }
        Some(own) => {
            own.capture.invalidate();
            place.capture.invalidate();
            return Err(Code::STREAM_CAPTURE_MERGE);
        }
    }
    Ok(())
}

/// Ends a capture: its streams go on as before.
fn close(capture: &Capture) {
    OPEN.lock().retain(|open| open.id != capture.id);
    match capture.mode {
        GLOBAL => drop(GLOBAL_CAPTURES.fetch_sub(1, Ordering::Relaxed)),
        THREAD_LOCAL => drop(LOCAL_CAPTURES.fetch_sub(1, Ordering::Relaxed)),
        _ => {}
    }
    for stream in capture.streams.lock().drain(..) {
        stream.device.captures.fetch_sub(1, Ordering::Relaxed);
        if stream.is_blocking() {
            stream.device.blocking_captures.fetch_sub(1, Ordering::Relaxed);
        }
        stream.set_joined(None);
    }
}

/// A stream in a capture is destroyed: the capture is spoilt, or over if it began there.
pub(crate) fn abandon(stream: &Stream) {
    let Some(joined) = stream.joined.lock().clone() else { return };
    joined.capture.invalidate();
    if joined.capture.origin == stream.handle {
        close(&joined.capture);
        if !joined.capture.given {
            joined.capture.graph.destroy();
        }
    }
}

pub(crate) fn end(stream: usize, graph: Out<usize>) -> Res {
    let stream = streams::resolve(stream)?;
    let joined = stream.joined.lock().clone().ok_or(Code::ILLEGAL_STATE)?;
    let capture = &joined.capture;
    if capture.origin != stream.handle {
        capture.invalidate();
        return Err(Code::STREAM_CAPTURE_UNMATCHED);
    }
    if capture.mode != RELAXED && capture.thread != this_thread() {
        capture.invalidate();
        return Err(Code::STREAM_CAPTURE_WRONG_THREAD);
    }
    let others: Vec<usize> = capture
        .streams
        .lock()
        .iter()
        .filter(|other| other.handle != stream.handle)
        .filter_map(|other| other.joined.lock().as_ref().map(|joined| joined.after.clone()))
        .flatten()
        .map(|edge| edge.node)
        .collect();
    close(capture);
    let mut result = capture.check();
    if result.is_ok() {
        let before: HashSet<usize> = capture.graph.ancestors(joined.after.iter().map(|edge| edge.node));
        if others.iter().any(|node| !before.contains(node)) {
            result = Err(Code::STREAM_CAPTURE_UNJOINED);
        }
    }
    match result {
        Ok(()) => {
            graph.set_if(capture.graph.handle);
            Ok(())
        }
        Err(code) => {
            if !capture.given {
                capture.graph.destroy();
            }
            graph.set_if(0);
            Err(code)
        }
    }
}

// ---- work -------------------------------------------------------------------------------------------------------------------

/// Makes a piece of work a node.
pub(crate) fn record(stream: &Stream, op: Op) -> Res {
    let mut place = stream.joined.lock();
    let joined = place.as_mut().ok_or(Code::STREAM_CAPTURE_INVALIDATED)?;
    joined.capture.check()?;
    let node = joined.capture.graph.add(op, joined.after.clone())?;
    joined.after = vec![Edge::plain(node)];
    Ok(())
}

/// What an event recorded now stands for.
pub(crate) fn place_of(stream: &Stream) -> Res<Joined> {
    let joined = stream.joined.lock().clone().ok_or(Code::STREAM_CAPTURE_INVALIDATED)?;
    joined.capture.check()?;
    Ok(joined)
}

// ---- questions --------------------------------------------------------------------------------------------------------------

fn status_of(joined: Option<&Joined>) -> u32 {
    match joined {
        None => STATUS_NONE,
        Some(joined) if joined.capture.check().is_err() => STATUS_INVALIDATED,
        Some(_) => STATUS_ACTIVE,
    }
}

pub(crate) fn is_capturing(stream: usize, status: Out<u32>) -> Res {
    status.check()?;
    let stream = streams::for_work(stream)?;
    if !stream.is_capturing() {
        return status.set(STATUS_NONE);
    }
    status.set(status_of(stream.joined.lock().as_ref()))
}

pub(crate) fn info_v1(stream: usize, status: Out<u32>, id: Out<u64>) -> Res {
    use std::ptr::null_mut;
    info_v3(stream, status, id, Out(null_mut()), Out(null_mut()), Out(null_mut()), Out(null_mut()))
}

pub(crate) fn info_v2(
    stream: usize,
    status: Out<u32>,
    id: Out<u64>,
    graph: Out<usize>,
    dependencies: Out<*const usize>,
    count: Out<usize>,
) -> Res {
    info_v3(stream, status, id, graph, dependencies, Out(std::ptr::null_mut()), count)
}

pub(crate) fn info_v3(
    stream: usize,
    status: Out<u32>,
    id: Out<u64>,
    graph: Out<usize>,
    dependencies: Out<*const usize>,
    edges: Out<*const EdgeData>,
    count: Out<usize>,
) -> Res {
    status.check()?;
    let stream = streams::for_work(stream)?;
    if !stream.is_capturing() {
        return status.set(STATUS_NONE);
    }
    let place = stream.joined.lock();
    let found = status_of(place.as_ref());
    status.set(found)?;
    let Some(joined) = place.as_ref().filter(|_| found == STATUS_ACTIVE) else { return Ok(()) };
    id.set_if(joined.capture.id);
    graph.set_if(joined.capture.graph.handle);
    let mut shown = stream.shown.lock();
    *shown = (joined.after.iter().map(|edge| edge.node).collect(), joined.after.iter().map(|edge| edge.data).collect());
    dependencies.set_if(shown.0.as_ptr());
    edges.set_if(shown.1.as_ptr());
    count.set_if(shown.0.len());
    Ok(())
}

pub(crate) fn update_v1(stream: usize, dependencies: In<usize>, count: usize, flags: u32) -> Res {
    update(stream, dependencies, In(std::ptr::null()), count, flags)
}

/// Adds to what a stream's next work comes after, or, with flag 1, replaces it.
pub(crate) fn update(stream: usize, dependencies: In<usize>, edges: In<EdgeData>, count: usize, flags: u32) -> Res {
    let stream = streams::resolve(stream)?;
    if flags > 1 {
        return Err(Code::INVALID_VALUE);
    }
    let mut place = stream.joined.lock();
    let joined = place.as_mut().ok_or(Code::ILLEGAL_STATE)?;
    joined.capture.check()?;
    let wanted = graph::edges_from(&joined.capture.graph, dependencies, edges, count)?;
    if flags == 1 {
        joined.after = wanted;
        return Ok(());
    }
    for edge in wanted {
        if !joined.after.iter().any(|other| other.node == edge.node) {
            joined.after.push(edge);
        }
    }
    Ok(())
}
