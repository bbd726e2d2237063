//! Allocators as C has them: made, found behind a pointer, destroyed; and the one that is the process's own.

use std::ffi::{CStr, OsStr, c_char};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering::Acquire, Ordering::Release};

use parking_lot::{Mutex, RwLock};
use stratalloc::config::ENV;
use stratalloc::driver::cuda::CudaDriver;
use stratalloc::{Allocator, ByteSize, Config, DeviceSpec};
use stratalloc_trace::Recorder;

use crate::mode;
use crate::observe::OomObservers;
use crate::sized::{self, Sized_};
use crate::status::stratalloc_status::{
    self, STRATALLOC_FORKED, STRATALLOC_INVALID_CONFIG, STRATALLOC_LIBRARY_MISSING,
};
use crate::status::{Failure, Outcome, guard};

/// What a live allocator begins with. "strA".
const MAGIC: u32 = u32::from_le_bytes(*b"strA");

/// An allocator over one or several devices. All functions may be called from any thread, but not from a signal handler.
///
/// A handle that was destroyed, or that never came from here, is noticed where its memory happens to tell, and must not be counted on to be.
#[allow(non_camel_case_types, reason = "the name of the header")]
pub struct stratalloc_allocator {
    /// [`MAGIC`], until the allocator is destroyed.
    magic: AtomicU32,
    /// Tags that there are, "none" included: the numbers below this.
    pub(crate) tags: AtomicU32,
    pub(crate) allocator: Allocator,
    pub(crate) recorder: RwLock<Option<Arc<Recorder>>>,
    pub(crate) observers: OomObservers,
}

/// What an allocator is made of. Set `struct_size` to `sizeof(stratalloc_options)` and the rest to 0, then what you want.
#[repr(C)]
#[allow(non_camel_case_types, reason = "the name of the header")]
#[derive(Debug, Clone, Copy)]
pub struct stratalloc_options {
    /// `sizeof(stratalloc_options)`.
    pub struct_size: usize,
    /// `key:value,key:value`, see the documentation of the configuration. Null: what the environment variable STRATALLOC_CONF says.
    pub config: *const c_char,
    /// CUDA ordinals. They are devices 0, 1, ... of this allocator in the order given. Null: all devices, so that a device's number is its
    /// CUDA ordinal.
    pub devices: *const i32,
    /// How many ordinals there are.
    pub device_count: usize,
    /// Not 0: instead of CUDA, one software device with so much memory. It is host memory, only what is touched of it is taken, and no GPU
    /// or CUDA is needed: for tests.
    pub software_bytes: u64,
}

// SAFETY: repr(C), a `usize` first; null pointers and 0 are values.
unsafe impl Sized_ for stratalloc_options {
    const NAME: &'static str = "stratalloc_options";
    const SIZE_MIN: usize = 16;
}

impl stratalloc_allocator {
    fn new(allocator: Allocator) -> Box<stratalloc_allocator> {
        Box::new(stratalloc_allocator {
            magic: AtomicU32::new(MAGIC),
            tags: AtomicU32::new(1),
            allocator,
            recorder: RwLock::new(None),
            observers: OomObservers::default(),
        })
    }

    /// Over so many software devices of 256 MiB.
    #[cfg(test)]
    pub(crate) fn over_software(devices: usize) -> Box<stratalloc_allocator> {
        let one = DeviceSpec::Software(ByteSize::mib(256));
        build(Config::default(), std::iter::repeat_n(one, devices)).expect("software devices need nothing")
    }

    /// Whether a pointer is not null and begins as a handle does.
    ///
    /// # Safety
    /// `handle` is null or points to memory that can be read.
    #[inline(always)]
    pub(crate) unsafe fn is_live(handle: *const stratalloc_allocator) -> bool {
        // SAFETY: not null, and readable, as the caller promises. Wherever it points, this load wants no alignment.
        !handle.is_null() && unsafe { (&raw const (*handle).magic).cast::<u32>().read_unaligned() } == MAGIC
    }
}

/// The allocator behind a handle, if this process may use it.
///
/// # Safety
/// `handle` is null, or is an allocator from [`stratalloc_create`] or [`stratalloc_default`] which is not destroyed during the call.
pub(crate) unsafe fn get<'a>(handle: *const stratalloc_allocator) -> Outcome<&'a stratalloc_allocator> {
    check_process()?;
    if !handle.is_aligned() {
        return Err(Failure::argument("the allocator's handle is not one: it is not aligned"));
    }
    // SAFETY: null or a handle, as the caller promises.
    if unsafe { stratalloc_allocator::is_live(handle) } {
        // SAFETY: it lives, as was just seen, and the caller keeps it alive during the call.
        return Ok(unsafe { &*handle });
    }
    Err(Failure::argument(if handle.is_null() {
        "the allocator's handle is null"
    } else {
        "the allocator's handle is not one, or was destroyed"
    }))
}

