//! The C functions, by area: each file here is a list of signatures, with where each is implemented.
//!
//! [`exports`] writes the functions. Each counts its calls, asks whether a fault was ordered for it, keeps panics inside, and
//! turns a [`Res`] into a `CUresult`. [`find`] is the look-up behind `cuGetProcAddress`.

mod contexts;
mod copies;
mod counts;
mod devices;
mod graphs;
mod memory;
mod modules;
mod others;
mod pools;
mod streams;
mod unsupported;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use crate::abi::codes::{Code, Res};
use crate::process;
use counts::Calls;

/// One exported function.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// The driver version from which the name without suffix means this function; 0 where that goes without saying.
    since: u32,
    address: Address,
    pub(crate) calls: Calls,
    /// Whether it may be called before `cuInit`.
    early: bool,
}

struct Address(*const ());

// SAFETY: the address of a function, which is never written through.
unsafe impl Sync for Address {}

impl Entry {
    const fn new(name: &'static str, since: u32, address: *const (), early: bool) -> Entry {
        Entry { name, since, address: Address(address), calls: Calls::new(), early }
    }

    pub(crate) fn address(&self) -> *const () {
        self.address.0
    }

    /// What every call goes through.
    #[inline]
    fn call(&self, body: impl FnOnce() -> Res) -> u32 {
        self.calls.count();
        let guarded = || {
            if !self.early {
                process::check_ready()?;
            }
            if process::faults_ordered() {
                process::pass(self.name)?;
            }
            body()
        };
        match catch_unwind(AssertUnwindSafe(guarded)) {
            Ok(Ok(())) => 0,
            Ok(Err(Code(code))) => code,
            // The panic's own message has been printed.
            Err(_) => Code::UNKNOWN.0,
        }
    }
}

/// Writes C functions and the table of them.
///
/// `fn name(args) = path;` is a function that calls `path(args)`. `[12000]` after the arguments is the driver version from which
/// it is the current one of its name. `ptsz(stream)` adds the variant in which the null stream is the thread's own. `ptds`
/// is for functions that use the null stream without naming it: `path` takes the stream first; so does `config`, for streams
/// named in a structure. `early` functions work before `cuInit`.
macro_rules! exports {
    ($($kind:ident $(($stream:ident))? fn $name:ident($($arg:ident: $type:ty),* $(,)?) $([$since:literal])? = $path:path;)*) => {
        pub(super) static ENTRIES: &[&[$crate::export::Entry]] = &[
            $(crate::export::exports!(@entries $kind $name ($($since)?)),)*
        ];
        $(crate::export::exports!(@function $kind ($($stream)?) $name ($($arg: $type),*) ($($since)?) $path);)*
    };
    (@entries $kind:ident $name:ident ($($since:literal)?)) => { &$name::ENTRIES };
    (@since) => { 0 };
    (@since $since:literal) => { $since };
    (@function plain () $name:ident ($($arg:ident: $type:ty),*) ($($since:literal)?) $path:path) => {
        crate::export::exports!(@one $name ($($arg: $type),*) ($($since)?) false, $path($($arg),*));
    };
    (@function early () $name:ident ($($arg:ident: $type:ty),*) ($($since:literal)?) $path:path) => {
        crate::export::exports!(@one $name ($($arg: $type),*) ($($since)?) true, $path($($arg),*));
    };
    (@one $name:ident ($($arg:ident: $type:ty),*) ($($since:literal)?) $early:literal, $body:expr) => {
        #[allow(non_snake_case, reason = "the name is C's")]
        mod $name {
            #[allow(unused_imports, reason = "a shared list of types")]
            use super::*;

            pub(in crate::export) static ENTRIES: [crate::export::Entry; 1] =
                [crate::export::Entry::new(stringify!($name), crate::export::exports!(@since $($since)?), $name as *const (), $early)];

            #[unsafe(no_mangle)]
            pub extern "C" fn $name($($arg: $type),*) -> u32 {
                ENTRIES[0].call(|| $body)
            }
        }
    };
    (@function ptsz ($stream:ident) $name:ident ($($arg:ident: $type:ty),*) ($($since:literal)?) $path:path) => {
        crate::export::exports!(@two $name "_ptsz" ($($arg: $type),*) ($($since)?)
            { $path($($arg),*) }
            { let $stream = crate::stream::per_thread($stream); $path($($arg),*) });
    };
    (@function ptds () $name:ident ($($arg:ident: $type:ty),*) ($($since:literal)?) $path:path) => {
        crate::export::exports!(@two $name "_ptds" ($($arg: $type),*) ($($since)?)
            { $path(crate::stream::LEGACY $(, $arg)*) }
            { $path(crate::stream::PER_THREAD $(, $arg)*) });
    };
    (@function config () $name:ident ($($arg:ident: $type:ty),*) ($($since:literal)?) $path:path) => {
        crate::export::exports!(@two $name "_ptsz" ($($arg: $type),*) ($($since)?)
            { $path(crate::stream::LEGACY $(, $arg)*) }
            { $path(crate::stream::PER_THREAD $(, $arg)*) });
    };
    (@two $name:ident $suffix:literal ($($arg:ident: $type:ty),*) ($($since:literal)?) $legacy:block $thread:block) => {
        #[allow(non_snake_case, reason = "the name is C's")]
        mod $name {
            #[allow(unused_imports, reason = "a shared list of types")]
            use super::*;

            pub(in crate::export) static ENTRIES: [crate::export::Entry; 2] = [
                crate::export::Entry::new(stringify!($name), crate::export::exports!(@since $($since)?), $name as *const (), false),
                crate::export::Entry::new(
                    concat!(stringify!($name), $suffix),
                    crate::export::exports!(@since $($since)?),
                    of_thread as *const (),
                    false,
                ),
            ];

            #[unsafe(no_mangle)]
            pub extern "C" fn $name($($arg: $type),*) -> u32 {
                ENTRIES[0].call(|| $legacy)
            }

            #[unsafe(export_name = concat!(stringify!($name), $suffix))]
            extern "C" fn of_thread($($arg: $type),*) -> u32 {
                ENTRIES[1].call(|| $thread)
            }
        }
    };
}
pub(crate) use exports;

