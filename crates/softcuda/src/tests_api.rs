//! Functions for tests, beside CUDA's: accounts, call counts, what the checker has found. `include/softcuda.h` declares them.

use std::ffi::c_char;

use stratalloc::driver::Driver;

use crate::abi::codes::Code;
use crate::abi::pointers::{In, Out};
use crate::export::{Found, all, find};
use crate::process;
use crate::process::devices::{self, Device};

/// `struct softcuda_account`: the size that the caller knows, then numbers.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Account {
    size: usize,
    numbers: [u64; NUMBERS],
}

const NUMBERS: usize = 26;

/// A device's account. Asking costs no virtual time.
fn numbers(device: &Device) -> [u64; NUMBERS] {
    let account = &device.account;
    let usage = device.soft.usage();
    let mut numbers = [0; NUMBERS];
    let pairs = [
        account.plain.get(),
        (usage.chunk_bytes, usage.chunks),
        (usage.mapped_bytes, usage.mappings),
        (usage.reserved_bytes, usage.reservations),
        account.pool_used.get(),
        account.pool_reserved.get(),
        account.managed.get(),
        account.arrays.get(),
        account.host.get(),
        account.registered.get(),
        account.graph.get(),
        account.shared.get(),
    ];
    for (place, (bytes, count)) in numbers.chunks_exact_mut(2).zip(pairs) {
        place.copy_from_slice(&[bytes, count]);
    }
    numbers[24..].copy_from_slice(&[device.soft.free_bytes(), device.soft.properties().total_memory]);
    numbers
}

/// Writes a device's account, as much of it as the caller's structure has room for. 0, or a `CUresult`.
#[unsafe(no_mangle)]
pub extern "C" fn softcudaAccount(device: i32, out: *mut Account) -> i32 {
    let write = || {
        let known = In(out.cast_const().cast::<usize>()).get()?;
        if !(8..=1 << 16).contains(&known) {
            return Err(Code::INVALID_VALUE);
        }
        let numbers = numbers(devices::by_ordinal(device)?);
        let room = (known - size_of::<usize>()) / size_of::<u64>();
        Out(out.cast::<u64>().wrapping_add(1)).set_all(numbers.into_iter().take(room))
    };
    match write() {
        Ok(()) => 0,
        Err(Code(code)) => code as i32,
    }
}

/// How often a function was called since the start or the last reset. A name without suffix means its newest version.
#[unsafe(no_mangle)]
pub extern "C" fn softcudaCallCount(name: *const c_char) -> u64 {
    let Ok(name) = In(name).text() else { return 0 };
    match find(&name, u32::MAX, false) {
        Found::Function(entry) => entry.calls.get(),
        _ => 0,
    }
}

/// Sets all counts to 0.
#[unsafe(no_mangle)]
pub extern "C" fn softcudaResetCallCounts() {
    all().iter().for_each(|entry| entry.calls.reset());
}

/// Writes the name of an exported function, by a number from 0 on, cut to `length` bytes with its end. Gives its whole length,
/// or 0 after the last.
#[unsafe(no_mangle)]
pub extern "C" fn softcudaFunctionName(index: u64, text: *mut c_char, length: usize) -> usize {
    let Some(entry) = usize::try_from(index).ok().and_then(|index| all().get(index)) else { return 0 };
    give_text(entry.name, text, length)
}

/// How many reports the checker has made, on all devices.
#[unsafe(no_mangle)]
pub extern "C" fn softcudaReportCount() -> u64 {
    process::get().map_or(0, |process| process.devices.iter().map(|device| device.soft.report_count()).sum())
}

/// Writes a report's words, cut to `length` bytes with their end. Gives their whole length, or 0 where there is no such report.
#[unsafe(no_mangle)]
pub extern "C" fn softcudaReport(index: u64, text: *mut c_char, length: usize) -> usize {
    let Ok(process) = process::get() else { return 0 };
    let reports = process.devices.iter().flat_map(|device| device.soft.reports());
    let Some(report) = usize::try_from(index).ok().and_then(|index| reports.into_iter().nth(index)) else { return 0 };
    give_text(&report.to_string(), text, length)
}

fn give_text(words: &str, text: *mut c_char, length: usize) -> usize {
    let room = i32::try_from(length).unwrap_or(i32::MAX);
    if !text.is_null() && room > 0 {
        // Both were checked.
        let _ = Out(text).set_text(words, room);
    }
    words.len()
}