/// Fails in a child after `fork`.
pub(crate) fn check_process() -> Outcome<()> {
    if mode::is_forked() {
        let text =
            "this process was forked from one that had an allocator: use the GPU in the parent, or start a new program";
        return Err(Failure::new(STRATALLOC_FORKED, text));
    }
    Ok(())
}

/// Checks that an out-pointer can be written.
pub(crate) fn check_out<T>(out: *const T, name: &str) -> Outcome<()> {
    if out.is_null() {
        return Err(Failure::argument(format!("the pointer `{name}` is null")));
    }
    if !out.is_aligned() {
        return Err(Failure::argument(format!("the pointer `{name}` is not aligned")));
    }
    Ok(())
}

/// A device's number as the library has it.
pub(crate) fn device_number(device: i32) -> Outcome<usize> {
    usize::try_from(device).map_err(|_| Failure::argument(format!("no device {device}: devices are numbered from 0")))
}

/// A text of the caller's.
///
/// # Safety
/// `text` is null, or ends in 0 and stays as it is during `'a`.
pub(crate) unsafe fn text<'a>(text: *const c_char, name: &str) -> Outcome<&'a str> {
    if text.is_null() {
        return Err(Failure::argument(format!("the pointer `{name}` is null")));
    }
    // SAFETY: not null, and ends in 0, as the caller promises.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Failure::argument(format!("`{name}` is not UTF-8: {}", text.to_string_lossy())))
}

/// A path of the caller's, in any encoding.
///
/// # Safety
/// As for [`text`].
pub(crate) unsafe fn path<'a>(path: *const c_char) -> Outcome<&'a Path> {
    if path.is_null() {
        return Err(Failure::argument("the pointer `path` is null"));
    }
    // SAFETY: not null, and ends in 0, as the caller promises.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
    if bytes.is_empty() {
        return Err(Failure::argument("`path` is empty"));
    }
    Ok(Path::new(OsStr::from_bytes(bytes)))
}

fn build(config: Config, devices: impl IntoIterator<Item = DeviceSpec>) -> Outcome<Box<stratalloc_allocator>> {
    let builder = Allocator::builder().config(config);
    let builder = devices.into_iter().fold(builder, |builder, device| builder.device(device));
    Ok(stratalloc_allocator::new(builder.build()?))
}

fn all_devices() -> Outcome<Vec<DeviceSpec>> {
    let count = CudaDriver::count().map_err(stratalloc::Error::from)?;
    if count == 0 {
        return Err(Failure::new(STRATALLOC_LIBRARY_MISSING, "there is no CUDA device"));
    }
    // Nobody has said that all of them will be used: a device gets a context when memory on it is first asked for.
    let open = |ordinal| Ok(DeviceSpec::Driver(CudaDriver::open_lazily(ordinal).map_err(stratalloc::Error::from)?));
    (0..count).map(open).collect()
}

/// # Safety
/// `options` is null or a struct of the size it says, whose pointers are null or point to what they should.
unsafe fn create(options: *const stratalloc_options) -> Outcome<Box<stratalloc_allocator>> {
    // SAFETY: as the caller promises.
    let options = unsafe { sized::read(options) }?;
    let config = if options.config.is_null() {
        Config::from_env().map_err(|error| Failure::new(STRATALLOC_INVALID_CONFIG, format!("{ENV}: {error}")))?
    } else {
        // SAFETY: as the caller promises.
        Config::parse(unsafe { text(options.config, "config") }?).map_err(stratalloc::Error::from)?
    };
    let given = !options.devices.is_null();
    if given != (options.device_count > 0) {
        let count = options.device_count;
        return Err(Failure::argument(format!(
            "`devices` is {}, but device_count is {count}",
            if given { "given" } else { "null" }
        )));
    }
    if options.software_bytes > 0 {
        if given {
            return Err(Failure::argument("a software device and CUDA devices do not go together"));
        }
        return build(config, [DeviceSpec::Software(ByteSize(options.software_bytes))]);
    }
    if !given {
        return build(config, all_devices()?);
    }
    check_out(options.devices, "devices")?;
    if options.device_count > 1024 {
        return Err(Failure::argument(format!("device_count is {}: no machine has so many", options.device_count)));
    }
    // SAFETY: not null, aligned, and so many are there, as the caller promises.
    let ordinals = unsafe { std::slice::from_raw_parts(options.devices, options.device_count) };
    let mut specs = Vec::with_capacity(ordinals.len());
    for (index, &ordinal) in ordinals.iter().enumerate() {
        if ordinals[..index].contains(&ordinal) {
            return Err(Failure::argument(format!("device {ordinal} is given twice")));
        }
        specs.push(DeviceSpec::Cuda(device_number(ordinal)? as u32));
    }
    build(config, specs)
}

