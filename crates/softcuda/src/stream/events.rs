//! Events.

use std::fs::File;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use stratalloc::driver::{Driver, EventId, EventStatus};

use super::capture::{self, Joined};
use super::host_functions;
use super::shared_event::SharedEvent;
use super::streams::{self, Stream};
use super::work::Op;
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::Out;
use crate::handles::{Kind, Table};
use crate::memory::pools;
use crate::process::contexts::{self, Context};
use crate::process::devices::{Device, code_of};

const DISABLE_TIMING: u32 = 2;
const INTERPROCESS: u32 = 4;
/// Blocking, without timing, between processes.
const FLAGS: u32 = 7;
const EXTERNAL: u32 = 1;

#[derive(Debug)]
struct Event {
    handle: usize,
    device: &'static Device,
    context: &'static Context,
    soft: EventId,
    flags: u32,
    recorded: AtomicBool,
    captured: AtomicBool,
    /// The place in a capture that it stands for.
    place: Mutex<Option<Joined>>,
    shared: Option<Arc<SharedEvent>>,
}

static EVENTS: Table<Event> = Table::new(Kind::Event);

fn make(context: &'static Context, flags: u32, shared: Option<SharedEvent>) -> Res<usize> {
    let soft = context.device.soft.create_event().map_err(code_of)?;
    let event = EVENTS.insert(|handle| Event {
        handle,
        device: context.device,
        context,
        soft,
        flags,
        recorded: AtomicBool::new(false),
        captured: AtomicBool::new(false),
        place: Mutex::default(),
        shared: shared.map(Arc::new),
    })?;
    Ok(event.handle)
}

pub(crate) fn create(event: Out<usize>, flags: u32) -> Res {
    event.check()?;
    let context = contexts::current()?;
    if flags & !FLAGS != 0 || flags & (INTERPROCESS | DISABLE_TIMING) == INTERPROCESS {
        return Err(Code::INVALID_VALUE);
    }
    let shared = if flags & INTERPROCESS == 0 { None } else { Some(SharedEvent::new()?) };
    event.set(make(context, flags, shared)?)
}

pub(crate) fn destroy(event: usize) -> Res {
    let event = EVENTS.remove(event)?;
    event.device.soft.destroy_event(event.soft).map_err(code_of)
}

/// Destroys what was made in a context.
pub(crate) fn destroy_all_of(context: &Context) {
    for event in EVENTS.all(|event| std::ptr::eq(event.context, context)) {
        // Another thread may be faster.
        let _ = destroy(event.handle);
    }
}

/// The file by which an event is shared.
pub(crate) fn shared_descriptor(event: usize) -> Res<RawFd> {
    let event = EVENTS.get(event)?;
    event.shared.as_ref().map(|shared| shared.descriptor()).ok_or(Code::INVALID_HANDLE)
}

/// An event that another process has made.
pub(crate) fn open_shared(file: File) -> Res<usize> {
    make(contexts::current()?, DISABLE_TIMING | INTERPROCESS, Some(SharedEvent::open(file)?))
}

pub(crate) fn record(event: usize, stream: usize) -> Res {
    record_with_flags(event, stream, 0)
}

pub(crate) fn record_with_flags(event: usize, stream: usize, flags: u32) -> Res {
    let found = EVENTS.get(event)?;
    if flags & !EXTERNAL != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let stream = streams::for_work(stream)?;
    if !stream.is_capturing() {
        return record_found(&found, &stream);
    }
    if flags & EXTERNAL != 0 {
        return capture::record(&stream, Op::Record { event });
    }
    let place = capture::place_of(&stream)?;
    *found.place.lock() = Some(place);
    found.captured.store(true, Ordering::Release);
    Ok(())
}

/// Records an event on a stream that is not captured.
pub(crate) fn record_on(event: usize, stream: &Stream) -> Res {
    record_found(&*EVENTS.get(event)?, stream)
}

