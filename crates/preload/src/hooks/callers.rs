//! Who calls: whether a library that exports what it allocates is among the callers.
//!
//! The callers are read off the stack, so that it counts when the CUDA runtime is in between. That is done only where such a library is
//! loaded, which is looked up again when the process has loaded another library.

use std::ffi::{CStr, c_int, c_void};
use std::ops::Range;

use parking_lot::Mutex;

use crate::settings::Settings;

/// How many callers are looked at.
const DEPTH: usize = 16;

// SAFETY: the declaration is that of <execinfo.h>.
unsafe extern "C" {
    fn backtrace(buffer: *mut *mut c_void, size: c_int) -> c_int;
}

/// The libraries that export, as of some number of libraries loaded.
#[derive(Debug, Default)]
struct Exporters {
    loaded: Option<u64>,
    ranges: Vec<Range<usize>>,
}

static EXPORTERS: Mutex<Exporters> = Mutex::new(Exporters { loaded: None, ranges: Vec::new() });

/// What the look through the libraries is about.
struct Search<'a> {
    settings: &'a Settings,
    known: Option<u64>,
    loaded: Option<u64>,
    ranges: Vec<Range<usize>>,
}

/// Whether a request that is made now is to get an allocation of its own.
pub(super) fn include_exporter(settings: &Settings) -> bool {
    if settings.own.is_empty() {
        return false;
    }
    if settings.own.iter().any(|own| own == "*") {
        return true;
    }
    let ranges = exporters(settings);
    if ranges.is_empty() {
        return false;
    }
    let mut frames = [std::ptr::null_mut::<c_void>(); DEPTH];
    // SAFETY: the buffer is valid for the length that is given.
    let count = unsafe { backtrace(frames.as_mut_ptr(), DEPTH as c_int) };
    let frames = &frames[..usize::try_from(count).unwrap_or(0).min(DEPTH)];
    frames.iter().any(|frame| ranges.iter().any(|range| range.contains(&(*frame as usize))))
}

/// Where the libraries that export are.
fn exporters(settings: &Settings) -> Vec<Range<usize>> {
    let known = EXPORTERS.lock().loaded;
    let mut search = Search { settings, known, loaded: None, ranges: Vec::new() };
    // No lock of ours is held: the dynamic linker holds its own meanwhile, and may hold it in a thread that comes here.
    // SAFETY: the callback has the type that is demanded, and its argument is valid for the length of the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), std::ptr::from_mut(&mut search).cast()) };
    let mut exporters = EXPORTERS.lock();
    if search.loaded != known {
        exporters.ranges = search.ranges;
        exporters.loaded = search.loaded;
    }
    exporters.ranges.clone()
}

/// Looks at one library. Returns 1 to stop: where nothing was loaded since the last time.
///
/// # Safety
/// As for the callback of `dl_iterate_phdr`; `search` leads to a [`Search`].
unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: libc::size_t, search: *mut c_void) -> c_int {
    // SAFETY: the linker passes its description of a library, and what `exporters` passed.
    let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
    if search.loaded.is_none() {
        search.loaded = Some(info.dlpi_adds);
        if search.loaded == search.known {
            return 1;
        }
    }
    // Nothing may unwind into the linker.
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| range_of(info, search.settings)));
    search.ranges.extend(found.ok().flatten());
    0
}

/// Where a library lies, if it is one that exports.
fn range_of(info: &libc::dl_phdr_info, settings: &Settings) -> Option<Range<usize>> {
    let is_own = if info.dlpi_name.is_null() {
        false
    } else {
        // SAFETY: the linker's names are strings.
        match unsafe { CStr::from_ptr(info.dlpi_name) }.to_str() {
            // The program itself has no name here.
            Ok("") => std::env::current_exe().is_ok_and(|path| settings.is_own(&path.to_string_lossy())),
            Ok(name) => settings.is_own(name),
            Err(_) => false,
        }
    };
    if !is_own || info.dlpi_phdr.is_null() {
        return None;
    }
    // SAFETY: the linker describes as many headers.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    let ends = loaded.map(|header| header.p_vaddr.saturating_add(header.p_memsz) as usize);
    let base = info.dlpi_addr as usize;
    ends.max().map(|end| base..base.saturating_add(end))
}
