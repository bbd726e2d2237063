//! The keys of tiers.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::units::ByteSize;

/// A tier that a device is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TierSpec {
    /// So much pinned memory of the host. `host=32GiB`.
    Host(ByteSize),
    /// A file without a name in this folder, of at most so many bytes. Several are one tier, striped. `nvme=/mnt/a=200GiB`.
    Nvme {
        /// The folder: an absolute path without `,` and `+`.
        folder: PathBuf,
        /// The most bytes of it.
        bytes: ByteSize,
    },
    /// So much memory of another device, by its ordinal in the allocator. `peer=1=8GiB`.
    Peer {
        /// The other device.
        device: usize,
        /// The most bytes of it.
        bytes: ByteSize,
    },
}

impl fmt::Display for TierSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TierSpec::Host(bytes) => write!(f, "host={}", bytes.0),
            TierSpec::Nvme { folder, bytes } => write!(f, "nvme={}={}", folder.display(), bytes.0),
            TierSpec::Peer { device, bytes } => write!(f, "peer={device}={}", bytes.0),
        }
    }
}

impl FromStr for TierSpec {
    type Err = ();

    fn from_str(text: &str) -> Result<TierSpec, ()> {
        let (kind, rest) = text.split_once('=').ok_or(())?;
        // A folder may have = in its name: the size comes last.
        let (what, size) = rest.rsplit_once('=').map_or((None, rest), |(what, size)| (Some(what), size));
        let bytes = size.parse::<ByteSize>().ok().filter(|size| size.0 > 0).ok_or(())?;
        match (kind.trim(), what) {
            ("host", None) => Ok(TierSpec::Host(bytes)),
            ("nvme", Some(folder)) if folder.starts_with('/') => Ok(TierSpec::Nvme { folder: folder.into(), bytes }),
            ("peer", Some(device)) => Ok(TierSpec::Peer { device: device.trim().parse().map_err(|_| ())?, bytes }),
            _ => Err(()),
        }
    }
}

/// The tiers of a device, the fastest first. As text, `off`, or tiers with `+` between them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TierList {
    /// Each of them.
    pub specs: Vec<TierSpec>,
}

impl fmt::Display for TierList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.specs.is_empty() {
            return f.write_str("off");
        }
        let texts: Vec<String> = self.specs.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join("+"))
    }
}

impl FromStr for TierList {
    type Err = ();

    fn from_str(text: &str) -> Result<TierList, ()> {
        if text == "off" {
            return Ok(TierList::default());
        }
        let specs = text.split('+').map(|spec| spec.trim().parse()).collect::<Result<Vec<TierSpec>, ()>>()?;
        let hosts = specs.iter().filter(|spec| matches!(spec, TierSpec::Host(_))).count();
        if hosts > 1 { Err(()) } else { Ok(TierList { specs }) }
    }
}

/// What may push other bytes out of a tier that is full, on to the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum TierAdmission {
    /// All that goes.
    #[default]
    All,
    /// What has been wanted back before. The rest goes to a slower tier at once: much is stored that nobody wants again.
    Again,
}

impl fmt::Display for TierAdmission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == TierAdmission::All { "all" } else { "again" })
    }
}

impl FromStr for TierAdmission {
    type Err = ();

    fn from_str(text: &str) -> Result<TierAdmission, ()> {
        [TierAdmission::All, TierAdmission::Again].into_iter().find(|known| known.to_string() == text).ok_or(())
    }
}

/// Which evictable memory goes first when room is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum VictimOrder {
    /// What was used longest ago.
    Lru,
    /// What has been used once goes before what has been used again (S3-FIFO).
    S3Fifo,
    /// Between recency and frequency, as the past says (ARC).
    Arc,
    /// What is cheapest to have back for the memory that it frees, and has not been used for long.
    #[default]
    Cost,
}

impl VictimOrder {
    const NAMES: [(VictimOrder, &str); 4] = [
        (VictimOrder::Lru, "lru"),
        (VictimOrder::S3Fifo, "s3fifo"),
        (VictimOrder::Arc, "arc"),
        (VictimOrder::Cost, "cost"),
    ];
}

impl fmt::Display for VictimOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(VictimOrder::NAMES.iter().find(|(order, _)| order == self).map_or("cost", |(_, name)| name))
    }
}

impl FromStr for VictimOrder {
    type Err = ();

    fn from_str(text: &str) -> Result<VictimOrder, ()> {
        VictimOrder::NAMES.iter().find(|(_, name)| *name == text).map(|&(order, _)| order).ok_or(())
    }
}
