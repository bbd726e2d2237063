//! The writer: the inverse of `decode`.

use std::io::{self, Write};

use super::{FIRST_LINE, Op, Trace};

pub(super) fn write(trace: &Trace, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "{FIRST_LINE}")?;
    for (key, value) in &trace.header {
        writeln!(to, "# {key}: {value}")?;
    }
    let mut ids = 0u32..;
    for op in &trace.ops {
        match *op {
            Op::Alloc { bytes, stream } => {
                let id = ids.next().unwrap_or(u32::MAX);
                writeln!(to, "a {id} {bytes} {stream}")?;
            }
            Op::Free { id } => writeln!(to, "f {id}")?,
            Op::Record { id, stream } => writeln!(to, "r {id} {stream}")?,
            Op::EmptyCache => writeln!(to, "e")?,
            Op::Marker { label } => match trace.labels.get(label as usize) {
                Some(label) => writeln!(to, "m {label}")?,
                None => return Err(io::Error::other(format!("a marker has label {label}, which does not exist"))),
            },
        }
    }
    Ok(())
}
