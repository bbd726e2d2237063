//! Which function a program gets when it looks one up.
//!
//! A program reaches the driver in three ways, and all lead here: its calls are bound by the dynamic linker, which finds this library's
//! exports first; it calls `dlsym` on a library's handle; it calls `cuGetProcAddress`. In the last two the *returned pointer* is mapped: where
//! it is the driver's own function, the hook takes its place. Names are never guessed, so version and per-thread variant are what was
//! asked for.
//!
//! `dlsym` is exported without a symbol version, which satisfies references to either of glibc's, `GLIBC_2.2.5` and `GLIBC_2.34`. Calls that
//! are none of ours jump to the real one with the caller's return address in place, since `RTLD_NEXT` and `RTLD_DEFAULT` mean the
//! caller's place in the search order.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_ulonglong, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use crate::abi::{SUCCESS, Status};
use crate::entries::{Driver, Entry};
use crate::guard;
use crate::nvml;
use crate::state::Shim;

/// The driver, found.
pub(crate) struct Loaded {
    /// Its functions.
    pub(crate) driver: Driver,
    /// Its functions' addresses, and the hooks in their place.
    hooks: HashMap<usize, usize>,
    /// The library.
    handle: *mut c_void,
}

// SAFETY: the handle is only given to the real `dlsym`, which any thread may call.
unsafe impl Send for Loaded {}
// SAFETY: as above; nothing is mutated.
unsafe impl Sync for Loaded {}

/// Found once and kept. Threads that find it at once agree by a compare-exchange, with no lock that a fork could leave held.
static LOADED: AtomicPtr<Loaded> = AtomicPtr::new(ptr::null_mut());

/// The real `dlsym`, or 0.
static REAL_DLSYM: AtomicUsize = AtomicUsize::new(0);

/// Functions that were looked up under a name of ours and are not the ones that the driver exports under it.
static UNKNOWN_POINTERS: [AtomicBool; Entry::HOOKED.len()] = [const { AtomicBool::new(false) }; Entry::HOOKED.len()];

type DlSym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;

/// The driver, if the program has loaded it.
#[inline]
pub(crate) fn driver() -> Option<&'static Loaded> {
    // SAFETY: the pointer is null or leads to a `Loaded` that is never freed.
    match unsafe { LOADED.load(Ordering::Acquire).as_ref() } {
        Some(loaded) => Some(loaded),
        None => load(),
    }
}

#[cold]
fn load() -> Option<&'static Loaded> {
    let chosen = std::env::var_os("STRATALLOC_LIBCUDA").filter(|name| !name.is_empty());
    let chosen = chosen.and_then(|name| CString::new(name.into_encoded_bytes()).ok());
    let names = [c"libcuda.so.1", c"libcuda.so"];
    let handle = chosen.as_deref().into_iter().chain(names).find_map(loaded_library)?;
    let find = |name: &str| find_in(handle, name);
    // SAFETY: the functions are looked up in the driver, whose handle is kept to the end of the process.
    let driver = unsafe { Driver::resolve(&find) };
    let hooks = driver.pairs().into_iter().collect();
    pin();
    guard::watch_forks();
    let made = Box::into_raw(Box::new(Loaded { driver, hooks, handle }));
    match LOADED.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: `made` is never freed from here on.
        Ok(_) => Some(unsafe { &*made }),
        Err(first) => {
            // SAFETY: nobody else has seen `made`; `first` is never freed.
            unsafe {
                drop(Box::from_raw(made));
                Some(&*first)
            }
        }
    }
}

