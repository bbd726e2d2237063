//! What the happens-before checker found, in words that an engineer can act on.

use std::fmt;

use crate::units::{DevicePtr, StreamId};

/// How an operation touches memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// It reads.
    Read,
    /// It writes, or may.
    Write,
}

/// A range that a kernel touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Where it begins.
    pub ptr: DevicePtr,
    /// How many bytes.
    pub size: u64,
    /// Read or written.
    pub kind: AccessKind,
}

impl Access {
    /// A range that is read.
    pub fn read(ptr: DevicePtr, size: u64) -> Access {
        Access { ptr, size, kind: AccessKind::Read }
    }

    /// A range that is written.
    pub fn write(ptr: DevicePtr, size: u64) -> Access {
        Access { ptr, size, kind: AccessKind::Write }
    }
}

/// What touched memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpKind {
    /// A copy on the device, or between device and pinned memory.
    Copy,
    /// A fill.
    Fill,
    /// A copy from host bytes.
    HostWrite,
    /// A copy to host bytes.
    HostRead,
    /// A kernel.
    Kernel,
    /// A kernel of the library's own that looks after memory: it may touch bytes that nobody owns.
    Watch,
    /// The block was handed out: its new owner may write it from here on.
    Alloc,
    /// The block was freed: its owner may have used it up to here.
    Free,
}

/// One access: which operation of which stream touched which addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The stream.
    pub stream: StreamId,
    /// The operation's number on the stream, from 1.
    pub op: u64,
    /// What it was.
    pub what: OpKind,
    /// Whether it read or wrote.
    pub access: AccessKind,
    /// Where the accessed range begins.
    pub ptr: DevicePtr,
    /// How many bytes it has.
    pub size: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.what, self.access) {
            (OpKind::Copy, AccessKind::Read) => "copy from",
            (OpKind::Copy, AccessKind::Write) => "copy to",
            (OpKind::Fill, _) => "fill of",
            (OpKind::HostWrite, _) => "copy from the host to",
            (OpKind::HostRead, _) => "copy to the host from",
            (OpKind::Kernel, AccessKind::Read) => "kernel reading",
            (OpKind::Kernel, AccessKind::Write) => "kernel writing",
            (OpKind::Watch, AccessKind::Read) => "check of",
            (OpKind::Watch, AccessKind::Write) => "pattern over",
            (OpKind::Alloc, _) => "allocation of",
            (OpKind::Free, _) => "free of",
        };
        write!(f, "{what} {} B at {} (op {} of {})", self.size, self.ptr, self.op, self.stream)
    }
}

/// A use of memory that stream order does not permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Report {
    /// Two accesses to the same bytes, one a write, with nothing that orders them.
    Race {
        /// The access that was submitted first.
        first: Place,
        /// The access that may overtake it.
        second: Place,
        /// The first byte that both touch, by an address of the second.
        ptr: DevicePtr,
        /// How many bytes both touch from there on.
        size: u64,
    },
    /// Memory was unmapped while work that touches it may still run.
    UnmapInUse {
        /// Where the unmapped range begins.
        ptr: DevicePtr,
        /// How many bytes were unmapped.
        size: u64,
        /// An access that the host has not waited for.
        last: Place,
    },
    /// A block was touched, or freed again, after it was freed and before it was handed out again.
    UseAfterFree {
        /// The access.
        access: Place,
        /// The free.
        freed: Place,
    },
    /// A block was handed out over another that is alive.
    Overlap {
        /// The block that was there.
        first: Place,
        /// The block on top of it.
        second: Place,
    },
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::Race { first, second, ptr, size } if first.stream == second.stream && first.op == second.op => {
                write!(f, "race in one batch: {first} and {second} share {size} B at {ptr}, and a batch has no order")
            }
            Report::Race { first, second, ptr, size } => {
                let name = if second.what == OpKind::Alloc { "reused too early" } else { "race" };
                write!(f, "{name}: {second} is not ordered after {first}; {size} B shared at {ptr}")?;
                if first.stream != second.stream {
                    write!(
                        f,
                        ". Let {} wait for an event recorded on {} after op {}",
                        second.stream, first.stream, first.op
                    )?;
                }
                Ok(())
            }
            Report::UnmapInUse { ptr, size, last } => write!(
                f,
                "unmapped in use: {size} B at {ptr}, while {last} may still run. The host must see {} past op {} first",
                last.stream, last.op
            ),
            Report::UseAfterFree { access, freed } => {
                let name = if access.what == OpKind::Free { "double free" } else { "use after free" };
                write!(f, "{name}: {access} comes after {freed}")
            }
            Report::Overlap { first, second } => {
                write!(f, "handed out twice: {second} overlaps {first}, which is alive")
            }
        }
    }
}
