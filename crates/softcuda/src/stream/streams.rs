//! Streams.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use stratalloc::driver::Driver;
use stratalloc::units::StreamId;

use super::capture::{self, Joined};
use super::{LEGACY, PER_THREAD};
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::{In, Out};
use crate::abi::structs::EdgeData;
use crate::handles::{Kind, Table};
use crate::memory::{pools, space};
use crate::process::contexts::{self, Context};
use crate::process::devices::{Device, code_of};

const NON_BLOCKING: u32 = 1;
/// Priorities go from 0 down to this.
pub(crate) const GREATEST_PRIORITY: i32 = -5;

/// A stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) handle: usize,
    pub(crate) device: &'static Device,
    pub(crate) context: &'static Context,
    pub(crate) soft: StreamId,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    pub(crate) id: u64,
    capturing: AtomicBool,
    /// The capture that takes this stream's work.
    pub(crate) joined: Mutex<Option<Joined>>,
    /// What the last question about the capture gave out; it must stay where it is until the next.
    pub(crate) shown: Mutex<(Vec<usize>, Vec<EdgeData>)>,
}

static STREAMS: Table<Stream> = Table::new(Kind::Stream);
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Stream {
    fn new(handle: usize, context: &'static Context, soft: StreamId, flags: u32, priority: i32) -> Stream {
        Stream {
            handle,
            device: context.device,
            context,
            soft,
            flags,
            priority,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            capturing: AtomicBool::new(false),
            joined: Mutex::default(),
            shown: Mutex::default(),
        }
    }

    #[inline]
    pub(crate) fn is_capturing(&self) -> bool {
        self.capturing.load(Ordering::Acquire)
    }

    /// Whether it is ordered with the default stream.
    pub(crate) fn is_blocking(&self) -> bool {
        self.flags & NON_BLOCKING == 0
    }

    pub(crate) fn set_joined(&self, joined: Option<Joined>) {
        let mut place = self.joined.lock();
        self.capturing.store(joined.is_some(), Ordering::Release);
        *place = joined;
    }
}

/// The default streams of a thread, by device. They end with it.
struct OfThread(RefCell<Vec<Option<Arc<Stream>>>>);

impl Drop for OfThread {
    fn drop(&mut self) {
        for stream in self.0.borrow_mut().drain(..).flatten() {
            // In a child of fork, or after a failure, there is nobody to tell.
            let _ = crate::process::check_ready().map(|()| stream.device.soft.destroy_stream(stream.soft));
        }
    }
}

thread_local! {
    static OF_THREAD: OfThread = const { OfThread(RefCell::new(Vec::new())) };
}

/// The stream that a handle stands for.
#[inline]
pub(crate) fn resolve(handle: usize) -> Res<Arc<Stream>> {
    match handle {
        0 | LEGACY => legacy(contexts::current()?),
        PER_THREAD => of_thread(contexts::current()?),
        handle => STREAMS.get(handle),
    }
}

/// The same, for work that is to be queued: the default stream takes none while a stream that it is ordered with is captured.
#[inline]
pub(crate) fn for_work(handle: usize) -> Res<Arc<Stream>> {
    let stream = resolve(handle)?;
    if stream.soft == StreamId::DEFAULT && stream.device.blocking_captures.load(Ordering::Relaxed) > 0 {
        capture::invalidate_blocking(stream.device);
        return Err(Code::STREAM_CAPTURE_IMPLICIT);
    }
    Ok(stream)
}

fn legacy(context: &'static Context) -> Res<Arc<Stream>> {
    let stream = context.device.legacy.get_or_init(|| Arc::new(Stream::new(LEGACY, context, StreamId::DEFAULT, 0, 0)));
    Ok(Arc::clone(stream))
}

fn of_thread(context: &'static Context) -> Res<Arc<Stream>> {
    let at = context.device.ordinal;
    let found = OF_THREAD.try_with(|streams| {
        let mut streams = streams.0.borrow_mut();
        if streams.len() <= at {
            streams.resize_with(at + 1, || None);
        }
        if let Some(stream) = &streams[at] {
            return Ok(Arc::clone(stream));
        }
        let soft = context.device.soft.create_blocking_stream().map_err(code_of)?;
        let made = Arc::new(Stream::new(PER_THREAD, context, soft, 0, 0));
        streams[at] = Some(Arc::clone(&made));
        Ok(made)
    });
    // A thread that is ending has the default stream of all.
    found.unwrap_or_else(|_| legacy(context))
}

