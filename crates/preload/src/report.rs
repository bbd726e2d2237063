//! What is written at exit: the figures of every device, the calls, and the rest of a trace.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use stratalloc::{ByteSize, Rung};

use crate::guard::{self, is_orphan, say};
use crate::ledger::{DEVICES, Kind};
use crate::resolve;
use crate::settings::with_process;
use crate::state::Shim;

/// Has the report written when the process exits.
pub(crate) fn at_exit() {
    static ARRANGED: AtomicBool = AtomicBool::new(false);
    if !ARRANGED.swap(true, Relaxed) {
        // SAFETY: the function is one of this library, which is never unloaded.
        unsafe { libc::atexit(exiting) };
    }
}

extern "C" fn exiting() {
    // Nothing may unwind out of here, and nobody is left to be told.
    let _ = std::panic::catch_unwind(|| {
        let Some(shim) = Shim::existing().filter(|_| !is_orphan()) else { return };
        shim.finish_recording();
        let Some(to) = &shim.settings.report else { return };
        let to = with_process(to.clone());
        let text = text(shim);
        if to == "-" {
            use std::io::Write as _;
            let _ = std::io::stderr().write_all(text.as_bytes());
        } else if let Err(error) = std::fs::write(&to, text) {
            say(format_args!("{}: {error}; the report is not written", to.to_string_lossy()));
        }
    });
}

/// The report.
fn text(shim: &Shim) -> String {
    let mut text = String::new();
    // Into memory: this cannot fail.
    let _ = write_text(shim, &mut text);
    text
}

fn write_text(shim: &Shim, text: &mut String) -> std::fmt::Result {
    writeln!(text, "stratalloc preload, process {}", std::process::id())?;
    for device in 0..DEVICES {
        if !shim.ledger.knows(device) {
            continue;
        }
        let total = shim.ledger.total(device);
        let live = shim.blocks.live_on(device);
        writeln!(
            text,
            "device {device}: {} held of {}; {} in {} live blocks",
            ByteSize(shim.ledger.held(device)),
            ByteSize(shim.ledger.limit_of(total)),
            ByteSize(live.bytes),
            live.count
        )?;
        for (kind, name) in Kind::ALL {
            let (bytes, count) = shim.ledger.figure(device, kind);
            if count > 0 {
                writeln!(text, "  {name}: {} in {count}", ByteSize(bytes))?;
            }
        }
        if let Some(stats) = shim.devices.of_ordinal(device).and_then(|served| served.allocator.stats(0).ok()) {
            let (live, reserved) = (stats.live.peak, stats.reserved.peak);
            writeln!(text, "  allocator: peak {} live, {} reserved", ByteSize(live), ByteSize(reserved))?;
            let rungs = Rung::ALL.iter().map(|rung| (rung.name(), stats.rung(*rung))).filter(|(_, count)| *count > 0);
            let rungs: Vec<String> = rungs.map(|(name, count)| format!("{name} {count}")).collect();
            writeln!(text, "  served by: {}", rungs.join(", "))?;
        }
    }
    for (name, count) in guard::calls().filter(|(_, count)| *count > 0) {
        writeln!(text, "  {name} {count}")?;
    }
    for name in resolve::unknown_pointers() {
        writeln!(text, "  {name}: another version of it passed unseen")?;
    }
    Ok(())
}