/// Makes an allocator. Takes no device memory yet. Several live side by side.
///
/// # Safety
/// `options` points to a struct of the size that it says, `out` to a handle that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_create(
    options: *const stratalloc_options,
    out: *mut *mut stratalloc_allocator,
) -> stratalloc_status {
    guard(|| {
        check_out(out, "out")?;
        check_process()?;
        mode::watch_forks();
        // SAFETY: as the caller promises.
        let made = unsafe { create(options) }?;
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *out = Box::into_raw(made) };
        Ok(())
    })
}

/// Destroys an allocator of `stratalloc_create`, after waiting for its devices. Its memory is given back, blocks that were not freed included,
/// and no other call may use it any more. Null, the process's own allocator, and any allocator in a child after `fork` are left alone.
///
/// # Safety
/// No other thread uses the allocator, nor will.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_destroy(allocator: *mut stratalloc_allocator) {
    guard(|| {
        if allocator.is_null() || allocator == DEFAULT.load(Acquire) {
            return Ok(());
        }
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        handle.magic.store(0, Release);
        crate::record::forget(handle);
        // SAFETY: it came from `Box::into_raw`, and the magic number says that it has not been destroyed.
        drop(unsafe { Box::from_raw(allocator) });
        Ok(())
    });
}

/// How many devices an allocator has: they are numbered from 0. 0 where the handle is none.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_device_count(allocator: *const stratalloc_allocator) -> i32 {
    let mut count = 0;
    guard(|| {
        // SAFETY: as the caller promises.
        count = unsafe { get(allocator) }?.allocator.device_count() as i32;
        Ok(())
    });
    count
}

/// The process's own allocator, once there is one.
static DEFAULT: AtomicPtr<stratalloc_allocator> = AtomicPtr::new(ptr::null_mut());

/// What it is to be made with. Held while it is being made, so that there is one only.
static DEFAULT_CONFIG: Mutex<Option<Config>> = Mutex::new(None);

/// The process's own allocator, made if need be.
pub(crate) fn default_allocator() -> Outcome<&'static stratalloc_allocator> {
    check_process()?;
    let mut made = DEFAULT.load(Acquire);
    if made.is_null() {
        mode::watch_forks();
        let config = DEFAULT_CONFIG.lock();
        made = DEFAULT.load(Acquire);
        if made.is_null() {
            let config = match &*config {
                Some(config) => config.clone(),
                None => config_of_environment()?,
            };
            made = Box::into_raw(build(config, all_devices()?)?);
            DEFAULT.store(made, Release);
        }
    }
    // SAFETY: it came from `Box::into_raw`, and is never destroyed.
    Ok(unsafe { &*made })
}

/// What STRATALLOC_CONF says. What it says wrong is one line on stderr, unless it wants to be taken strictly.
fn config_of_environment() -> Outcome<Config> {
    let invalid = |error| Failure::new(STRATALLOC_INVALID_CONFIG, format!("{ENV}: {error}"));
    let (config, wrong) = Config::from_env_or_default().map_err(invalid)?;
    if let Some(error) = wrong {
        // Where stderr is closed, nobody is left to tell.
        let _ = writeln!(std::io::stderr(), "stratalloc: {ENV}: {error}; going on with the defaults");
    }
    Ok(config)
}

/// The process's own allocator: all CUDA devices, configured by STRATALLOC_CONF. The first call makes it; it is never destroyed. If the variable
/// cannot be understood, that is one line on stderr and the defaults, or `STRATALLOC_INVALID_CONFIG` where it contains `strict:true`.
/// A call that fails leaves nothing behind: the next one tries again.
///
/// # Safety
/// `out` points to a handle that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_default(out: *mut *mut stratalloc_allocator) -> stratalloc_status {
    guard(|| {
        check_out(out, "out")?;
        let made = default_allocator()?;
        // SAFETY: not null, aligned, writable as the caller promises.
        unsafe { *out = ptr::from_ref(made).cast_mut() };
        Ok(())
    })
}

/// Configures the process's own allocator in place of STRATALLOC_CONF; null takes that back. `STRATALLOC_INVALID_ARGUMENT` once it has been made.
///
/// # Safety
/// `config` is null or ends in 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_configure_default(config: *const c_char) -> stratalloc_status {
    guard(|| {
        check_process()?;
        let parsed = if config.is_null() {
            None
        } else {
            // SAFETY: as the caller promises.
            Some(Config::parse(unsafe { text(config, "config") }?).map_err(stratalloc::Error::from)?)
        };
        let mut slot = DEFAULT_CONFIG.lock();
        if !DEFAULT.load(Acquire).is_null() {
            let text = "the process's own allocator has been made already: configure it before its first use";
            return Err(Failure::argument(text));
        }
        *slot = parsed;
        Ok(())
    })
}
