//! Traces in the form that `harness/trace.h` reads at once.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use stratalloc_trace::{Op, Trace};

/// Writes a trace, and prints what it is.
pub(super) fn decode(from: &Path, to: &Path) -> Result<(), String> {
    let trace = Trace::load(from).map_err(|error| error.to_string())?;
    let failed = |error: io::Error| format!("cannot write {}: {error}", to.display());
    let mut file = BufWriter::new(File::create(to).map_err(failed)?);
    write_ops(&trace, &mut file).and_then(|()| file.flush()).map_err(failed)?;
    let Trace { peak_live_bytes, records, streams, .. } = trace;
    println!("peak_live {peak_live_bytes}\ncalls {}\nrecords {records}\nstreams {streams}", trace.calls());
    Ok(())
}

fn write_ops(trace: &Trace, to: &mut impl Write) -> io::Result<()> {
    to.write_all(b"stratops")?;
    for number in [trace.ops.len() as u64, trace.first_third() as u64, u64::from(trace.streams)] {
        to.write_all(&number.to_ne_bytes())?;
    }
    let mut next = 0;
    for op in &trace.ops {
        let (bytes, id, stream, kind) = match *op {
            Op::Alloc { bytes, stream } => {
                next += 1;
                (bytes, next - 1, stream, 0)
            }
            Op::Free { id } => (0, id, 0, 1),
            Op::Record { id, stream } => (0, id, stream, 2),
            Op::EmptyCache => (0, 0, 0, 3),
            Op::Marker { label } => (0, label, 0, 4),
        };
        to.write_all(&bytes.to_ne_bytes())?;
        to.write_all(&u32::to_ne_bytes(id))?;
        to.write_all(&u16::to_ne_bytes(stream))?;
        to.write_all(&[kind, 0])?;
    }
    Ok(())
}
