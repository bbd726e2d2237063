//! The process as the driver sees it: start-up, devices, contexts, and what has no better place.

pub(crate) mod attributes;
pub(crate) mod contexts;
pub(crate) mod devices;
pub(crate) mod green;
pub(crate) mod others;
pub(crate) mod report;
pub(crate) mod startup;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use parking_lot::Mutex;
use stratalloc::driver::fault::When;

use crate::abi::codes::{Code, Res};
use crate::options::{Fault, Options};
use devices::Device;

const UNUSED: u8 = 0;
const READY: u8 = 1;
const FORKED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(UNUSED);
static FAULTS: AtomicBool = AtomicBool::new(false);
static PROCESS: OnceLock<Process> = OnceLock::new();

/// What `cuInit` makes. It is never dropped: programs call the driver until the process is gone.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) options: Options,
    pub(crate) devices: Vec<&'static Device>,
    faults: Mutex<Vec<Ordered>>,
}

#[derive(Debug)]
struct Ordered {
    fault: Fault,
    seen: u64,
    /// State of a generator of random numbers.
    random: u64,
}

/// Fails unless `cuInit` has succeeded in this very process.
#[inline]
pub(crate) fn check_ready() -> Res {
    if STATE.load(Ordering::Acquire) == READY { Ok(()) } else { Err(Code::NOT_INITIALIZED) }
}

/// The process, once initialised.
pub(crate) fn get() -> Res<&'static Process> {
    check_ready()?;
    PROCESS.get().ok_or(Code::NOT_INITIALIZED)
}

/// Whether any fault was ordered.
#[inline]
pub(crate) fn faults_ordered() -> bool {
    FAULTS.load(Ordering::Relaxed)
}

/// Fails where a fault was ordered for this call.
#[cold]
pub(crate) fn pass(name: &str) -> Res {
    let mut hit = None;
    for ordered in get()?.faults.lock().iter_mut().filter(|ordered| ordered.fault.function == name) {
        ordered.seen += 1;
        let applies = match ordered.fault.when {
            When::Nth(n) => ordered.seen == n,
            When::From(n) => ordered.seen >= n,
            When::Random { probability, .. } => {
                ordered.random = ordered.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                ((ordered.random >> 11) as f64) < probability * (1u64 << 53) as f64
            }
        };
        if applies && hit.is_none() {
            hit = Some(ordered.fault.code);
        }
    }
    hit.map_or(Ok(()), Err)
}
