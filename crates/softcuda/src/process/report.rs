//! What is said at the end: how often each function was called, and what the checker has found.

use std::fmt::Write as _;
use std::io::Write as _;

use super::PROCESS;
use crate::export::all;

/// Call counts as JSON, by name, without those never called.
fn counts() -> String {
    let mut text = String::from("{\n  \"calls\": {");
    let called = all().iter().map(|entry| (entry.name, entry.calls.get())).filter(|(_, n)| *n > 0);
    for (at, (name, count)) in called.enumerate() {
        let comma = if at == 0 { "" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}\n    \"{name}\": {count}");
    }
    text.push_str("\n  }\n}\n");
    text
}

/// Runs at exit, when streams of the standard library may be gone: errors are ignored where nobody is left to tell.
pub(super) fn at_exit() {
    // A child of fork inherits the handlers, and has nothing to report.
    let Some(process) = PROCESS.get().filter(|_| super::check_ready().is_ok()) else { return };
    let mut stderr = std::io::stderr();
    for device in process.devices.iter().filter(|_| process.options.checker) {
        for report in device.soft.reports() {
            let _ = writeln!(stderr, "softcuda checker, device {}: {report}", device.ordinal);
        }
    }
    match &process.options.report {
        None => {}
        Some(path) if path.as_os_str() == "-" => {
            let _ = stderr.write_all(counts().as_bytes());
        }
        Some(path) => {
            if let Err(error) = std::fs::write(path, counts()) {
                let _ = writeln!(stderr, "softcuda: SOFTCUDA_REPORT={}: {error}", path.display());
            }
        }
    }
}
