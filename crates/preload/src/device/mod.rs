//! The devices that are served: one allocator each, over the device's primary context, made at the first request there.
//!
//! Only the primary context is served. Events and streams belong to a context, and the allocator's are the primary one's; programs with
//! contexts of their own are passed on, and accounted.

mod gate;

pub(crate) use gate::Gate;

use std::ffi::c_int;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::{Mutex, RwLock};
use stratalloc::driver::Driver as _;
use stratalloc::driver::cuda::CudaDriver;
use stratalloc::{Allocator, DeviceSpec, PoolId, StreamId};

use crate::abi::{CUdevice, Opaque, SUCCESS, Status};
use crate::entries::Driver;
use crate::guard::say_once;
use crate::resolve;
use crate::state::Shim;

/// The private pool that is open during captures. No request goes there: it keeps the allocator from recording events, and from asking for
/// them, while a stream may be under capture.
const CAPTURE_POOL: PoolId = PoolId(u64::MAX, 0);

/// A device that is served.
pub(crate) struct Device {
    /// The driver's ordinal.
    pub(crate) ordinal: usize,
    /// The primary context.
    pub(crate) context: usize,
    /// The allocator, whose device 0 this is.
    pub(crate) allocator: Allocator,
    /// The lane of `cuMemAlloc`: a stream on which no work is ever submitted. What is free in it is done with on every stream.
    pub(crate) plain: StreamId,
    /// The allocator's driver.
    pub(crate) gate: Arc<Gate>,
    /// The program has put another pool in the default one's place, so `cuMemAllocAsync` is passed on.
    pub(crate) has_own_pool: AtomicBool,
}

impl Device {
    /// Starts or ends the time in which no event may be recorded.
    pub(crate) fn set_capturing(&self, capturing: bool) {
        // Neither fails: a pool is begun once and ended once, in turns, under the lock of `Captures`.
        let _ = if capturing {
            self.allocator.begin_private_pool(0, CAPTURE_POOL, |_| false)
        } else {
            let ended = self.allocator.end_private_pool(0, CAPTURE_POOL);
            ended.and_then(|()| self.allocator.release_private_pool(0, CAPTURE_POOL))
        };
    }

    /// Waits until all work on the device is done, whatever stream it is on. Returns the driver's code.
    pub(crate) fn synchronize(&self, driver: &Driver) -> Status {
        with_context(driver, self.context as Opaque, || {
            // SAFETY: takes nothing.
            unsafe { driver.cuCtxSynchronize() }
        })
    }
}

/// Does `call` with a context current, and puts the thread's own back.
pub(crate) fn with_context(driver: &Driver, context: Opaque, call: impl FnOnce() -> Status) -> Status {
    let mut found: Opaque = ptr::null_mut();
    // SAFETY: the pointer is to a local; the context is one that the driver gave out and that is retained.
    unsafe {
        let code = driver.cuCtxGetCurrent(&mut found);
        if code != SUCCESS || found == context {
            return if code == SUCCESS { call() } else { code };
        }
        let code = driver.cuCtxPushCurrent_v2(context);
        if code != SUCCESS {
            return code;
        }
        let code = call();
        let _ = driver.cuCtxPopCurrent_v2(&mut found);
        code
    }
}

/// The current context, or null.
pub(crate) fn current_context(driver: &Driver) -> Opaque {
    let mut context: Opaque = ptr::null_mut();
    // SAFETY: the pointer is to a local.
    let code = unsafe { driver.cuCtxGetCurrent(&mut context) };
    if code == SUCCESS { context } else { ptr::null_mut() }
}

/// The ordinal of the current context's device.
pub(crate) fn current_ordinal(driver: &Driver) -> Option<usize> {
    let mut device: CUdevice = -1;
    // SAFETY: the pointer is to a local.
    let code = unsafe { driver.cuCtxGetDevice(&mut device) };
    usize::try_from(device).ok().filter(|_| code == SUCCESS)
}

/// All devices that are served.
#[derive(Default)]
pub(crate) struct Devices {
    served: RwLock<Vec<Arc<Device>>>,
    /// Held while one is opened, so that none is opened twice. Opening calls the driver, but never this library.
    opening: Mutex<()>,
}