fn record_found(event: &Event, stream: &Stream) -> Res {
    if event.device.ordinal != stream.device.ordinal {
        return Err(Code::INVALID_HANDLE);
    }
    if event.captured.swap(false, Ordering::AcqRel) {
        *event.place.lock() = None;
    }
    if event.flags & DISABLE_TIMING == 0 {
        // The device looks at the clock only where it must.
        event.device.soft.advance_clock(0);
    }
    event.device.soft.record_event(event.soft, stream.soft).map_err(code_of)?;
    event.recorded.store(true, Ordering::Release);
    if let Some(shared) = event.shared.clone() {
        let number = shared.begin();
        host_functions::queue_boxed(stream, Box::new(move || shared.end(number)))?;
    }
    Ok(())
}

/// Fails where an event stands for a place in a capture.
fn refuse_captured(event: &Event) -> Res {
    if event.captured.load(Ordering::Acquire) {
        if let Some(place) = event.place.lock().as_ref() {
            place.capture.invalidate();
        }
        return Err(Code::CAPTURED_EVENT);
    }
    Ok(())
}

pub(crate) fn query(event: usize) -> Res {
    let event = EVENTS.get(event)?;
    refuse_captured(&event)?;
    capture::refuse_unsafe()?;
    if let Some(shared) = &event.shared {
        return if shared.is_done() { Ok(()) } else { Err(Code::NOT_READY) };
    }
    match event.device.soft.query_event(event.soft) {
        Ok(EventStatus::Complete) => Ok(()),
        Ok(EventStatus::Pending) => Err(Code::NOT_READY),
        Err(error) => Err(code_of(error)),
    }
}

pub(crate) fn synchronize(event: usize) -> Res {
    let event = EVENTS.get(event)?;
    refuse_captured(&event)?;
    capture::refuse_unsafe()?;
    wait_on_host(&event)?;
    pools::after_wait(event.device);
    Ok(())
}

fn wait_on_host(event: &Event) -> Res {
    event.device.soft.synchronize_event(event.soft).map_err(code_of)?;
    if let Some(shared) = &event.shared {
        while !shared.is_done() {
            // Another process has recorded it, or this process's own function has not run yet.
            if !event.device.soft.run_host_work() {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }
    Ok(())
}

pub(crate) fn wait(stream: usize, event: usize, flags: u32) -> Res {
    let found = EVENTS.get(event)?;
    if flags & !EXTERNAL != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let stream = streams::for_work(stream)?;
    if stream.is_capturing() && flags & EXTERNAL != 0 {
        return capture::record(&stream, Op::Wait { event });
    }
    if found.captured.load(Ordering::Acquire)
        && let Some(place) = found.place.lock().clone()
    {
        return capture::join(&stream, place);
    }
    if stream.is_capturing() {
        // An event from outside the capture orders nothing inside it.
        return if found.recorded.load(Ordering::Acquire) {
            capture::refuse(&stream);
            Err(Code::STREAM_CAPTURE_ISOLATION)
        } else {
            Ok(())
        };
    }
    wait_found(&stream, &found)
}

/// Lets a stream that is not captured wait for an event.
pub(crate) fn wait_on(stream: &Stream, event: usize) -> Res {
    wait_found(stream, &*EVENTS.get(event)?)
}

fn wait_found(stream: &Stream, event: &Event) -> Res {
    if event.device.ordinal != stream.device.ordinal || event.shared.is_some() {
        // The host waits in the stream's place, which is one legal order.
        return wait_on_host(event);
    }
    stream.device.soft.wait_event(stream.soft, event.soft).map_err(code_of)
}

pub(crate) fn elapsed(milliseconds: Out<f32>, start: usize, end: usize) -> Res {
    milliseconds.check()?;
    let (start, end) = (EVENTS.get(start)?, EVENTS.get(end)?);
    for event in [&start, &end] {
        let timed = event.flags & DISABLE_TIMING == 0 && event.recorded.load(Ordering::Acquire);
        if !timed || start.device.ordinal != end.device.ordinal {
            return Err(Code::INVALID_HANDLE);
        }
        refuse_captured(event)?;
    }
    let done = |event: &Event| event.device.soft.event_done_ns(event.soft).map_err(code_of)?.ok_or(Code::NOT_READY);
    let (from, to) = (done(&start)?, done(&end)?);
    milliseconds.set(((to as f64 - from as f64) / 1e6) as f32)
}