fn groups() -> impl Iterator<Item = &'static Entry> {
    let groups: [&'static [&'static [Entry]]; 10] = [
        devices::ENTRIES,
        contexts::ENTRIES,
        memory::ENTRIES,
        copies::ENTRIES,
        pools::ENTRIES,
        streams::ENTRIES,
        graphs::ENTRIES,
        modules::ENTRIES,
        others::ENTRIES,
        unsupported::ENTRIES,
    ];
    groups.into_iter().flatten().copied().flatten()
}

/// Every exported function, by name.
pub(crate) fn all() -> &'static [&'static Entry] {
    static ALL: OnceLock<Vec<&'static Entry>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut all: Vec<&'static Entry> = groups().collect();
        all.sort_unstable_by_key(|entry| entry.name);
        all
    })
}

pub(crate) fn by_name(name: &str) -> Option<&'static Entry> {
    let all = all();
    all.binary_search_by_key(&name, |entry| entry.name).ok().map(|at| all[at])
}

/// What a look-up gives.
pub(crate) enum Found {
    Function(&'static Entry),
    /// There is one, for newer versions.
    TooOld,
    Missing,
}

/// Base names that the header maps to another name from a version on.
const RENAMED: &[(&str, u32, &str)] = &[("cuGraphInstantiate", 12000, "cuGraphInstantiateWithFlags")];

/// The function that a name means to a program built for a CUDA version; its thread's variant where asked for. Names with their
/// suffix are found as well.
pub(crate) fn find(name: &str, version: u32, per_thread: bool) -> Found {
    let mut best: Option<&'static Entry> = None;
    let mut too_old = false;
    for suffix in ["", "_v2", "_v3", "_v4"] {
        let Some(entry) = by_name(&format!("{name}{suffix}")) else { continue };
        let since = match (entry.since, suffix) {
            (0, "_v2") => 3020,
            (since, _) => since,
        };
        if since <= version {
            best = Some(entry);
        } else {
            too_old = true;
        }
    }
    for (base, since, symbol) in RENAMED {
        if *base == name && *since <= version {
            best = by_name(symbol);
        }
    }
    let Some(mut entry) = best else { return if too_old { Found::TooOld } else { Found::Missing } };
    if per_thread {
        let variant = ["_ptsz", "_ptds"].iter().find_map(|suffix| by_name(&format!("{}{suffix}", entry.name)));
        entry = variant.unwrap_or(entry);
    }
    Found::Function(entry)
}
