//! Functions of the host in stream order. They run on a thread of the driver's own, as CUDA's do, or on one that waits.

use std::ffi::c_void;
use std::sync::OnceLock;
use std::thread::Thread;
use std::time::Duration;

use super::capture;
use super::streams::{self, Stream};
use super::work::{HostCall, Op};
use crate::abi::codes::{Code, Res};
use crate::abi::structs::{HostFn, StreamCallback};
use crate::process;
use crate::process::devices::code_of;

/// How long the thread waits for work that is not ready, and how often it looks before it waits for a call.
const PAUSE: Duration = Duration::from_micros(200);
const LOOKS: u32 = 50;

/// The thread, once there was a function to run.
fn worker() -> Option<&'static Thread> {
    static WORKER: OnceLock<Option<Thread>> = OnceLock::new();
    let start = || {
        let builder = std::thread::Builder::new().name("softcuda-host".to_string());
        builder.spawn(serve).ok().map(|handle| handle.thread().clone())
    };
    WORKER.get_or_init(start).as_ref()
}

fn serve() {
    let mut idle = 0;
    loop {
        let mut ran = false;
        for device in process::get().map_or(&[][..], |process| &process.devices) {
            ran |= device.soft.run_host_work();
        }
        idle = if ran { 0 } else { idle + 1 };
        if idle >= LOOKS {
            // Whatever is queued is waiting for something long; each new function wakes the thread.
            std::thread::park_timeout(PAUSE * LOOKS);
        } else if idle > 0 {
            std::thread::park_timeout(PAUSE);
        }
    }
}

/// Queues a function.
pub(crate) fn queue(stream: &Stream, call: HostCall) -> Res {
    queue_boxed(stream, Box::new(move || call.run()))
}

/// Queues anything that runs on the host.
pub(crate) fn queue_boxed(stream: &Stream, function: Box<dyn FnOnce() + Send>) -> Res {
    stream.device.soft.launch_host(stream.soft, function).map_err(code_of)?;
    if let Some(worker) = worker() {
        worker.unpark();
    }
    Ok(())
}

pub(crate) fn launch(stream: usize, function: Option<HostFn>, data: *mut c_void) -> Res {
    let call = HostCall { function: function.ok_or(Code::INVALID_VALUE)?, data: data as usize };
    let stream = streams::for_work(stream)?;
    if stream.is_capturing() {
        return capture::record(&stream, Op::Host(call));
    }
    queue(&stream, call)
}

pub(crate) fn launch_v2(stream: usize, function: Option<HostFn>, data: *mut c_void, mode: u32) -> Res {
    if mode > 1 {
        return Err(Code::INVALID_VALUE);
    }
    launch(stream, function, data)
}

pub(crate) fn add_callback(stream: usize, callback: Option<StreamCallback>, data: *mut c_void, flags: u32) -> Res {
    let callback = callback.ok_or(Code::INVALID_VALUE)?;
    if flags != 0 {
        return Err(Code::INVALID_VALUE);
    }
    let given = stream;
    let stream = streams::for_work(stream)?;
    if stream.is_capturing() {
        return Err(capture::refuse(&stream));
    }
    let data = data as usize;
    queue_boxed(&stream, Box::new(move || callback(given, 0, data as *mut c_void)))
}