impl Devices {
    /// The device whose primary context this is, opened if need be. `None` for other contexts, and where it cannot be opened.
    pub(crate) fn of_context(&self, shim: &'static Shim, context: Opaque) -> Option<Arc<Device>> {
        let find = || self.served.read().iter().find(|device| device.context == context as usize).cloned();
        if context.is_null() {
            return None;
        }
        find().or_else(|| self.open(shim, context, &find))
    }

    /// The device with this ordinal, if it is served.
    pub(crate) fn of_ordinal(&self, ordinal: usize) -> Option<Arc<Device>> {
        self.served.read().iter().find(|device| device.ordinal == ordinal).cloned()
    }

    /// All that are served.
    pub(crate) fn all(&self) -> Vec<Arc<Device>> {
        self.served.read().clone()
    }

    /// Takes a device out. Its memory goes back to the driver with the last reference.
    pub(crate) fn take(&self, ordinal: usize) -> Option<Arc<Device>> {
        let mut served = self.served.write();
        let at = served.iter().position(|device| device.ordinal == ordinal)?;
        Some(served.remove(at))
    }

    #[cold]
    fn open(
        &self,
        shim: &'static Shim,
        context: Opaque,
        find: &dyn Fn() -> Option<Arc<Device>>,
    ) -> Option<Arc<Device>> {
        let ordinal = ordinal_of_primary(shim.driver, context)?;
        let _opening = self.opening.lock();
        if let Some(device) = find() {
            return Some(device);
        }
        match open(shim, ordinal) {
            Ok(device) if device.context == context as usize => {
                let device = Arc::new(device);
                shim.captures.adopt(&device, || self.served.write().push(device.clone()));
                Some(device)
            }
            Ok(_) => None,
            Err(error) => {
                static SAID: AtomicBool = AtomicBool::new(false);
                say_once(&SAID, format_args!("device {ordinal} is not served: {error}"));
                None
            }
        }
    }
}

/// The ordinal of the device whose primary context this is.
fn ordinal_of_primary(driver: &Driver, context: Opaque) -> Option<usize> {
    let mut ordinal = None;
    with_context(driver, context, || {
        ordinal = current_ordinal(driver);
        SUCCESS
    });
    let ordinal = ordinal?;
    let (mut flags, mut active): (_, c_int) = (0, 0);
    let mut primary: Opaque = ptr::null_mut();
    // SAFETY: the pointers are to locals, the device is the driver's; what is retained is released.
    unsafe {
        let code = driver.cuDevicePrimaryCtxGetState(ordinal as CUdevice, &mut flags, &mut active);
        if code != SUCCESS
            || active == 0
            || driver.cuDevicePrimaryCtxRetain(&mut primary, ordinal as CUdevice) != SUCCESS
        {
            return None;
        }
        driver.cuDevicePrimaryCtxRelease_v2(ordinal as CUdevice);
    }
    (primary == context).then_some(ordinal)
}

fn open(shim: &'static Shim, ordinal: usize) -> stratalloc::Result<Device> {
    // SAFETY: the functions are the driver's own, and it stays loaded.
    let cuda = unsafe { CudaDriver::open_with(&resolve::find_driver, ordinal as u32) }?;
    shim.ledger.set_total(ordinal, cuda.properties().total_memory);
    let gate = Arc::new(Gate::new(cuda, shim.driver, &shim.ledger, ordinal));
    let plain = gate.create_stream()?;
    let spec = DeviceSpec::Driver(gate.clone());
    let allocator = Allocator::builder().device(spec).config(shim.settings.config.clone()).build();
    let allocator = allocator.inspect_err(|_| drop(gate.destroy_stream(plain)))?;
    let has_own_pool = AtomicBool::new(shim.has_own_pool(ordinal));
    Ok(Device { ordinal, context: gate.context(), allocator, plain, gate, has_own_pool })
}

/// Whether a program has chosen a pool of its own for a device.
impl Device {
    /// Whether `cuMemAllocAsync` takes from a pool of the program's choice.
    pub(crate) fn uses_own_pool(&self) -> bool {
        self.has_own_pool.load(Relaxed)
    }
}