/// Makes a stream.
pub(crate) fn make(context: &'static Context, flags: u32, priority: i32) -> Res<Arc<Stream>> {
    if flags & !NON_BLOCKING != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let soft = &context.device.soft;
    let id = if flags & NON_BLOCKING == 0 { soft.create_blocking_stream() } else { soft.create_stream() };
    let id = id.map_err(code_of)?;
    let priority = priority.clamp(GREATEST_PRIORITY, 0);
    STREAMS.insert(|handle| Stream::new(handle, context, id, flags, priority))
}

pub(crate) fn create_with_priority(stream: Out<usize>, flags: u32, priority: i32) -> Res {
    stream.check()?;
    stream.set(make(contexts::current()?, flags, priority)?.handle)
}

pub(crate) fn create(stream: Out<usize>, flags: u32) -> Res {
    create_with_priority(stream, flags, 0)
}

pub(crate) fn destroy(stream: usize) -> Res {
    let found = STREAMS.get(stream)?;
    if found.is_capturing() {
        capture::abandon(&found);
    }
    let found = STREAMS.remove(stream)?;
    found.device.soft.destroy_stream(found.soft).map_err(code_of)
}

/// Destroys what was made in a context.
pub(crate) fn destroy_all_of(context: &Context) {
    for stream in STREAMS.all(|stream| std::ptr::eq(stream.context, context)) {
        // Another thread may be faster.
        let _ = destroy(stream.handle);
    }
}

pub(crate) fn query(stream: usize) -> Res {
    let stream = resolve(stream)?;
    if stream.is_capturing() {
        return Err(capture::refuse(&stream));
    }
    capture::refuse_unsafe()?;
    match stream.device.soft.is_idle(stream.soft) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Code::NOT_READY),
        Err(error) => Err(code_of(error)),
    }
}

pub(crate) fn synchronize(stream: usize) -> Res {
    let stream = for_work(stream)?;
    if stream.is_capturing() {
        return Err(capture::refuse(&stream));
    }
    capture::refuse_unsafe()?;
    stream.device.wait_stream(stream.soft)?;
    pools::after_wait(stream.device);
    Ok(())
}

pub(crate) fn priority(stream: usize, priority: Out<i32>) -> Res {
    priority.check()?;
    priority.set(resolve(stream)?.priority)
}

pub(crate) fn flags(stream: usize, flags: Out<u32>) -> Res {
    flags.check()?;
    flags.set(resolve(stream)?.flags)
}

pub(crate) fn id(stream: usize, id: Out<u64>) -> Res {
    id.check()?;
    id.set(resolve(stream)?.id)
}

pub(crate) fn context(stream: usize, context: Out<usize>) -> Res {
    context.check()?;
    let found = match stream {
        0..=PER_THREAD => contexts::current()?,
        stream => resolve(stream)?.context,
    };
    context.set(found.handle)
}

pub(crate) fn context_v2(stream: usize, context: Out<usize>, green: Out<usize>) -> Res {
    self::context(stream, context)?;
    green.set_if(0);
    Ok(())
}

pub(crate) fn device(stream: usize, device: Out<i32>) -> Res {
    device.check()?;
    device.set(resolve(stream)?.device.ordinal as i32)
}

// ---- attributes -----------------------------------------------------------------------------------------------------------

pub(crate) fn copy_attributes(dst: usize, src: usize) -> Res {
    resolve(dst)?;
    resolve(src).map(|_| ())
}

/// Access policy, synchronisation policy, priority, memory synchronisation domain and map.
const ATTRIBUTES: [u32; 5] = [1, 3, 8, 9, 10];

pub(crate) fn get_attribute(stream: usize, attribute: u32, value: Out<[u64; 8]>) -> Res {
    value.check()?;
    let stream = resolve(stream)?;
    let mut words = [0; 8];
    match attribute {
        3 => words[0] = 1,
        8 => words[0] = u64::from(stream.priority as u32),
        known if ATTRIBUTES.contains(&known) => {}
        _ => return Err(Code::INVALID_VALUE),
    }
    value.set(words)
}

/// Accepted: they would change how kernels run.
pub(crate) fn set_attribute(stream: usize, attribute: u32, value: In<[u64; 8]>) -> Res {
    resolve(stream)?;
    if value.is_null() || !ATTRIBUTES.contains(&attribute) { Err(Code::INVALID_VALUE) } else { Ok(()) }
}

pub(crate) fn attach_memory(stream: usize, ptr: u64, _length: usize, flags: u32) -> Res {
    resolve(stream)?;
    let managed = space::find(ptr).is_some_and(|block| block.kind == space::Kind::Managed);
    if managed && matches!(flags, 1 | 2 | 4) { Ok(()) } else { Err(Code::INVALID_VALUE) }
}