/// A library that the process has loaded already.
pub(crate) fn loaded_library(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: with RTLD_NOLOAD nothing is loaded, and no initialiser runs.
    let handle = unsafe { open_library(name.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
    (!handle.is_null()).then_some(handle)
}

/// A function of a library, from the real `dlsym`.
pub(crate) fn find_in(handle: *mut c_void, name: &str) -> *mut c_void {
    let Ok(name) = CString::new(name) else { return ptr::null_mut() };
    // SAFETY: the handle is from `dlopen` and the name ends in NUL.
    unsafe { real_dlsym()(handle, name.as_ptr()) }
}

/// Keeps this library loaded, whatever closes it: its functions' addresses are all over the process.
fn pin() {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: `info` is written only by the call; the address is of a function of this library; the name that it gives is valid as long as
    // the library is loaded, which it is while it runs.
    unsafe {
        if libc::dladdr(pin as *const c_void, info.as_mut_ptr()) != 0 {
            let name = info.assume_init().dli_fname;
            open_library(name, libc::RTLD_NOLOAD | libc::RTLD_LAZY | libc::RTLD_NODELETE);
        }
    }
}

/// A function of the driver, by name; null where there is none.
pub(crate) fn find_driver(name: &str) -> *const c_void {
    driver().map_or(ptr::null(), |loaded| find_in(loaded.handle, name).cast_const())
}

/// The real `dlsym`: the next one after this library's.
fn real_dlsym() -> DlSym {
    let mut found = REAL_DLSYM.load(Ordering::Relaxed);
    if found == 0 {
        let versions: [&CStr; 3] = [c"GLIBC_2.34", c"GLIBC_2.2.5", c"GLIBC_2.17"];
        // SAFETY: names and versions end in NUL; `dlvsym` is glibc's, and no version of it is interposed.
        let next = |version: &&CStr| unsafe { libc::dlvsym(libc::RTLD_NEXT, c"dlsym".as_ptr(), version.as_ptr()) };
        found = versions.iter().map(next).find(|found| !found.is_null()).map_or(0, |found| found as usize);
        if found == 0 {
            guard::say(format_args!("this C library has no dlsym of a version known here: nothing can be looked up"));
            found = nothing as *const () as usize;
        }
        REAL_DLSYM.store(found, Ordering::Relaxed);
    }
    // SAFETY: the address is of glibc's `dlsym`, or of `nothing`, which has the same type.
    unsafe { std::mem::transmute::<usize, DlSym>(found) }
}

/// The address of the real `dlopen`.
fn real_dlopen() -> usize {
    static REAL: AtomicUsize = AtomicUsize::new(0);
    let mut found = REAL.load(Ordering::Relaxed);
    if found == 0 {
        // SAFETY: the name ends in NUL; RTLD_NEXT is the place after this library, whose code makes the call.
        found = unsafe { real_dlsym()(libc::RTLD_NEXT, c"dlopen".as_ptr()) } as usize;
        if found == 0 {
            found = nothing as *const () as usize;
        }
        REAL.store(found, Ordering::Relaxed);
    }
    found
}

/// Opens a library through the real `dlopen`.
///
/// # Safety
/// As for `dlopen`.
unsafe fn open_library(name: *const c_char, flags: c_int) -> *mut c_void {
    // SAFETY: the address is of glibc's `dlopen`, or of `nothing`, which returns null as well.
    let open = unsafe {
        std::mem::transmute::<usize, unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void>(real_dlopen())
    };
    // SAFETY: the caller keeps the C function's contract.
    unsafe { open(name, flags) }
}

extern "C" fn nothing(_handle: *mut c_void, _name: *const c_char) -> *mut c_void {
    ptr::null_mut()
}

/// What `dlsym` does next: return `value`, or jump to it.
#[repr(C)]
struct Route {
    value: usize,
    returns: usize,
}

/// Decides about one `dlsym` call.
extern "C" fn route(handle: *mut c_void, name: *const c_char) -> Route {
    let real = real_dlsym();
    let jump = Route { value: real as usize, returns: 0 };
    if name.is_null() || handle == libc::RTLD_NEXT || handle == libc::RTLD_DEFAULT {
        return jump;
    }
    // SAFETY: the program passes a string, as `dlsym` demands.
    let Ok(text) = unsafe { CStr::from_ptr(name) }.to_str() else { return jump };
    let is_driver = text.starts_with("cu") && Entry::NAMES.contains(&text);
    let is_nvml = text.starts_with("nvml") && nvml::NAMES.contains(&text);
    if !is_driver && !is_nvml {
        return jump;
    }
    // SAFETY: the program's own arguments; a handle does not care who calls.
    let found = unsafe { real(handle, name) };
    let hook = std::panic::catch_unwind(|| if is_nvml { nvml::hook_of(found) } else { hook_of(found as usize) });
    Route { value: hook.unwrap_or(found as usize), returns: 1 }
}

/// The hook in place of a function of the driver, or the function itself where it is none.
fn hook_of(found: usize) -> usize {
    if found == 0 {
        return 0;
    }
    let hook = driver().and_then(|loaded| loaded.hooks.get(&found).copied());
    hook.unwrap_or(found)
}

/// Notes that a library is opened such that it finds its own functions before this library's.
extern "C" fn route_open(name: *const c_char, flags: *mut c_void) -> Route {
    let real = real_dlopen();
    if flags as usize & libc::RTLD_DEEPBIND as usize != 0 && !name.is_null() {
        static SAID: AtomicBool = AtomicBool::new(false);
        // SAFETY: the program passes a string, as `dlopen` demands.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let what =
            "is opened with RTLD_DEEPBIND: CUDA calls of such libraries may pass unseen, and are then not accounted";
        let _ = std::panic::catch_unwind(|| guard::say_once(&SAID, format_args!("{name} {what}")));
    }
    Route { value: real, returns: 0 }
}

/// Exports a function of two arguments that asks `route` first, and then returns what it says, or jumps there with the arguments and the
/// caller's return address as they were.
macro_rules! routed {
    ($(#[$about:meta])* $name:ident ( $first:ty, $second:ty ) -> $result:ty, $route:ident) => {
        $(#[$about])*
        ///
        /// # Safety
        /// As for the C function.
        #[cfg(target_arch = "x86_64")]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name(_first: $first, _second: $second) -> $result {
            std::arch::naked_asm!(
                "push rdi",
                "push rsi",
                "sub rsp, 8",
                "call {route}",
                "add rsp, 8",
                "pop rsi",
                "pop rdi",
                "test rdx, rdx",
                "jz 2f",
                "ret",
                "2: jmp rax",
                route = sym $route,
            )
        }

        $(#[$about])*
        ///
        /// # Safety
        /// As for the C function.
        #[cfg(target_arch = "aarch64")]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name(_first: $first, _second: $second) -> $result {
            std::arch::naked_asm!(
                "stp x29, x30, [sp, #-32]!",
                "stp x0, x1, [sp, #16]",
                "bl {route}",
                "mov x16, x0",
                "mov x17, x1",
                "ldp x0, x1, [sp, #16]",
                "ldp x29, x30, [sp], #32",
                "cbz x17, 2f",
                "mov x0, x16",
                "ret",
                "2: br x16",
                route = sym $route,
            )
        }
    };
}

routed! {
    /// `dlsym`, as every lookup of the process calls it.
    dlsym(*mut c_void, *const c_char) -> *mut c_void, route
}

routed! {
    /// `dlopen`, which is only watched: a library that is opened so that it does not see this one is worth a line.
    dlopen(*const c_char, c_int) -> *mut c_void, route_open
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("dlsym is forwarded by a jump that is written for x86-64 and arm64 only");

/// Maps what `cuGetProcAddress` found.
///
/// # Safety
/// `found` is null or valid for one pointer.
unsafe fn map_found(symbol: *const c_char, found: *mut *mut c_void) {
    // SAFETY: the caller says so.
    let Some(found) = (unsafe { found.as_mut() }) else { return };
    let Some(loaded) = driver().filter(|_| !found.is_null()) else { return };
    match loaded.hooks.get(&(*found as usize)) {
        Some(&hook) => *found = hook as *mut c_void,
        // A driver whose own names are bound by the dynamic linker has found the hook by itself.
        None if loaded.hooks.values().any(|hook| *hook == *found as usize) => {}
        None => note_unknown(symbol),
    }
}

/// Notes a function that has a name of ours and is not the one that the driver exports under it: nothing that goes through it is seen. Those
/// that are only counted are not worth a word.
#[cold]
fn note_unknown(symbol: *const c_char) {
    if symbol.is_null() {
        return;
    }
    // SAFETY: the driver has just read this string.
    let Ok(name) = unsafe { CStr::from_ptr(symbol) }.to_str() else { return };
    let ours =
        |entry: &&'static str| entry.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("_v"));
    if let Some(at) = Entry::HOOKED.iter().position(ours) {
        UNKNOWN_POINTERS[at].store(true, Ordering::Relaxed);
        static SAID: AtomicBool = AtomicBool::new(false);
        guard::say_once(
            &SAID,
            format_args!("the driver has a {name} that this version does not know: it passes unseen"),
        );
    }
}

/// Which functions pass unseen, see the report.
pub(crate) fn unknown_pointers() -> impl Iterator<Item = &'static str> {
    Entry::HOOKED.iter().zip(&UNKNOWN_POINTERS).filter(|(_, seen)| seen.load(Ordering::Relaxed)).map(|(name, _)| *name)
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn proc_address(
    shim: &Shim,
    symbol: *const c_char,
    found: *mut *mut c_void,
    version: c_int,
    flags: c_ulonglong,
) -> Status {
    // SAFETY: the program's own arguments.
    let status = unsafe { shim.driver.cuGetProcAddress(symbol, found, version, flags) };
    if status == SUCCESS {
        // SAFETY: the driver has written there, or it is null.
        unsafe { map_found(symbol, found) };
    }
    status
}

/// # Safety
/// As for the C function.
pub(crate) unsafe fn proc_address_v2(
    shim: &Shim,
    symbol: *const c_char,
    found: *mut *mut c_void,
    version: c_int,
    flags: c_ulonglong,
    result: *mut c_int,
) -> Status {
    // SAFETY: the program's own arguments.
    let status = unsafe { shim.driver.cuGetProcAddress_v2(symbol, found, version, flags, result) };
    if status == SUCCESS {
        // SAFETY: the driver has written there, or it is null.
        unsafe { map_found(symbol, found) };
    }
    status
}
