//! Errors that say what the caller may do, with numbers.
//!
//! | the caller may | variants |
//! |---|---|
//! | correct the call | [`Error::InvalidSize`], [`Error::InvalidAlignment`], [`Error::InvalidTag`], [`Error::InvalidPointer`], [`Error::DoubleFree`], [`Error::WrongDevice`], [`Error::UnknownDevice`], [`Error::UnknownPool`], [`Error::Config`], [`Error::Plan`] |
//! | ask for less | [`Error::NeverFits`] |
//! | free something, then try again | [`Error::OutOfMemory`], [`Error::OverLimit`], [`Error::LimitBelowUse`] |
//! | unpin, wake, or give tiers more room | [`Error::Residency`], [`Error::Tier`] |
//! | wait for a capture to end | [`Error::Capturing`] |
//! | give the device up | [`Error::Driver`] |

mod oom;
mod oom_text;
mod tier;

pub use oom::{
    OomAdvice, OomBlock, OomCause, OomExplanation, OomFree, OomGap, OomNeighbour, OomPool, OomRemedy, OomRequest,
    OomRung, OomTag, OomTiers, OutOfMemory,
};
pub use tier::{CodecError, ResidencyError, TierError};

use crate::units::{ByteSize, DevicePtr, PoolId};

/// What an operation of the allocator returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Any failure of the allocator. State is unchanged whenever one is returned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size of 0, or one that no address space holds.
    #[error("invalid size {size}: ask for 1 to {max} bytes")]
    InvalidSize {
        /// What was asked for, in bytes.
        size: u64,
        /// The most that can be asked for, in bytes.
        max: u64,
    },
    /// An alignment that is no power of two, or larger than is served.
    #[error("invalid alignment {alignment}: ask for a power of two of at most {max}")]
    InvalidAlignment {
        /// What was asked for, in bytes.
        alignment: u64,
        /// The largest alignment served, in bytes.
        max: u64,
    },
    /// A tag number that does not exist.
    #[error("no tag {tag}: tags are numbered 0 (none) to {max}")]
    InvalidTag {
        /// What was given.
        tag: u8,
        /// The largest tag number.
        max: u8,
    },
    /// More than the device, or its limit, could ever hold.
    #[error("{} can never fit: the device has {}{}", ByteSize(*size), ByteSize(*capacity), match limit { Some(l) => format!(", limited to {}", ByteSize(*l)), None => String::new() })]
    NeverFits {
        /// What was asked for, in bytes.
        size: u64,
        /// The memory of the device, in bytes.
        capacity: u64,
        /// The limit on reserved memory, in bytes, if there is one.
        limit: Option<u64>,
    },
    /// There is no room now. Freeing, or waiting for the device, may help.
    #[error("{0}")]
    OutOfMemory(Box<OutOfMemory>),
    /// The request would take its tag over the tag's limit.
    #[error("{} would take tag {tag} from {} over its limit of {}", ByteSize(*size), ByteSize(*in_use), ByteSize(*limit))]
    OverLimit {
        /// What was asked for, in bytes.
        size: u64,
        /// The tag's number.
        tag: u8,
        /// Live bytes of the tag.
        in_use: u64,
        /// The tag's limit in bytes.
        limit: u64,
    },
    /// A limit below what is in use now.
    #[error("a limit of {} is below what is in use: {}", ByteSize(*limit), ByteSize(*in_use))]
    LimitBelowUse {
        /// The limit asked for, in bytes.
        limit: u64,
        /// What is in use, in bytes.
        in_use: u64,
    },
    /// A pointer that this allocator did not hand out (null, foreign, or into the middle of a block).
    #[error("{ptr} is not the start of a block of this allocator")]
    InvalidPointer {
        /// The pointer.
        ptr: DevicePtr,
    },
    /// A pointer whose block is free already.
    #[error("{ptr} was freed already")]
    DoubleFree {
        /// The pointer.
        ptr: DevicePtr,
    },
    /// A pointer that belongs to another device of this allocator.
    #[error("{ptr} belongs to device {owner}, not to device {given}")]
    WrongDevice {
        /// The pointer.
        ptr: DevicePtr,
        /// The device named in the call.
        given: usize,
        /// The device that owns the block.
        owner: usize,
    },
    /// A device that this allocator does not manage.
    #[error("no device {device}: this allocator manages {count}")]
    UnknownDevice {
        /// The device named in the call.
        device: usize,
        /// How many devices there are.
        count: usize,
    },
    /// A private pool that does not exist, or is being used in a way it is not open for.
    #[error("private pool {pool} {what}")]
    UnknownPool {
        /// The pool.
        pool: PoolId,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The end of a capture that never began.
    #[error("no capture is under way")]
    NotCapturing,
    /// Not possible while a stream is being captured into a graph.
    #[error("{what} is not possible while a capture is under way")]
    Capturing {
        /// What was asked for.
        what: &'static str,
    },
    /// A configuration that is not understood.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A plan that cannot be taken over, or made.
    #[error("{0}")]
    Plan(#[from] PlanError),
    /// An evictable block could not be moved as asked.
    #[error("{0}")]
    Residency(#[from] ResidencyError),
    /// A tier failed. What was to be moved is where it was.
    #[error("{0}")]
    Tier(#[from] TierError),
    /// The driver failed.
    #[error("{0}")]
    Driver(#[from] DriverError),
}

/// Why a configuration was refused. The message names the key, the value and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A key that does not exist.
    #[error("unknown key '{key}'; known keys: {known}")]
    UnknownKey {
        /// The key as given.
        key: String,
        /// Every key there is.
        known: String,
    },
    /// A value that is not understood or out of range.
    #[error("{key}: '{value}' is not allowed; {allowed}")]
    InvalidValue {
        /// The key.
        key: String,
        /// The value as given.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// Text that is not `key:value,key:value`.
    #[error("'{text}' is not a setting: write key:value, separated by commas")]
    Syntax {
        /// The part that is not understood.
        text: String,
    },
}

/// Why a plan was not taken over, or not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The allocator makes no plans.
    #[error("plans are off: configure plan:on")]
    Off,
    /// The bytes are not a plan.
    #[error("not a plan of this allocator")]
    NotAPlan,
    /// A plan from another version of this library.
    #[error("a plan of version {found}; this library reads version {known}")]
    Version {
        /// The version that the bytes name.
        found: u32,
        /// The version that is read.
        known: u32,
    },
    /// The plan ends too early.
    #[error("the plan is cut off: {len} bytes, {wanted} wanted")]
    CutOff {
        /// How many bytes there are.
        len: usize,
        /// How many there should be at least.
        wanted: usize,
    },
    /// More follows after the plan's end.
    #[error("{excess} bytes after the plan's end")]
    Trailing {
        /// How many.
        excess: usize,
    },
    /// The bytes were changed on their way.
    #[error("the plan is damaged: its checksum is {found:#018x}, that of its bytes {computed:#018x}")]
    Checksum {
        /// The checksum that stands in the plan.
        found: u64,
        /// That of its bytes.
        computed: u64,
    },
    /// A number that no plan can have.
    #[error("step {step} of the plan: {what}")]
    Step {
        /// Which step, from 0.
        step: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// What went wrong in a driver call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DriverErrorKind {
    /// The driver's library is not there, or could not be loaded.
    LibraryMissing,
    /// The library lacks a function.
    SymbolMissing,
    /// The device does not exist.
    NoDevice,
    /// The device has no memory for this.
    OutOfMemory,
    /// The driver refused an argument. A bug in this library, or a bad handle from the caller.
    InvalidValue,
    /// A stream, event or chunk handle that the driver does not know.
    InvalidHandle,
    /// Not allowed while a stream is being captured.
    Capturing,
    /// The device or driver cannot do this.
    NotSupported,
    /// The context is broken: every later call fails as well.
    Sticky,
    /// Any other code.
    Other,
}

/// A failed driver call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed: {detail}")]
pub struct DriverError {
    /// The kind of failure.
    pub kind: DriverErrorKind,
    /// The driver function, such as `cuMemCreate`.
    pub call: &'static str,
    /// The driver's own words and numbers.
    pub detail: String,
}

impl DriverError {
    /// A failure of `call`.
    #[cold]
    pub fn new(kind: DriverErrorKind, call: &'static str, detail: impl Into<String>) -> DriverError {
        DriverError { kind, call, detail: detail.into() }
    }

    /// Whether the device had no memory for the call.
    pub fn is_out_of_memory(&self) -> bool {
        self.kind == DriverErrorKind::OutOfMemory
    }
}
