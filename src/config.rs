//! The typed configuration and the one parser of `STRATALLOC_CONF`.
//!
//! The text is `key:value,key:value`; spaces around either are ignored. The keys are listed in [`KEYS`].

mod tiers;

use std::fmt;
use std::str::FromStr;

use crate::error::ConfigError;
use crate::units::{ByteSize, PAGE};
pub use tiers::{TierAdmission, TierList, TierSpec, VictimOrder};

/// The environment variable that [`Config::from_env`] reads.
pub const ENV: &str = "STRATALLOC_CONF";

/// A bound on the memory that a device's pool may hold.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Limit {
    /// So many bytes.
    Bytes(ByteSize),
    /// This part of the device's memory, above 0 and at most 1.
    Fraction(f64),
}

impl Limit {
    /// The bound in bytes on a device with so much memory.
    pub fn bytes(self, capacity: u64) -> u64 {
        match self {
            Limit::Bytes(size) => size.0.min(capacity),
            Limit::Fraction(part) => (capacity as f64 * part) as u64,
        }
    }
}

/// So many bytes.
impl From<u64> for Limit {
    fn from(bytes: u64) -> Limit {
        Limit::Bytes(ByteSize(bytes))
    }
}

impl FromStr for Limit {
    type Err = ();

    fn from_str(text: &str) -> Result<Limit, ()> {
        match text.parse::<f64>() {
            Ok(part) if text.contains('.') || part <= 1.0 => {
                if part > 0.0 && part <= 1.0 {
                    Ok(Limit::Fraction(part))
                } else {
                    Err(())
                }
            }
            _ => match text.parse::<ByteSize>() {
                Ok(size) if size.0 > 0 => Ok(Limit::Bytes(size)),
                _ => Err(()),
            },
        }
    }
}

/// When a stream may be made to wait for others on the device (`cuStreamWaitEvent`), so that it may use memory freed on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StreamWait {
    /// Never.
    Never,
    /// Where there is no more memory to take, rather than wait on the host; and before more is taken where 1/64 of what is held, and as much as
    /// is asked for, lies idle on other streams.
    #[default]
    Scarce,
    /// Rather than take more memory. Streams that take turns then run one after the other where they could run side by side.
    Always,
}

impl StreamWait {
    const NAMES: [(StreamWait, &str); 3] =
        [(StreamWait::Never, "false"), (StreamWait::Scarce, "scarce"), (StreamWait::Always, "true")];
}

impl fmt::Display for StreamWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(StreamWait::NAMES.iter().find(|(wait, _)| wait == self).map_or("scarce", |(_, name)| name))
    }
}

impl FromStr for StreamWait {
    type Err = ();

    fn from_str(text: &str) -> Result<StreamWait, ()> {
        StreamWait::NAMES.iter().find(|(_, name)| *name == text).map(|&(wait, _)| wait).ok_or(())
    }
}

/// Whether steps that repeat are learned, and large blocks placed by plans for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Plan {
    /// No.
    #[default]
    Off,
    /// Yes. What has to be worked out is, now and then, on a thread that ends with it. Requests above 512 KiB then take the device's lock.
    On,
    /// Yes, and what has to be worked out is by the request that comes upon it: it takes as long as it takes, and equal programs get equal
    /// addresses. For tests and replays.
    Inline,
}

impl Plan {
    const ALL: [(&str, Plan); 3] = [("off", Plan::Off), ("on", Plan::On), ("inline", Plan::Inline)];

    fn name(self) -> &'static str {
        Plan::ALL.iter().find(|(_, plan)| *plan == self).map_or("off", |(name, _)| name)
    }

    fn from_name(text: &str) -> Option<Plan> {
        Plan::ALL.iter().find(|(name, _)| *name == text).map(|&(_, plan)| plan)
    }
}

/// What is done with the contents of freed blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Poison {
    /// Nothing.
    #[default]
    Off,
    /// They are filled with the bytes `ef be ad de`, so that whoever reads them sees it.
    Fill,
    /// And compared when they are used again: a write after the free is reported.
    Check,
}

impl Poison {
    const NAMES: [(Poison, &str); 3] = [(Poison::Off, "off"), (Poison::Fill, "fill"), (Poison::Check, "check")];
}

impl fmt::Display for Poison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Poison::NAMES.iter().find(|(poison, _)| poison == self).map_or("off", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Poison {
    type Err = ();

    fn from_str(text: &str) -> Result<Poison, ()> {
        Poison::NAMES.iter().find(|(_, name)| *name == text).map(|&(poison, _)| poison).ok_or(())
    }
}

/// How an allocator behaves. [`Config::default`] suits most programs.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The most physical memory to hold on each device. Default: all of it.
    pub limit: Option<Limit>,
    /// Bytes of the smallest physical chunks: a power of two, 2 MiB to 1 GiB.
    pub chunk: ByteSize,
    /// Bytes of the largest physical chunks where the limit is 256 GiB or more, in proportion less, to a quarter, where it is lower: a power of two, up to
    /// 1 GiB. Below [`Config::chunk`], all are of that size. A program that gives memory back takes it again in larger ones.
    pub chunk_max: ByteSize,
    /// Whether all chunks are as small as they can be: less memory is lost between blocks, for more driver calls when memory is taken.
    pub thrifty: bool,
    /// Bytes that one thread may keep in its magazines on a device, as a part of the device's memory, 0 to 1. 0 turns magazines off.
    pub magazine: f64,
    /// The part of the limit above which all that is free is gathered before new chunks are taken, from magazines and from other streams that are
    /// done with it: above 0 to 1. PyTorch calls it `garbage_collection_threshold`. Default 1: only when there is no more to take.
    pub gc_threshold: f64,
    /// Whether a stream may be made to wait for another one (`cuStreamWaitEvent`) to use its memory, rather than
    /// take more from the device.
    pub cross_stream_wait: StreamWait,
    /// Address space to reserve a device, in multiples of its memory, 1 to 64. Ignored without virtual memory management.
    pub address_space: u32,
    /// Whether steps that repeat are learned, and large blocks placed by plans for them. See [`Plan`].
    pub plan: Plan,
    /// Events that the trace ring keeps. 0: no tracing.
    pub trace: usize,
    /// Whether libraries that are loaded into somebody's program (the C library, the preload shim) fail where [`ENV`] cannot be
    /// understood, rather than go on with the defaults and say so. See [`Config::from_env_or_default`].
    pub strict: bool,
    /// What is done with the contents of freed blocks. A debug aid: every call then takes the lock.
    pub poison: Poison,
    /// Bytes behind every block that nobody should write: they are compared when the block is freed, and by
    /// [`Allocator::check_memory`](crate::Allocator::check_memory). 0: none. A debug aid: every call then takes the lock.
    pub redzone: ByteSize,
    /// Bytes of freed blocks that are held back before they are used again, the oldest going first. 0: none. A debug aid: every
    /// call then takes the lock.
    pub quarantine: ByteSize,
    /// Whether blocks that are in use when the allocator or the process ends are reported.
    pub leaks: bool,
    /// Where evictable memory goes that leaves its device, the fastest first: so much for each device.
    pub tiers: TierList,
    /// Which evictable memory goes first.
    pub tier_policy: VictimOrder,
    /// What may push others out of a tier that is full.
    pub tier_admission: TierAdmission,
    /// Threads for each device that get transfers on, if there are tiers. 0: whoever waits does, and nothing depends on time.
    pub tier_workers: usize,
    /// Whether files of `nvme` tiers are encrypted, with a key that never leaves the process.
    pub tier_encrypt: bool,
}

/// Half of the processors, one to eight: one sums up 15 to 20 GB a second, which is a third of what PCIe 5.0 moves; benches/gpu/README.md.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| (processors.get() / 2).clamp(1, 8))
}

impl Default for Config {
    fn default() -> Config {
        Config {
            limit: None,
            chunk: ByteSize(PAGE),
            chunk_max: ByteSize::mib(64),
            thrifty: false,
            magazine: 0.25,
            gc_threshold: 1.0,
            cross_stream_wait: StreamWait::Scarce,
            address_space: 8,
            plan: Plan::Off,
            trace: 0,
            strict: false,
            poison: Poison::Off,
            redzone: ByteSize(0),
            quarantine: ByteSize(0),
            leaks: false,
            tiers: TierList::default(),
            tier_policy: VictimOrder::default(),
            tier_admission: TierAdmission::default(),
            tier_workers: default_workers(),
            tier_encrypt: false,
        }
    }
}

struct Key {
    name: &'static str,
    allowed: &'static str,
    set: fn(&mut Config, &str) -> bool,
}

fn put<T>(slot: &mut T, value: Option<T>) -> bool {
    match value {
        Some(value) => {
            *slot = value;
            true
        }
        None => false,
    }
}

fn part(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|part| (0.0..=1.0).contains(part))
}

const TABLE: [Key; 20] = [
    Key {
        name: "limit",
        allowed: "a size such as 70GiB, or a part of the device's memory above 0 and at most 1.0, such as 0.9",
        set: |config, text| put(&mut config.limit, text.parse().ok().map(Some)),
    },
    Key {
        name: "chunk",
        allowed: "a power of two from 2MiB to 1GiB",
        set: |config, text| {
            let size = text.parse::<ByteSize>().ok();
            put(&mut config.chunk, size.filter(|size| size.0.is_power_of_two() && (PAGE..=1 << 30).contains(&size.0)))
        },
    },
    Key {
        name: "chunk_max",
        allowed: "a power of two from 2MiB to 1GiB",
        set: |config, text| {
            let size = text.parse::<ByteSize>().ok();
            let fits = |size: &ByteSize| size.0.is_power_of_two() && (PAGE..=1 << 30).contains(&size.0);
            put(&mut config.chunk_max, size.filter(fits))
        },
    },
    Key { name: "thrifty", allowed: "true or false", set: |config, text| put(&mut config.thrifty, text.parse().ok()) },
    Key {
        name: "magazine",
        allowed: "a part of the device's memory from 0 (off) to 1",
        set: |config, text| put(&mut config.magazine, part(text)),
    },
    Key {
        name: "gc_threshold",
        allowed: "a part of the limit above 0 and at most 1",
        set: |config, text| put(&mut config.gc_threshold, part(text).filter(|&part| part > 0.0)),
    },
    Key {
        name: "cross_stream_wait",
        allowed: "true, false or scarce",
        set: |config, text| put(&mut config.cross_stream_wait, text.parse().ok()),
    },
    Key {
        name: "address_space",
        allowed: "a whole number from 1 to 64",
        set: |config, text| put(&mut config.address_space, text.parse().ok().filter(|n| (1..=64).contains(n))),
    },
    Key {
        name: "plan",
        allowed: "off, on or inline",
        set: |config, text| put(&mut config.plan, Plan::from_name(text)),
    },
    Key {
        name: "trace",
        allowed: "a number of events from 0 (off) to 100000000",
        set: |config, text| put(&mut config.trace, text.parse().ok().filter(|&n| n <= 100_000_000)),
    },
    Key { name: "strict", allowed: "true or false", set: |config, text| put(&mut config.strict, text.parse().ok()) },
    Key {
        name: "poison",
        allowed: "off, fill (freed blocks are filled with a pattern) or check (and compared when used again)",
        set: |config, text| put(&mut config.poison, text.parse().ok()),
    },
    Key {
        name: "redzone",
        allowed: "a size from 0 (off) to 1GiB",
        set: |config, text| {
            let size = text.parse::<ByteSize>().ok();
            put(&mut config.redzone, size.filter(|size| size.0 <= 1 << 30))
        },
    },
    Key {
        name: "quarantine",
        allowed: "a size, 0 for off",
        set: |config, text| put(&mut config.quarantine, text.parse().ok()),
    },
    Key { name: "leaks", allowed: "true or false", set: |config, text| put(&mut config.leaks, text.parse().ok()) },
    Key {
        name: "tiers",
        allowed: "off, or tiers with + between them: host=SIZE, nvme=/FOLDER=SIZE, peer=DEVICE=SIZE; several nvme are striped",
        set: |config, text| put(&mut config.tiers, text.parse().ok()),
    },
    Key {
        name: "tier_policy",
        allowed: "lru, s3fifo, arc or cost",
        set: |config, text| put(&mut config.tier_policy, text.parse().ok()),
    },
    Key {
        name: "tier_admission",
        allowed: "all or again",
        set: |config, text| put(&mut config.tier_admission, text.parse().ok()),
    },
    Key {
        name: "tier_workers",
        allowed: "a number of threads from 0 to 64",
        set: |config, text| put(&mut config.tier_workers, text.parse().ok().filter(|&n| n <= 64)),
    },
    Key {
        name: "tier_encrypt",
        allowed: "true or false",
        set: |config, text| put(&mut config.tier_encrypt, text.parse().ok()),
    },
];

/// Every key, with what is allowed.
pub const KEYS: [(&str, &str); TABLE.len()] = {
    let mut keys = [("", ""); TABLE.len()];
    let mut index = 0;
    while index < keys.len() {
        keys[index] = (TABLE[index].name, TABLE[index].allowed);
        index += 1;
    }
    keys
};

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // With the unit: a bare 1 would read back as all of the device.
            Limit::Bytes(size) => write!(f, "{}B", size.0),
            Limit::Fraction(part) => write!(f, "{part:?}"),
        }
    }
}

/// Every setting, as [`Config::parse`] reads it.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(limit) = self.limit {
            write!(f, "limit:{limit},")?;
        }
        let Config {
            limit: _,
            chunk,
            chunk_max,
            thrifty,
            magazine,
            gc_threshold,
            cross_stream_wait,
            address_space,
            plan,
            trace,
            strict,
            poison,
            redzone,
            quarantine,
            leaks,
            tiers,
            tier_policy,
            tier_admission,
            tier_workers,
            tier_encrypt,
        } = self;
        write!(f, "chunk:{},chunk_max:{},thrifty:{thrifty},", chunk.0, chunk_max.0)?;
        write!(f, "magazine:{magazine},gc_threshold:{gc_threshold},cross_stream_wait:{cross_stream_wait},")?;
        write!(f, "address_space:{address_space},plan:{},trace:{trace},strict:{strict},", plan.name())?;
        write!(f, "poison:{poison},redzone:{},quarantine:{},leaks:{leaks},", redzone.0, quarantine.0)?;
        write!(f, "tiers:{tiers},tier_policy:{tier_policy},tier_workers:{tier_workers},")?;
        write!(f, "tier_admission:{tier_admission},tier_encrypt:{tier_encrypt}")
    }
}

impl Config {
    /// Whether debug aids fill or compare blocks on the device, in the order of their home streams.
    pub fn works_on_blocks(&self) -> bool {
        self.poison != Poison::Off || self.redzone.0 > 0
    }

    /// Reads `key:value,key:value`. Empty text is the default.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        let brief = |text: &str| text.chars().take(80).collect::<String>();
        for setting in text.split(',').map(str::trim).filter(|setting| !setting.is_empty()) {
            let (name, value) = setting.split_once(':').ok_or_else(|| ConfigError::Syntax { text: brief(setting) })?;
            let (name, value) = (name.trim(), value.trim());
            let key = TABLE.iter().find(|key| key.name == name).ok_or_else(|| ConfigError::UnknownKey {
                key: brief(name),
                known: KEYS.map(|(name, _)| name).join(", "),
            })?;
            if !(key.set)(&mut config, value) {
                let (key, allowed) = (key.name.to_string(), key.allowed.to_string());
                return Err(ConfigError::InvalidValue { key, value: brief(value), allowed });
            }
        }
        Ok(config)
    }

    /// Reads `text` as a library does that is loaded into somebody's program: where it cannot be understood, the defaults, and what is
    /// wrong, for the caller to say; an error only if `strict:true` is among the settings.
    pub fn parse_or_default(text: &str) -> Result<(Config, Option<ConfigError>), ConfigError> {
        let is_strict =
            |setting: &str| setting.split_once(':').is_some_and(|(k, v)| k.trim() == "strict" && v.trim() == "true");
        match Config::parse(text) {
            Ok(config) => Ok((config, None)),
            Err(error) if text.split(',').any(is_strict) => Err(error),
            Err(error) => Ok((Config::default(), Some(error))),
        }
    }

    /// Reads [`ENV`]. The default when it is not set.
    pub fn from_env() -> Result<Config, ConfigError> {
        Config::parse(&text_of_env()?)
    }

    /// Reads [`ENV`] as [`Config::parse_or_default`] does.
    pub fn from_env_or_default() -> Result<(Config, Option<ConfigError>), ConfigError> {
        match text_of_env() {
            Ok(text) => Config::parse_or_default(&text),
            Err(error) => Ok((Config::default(), Some(error))),
        }
    }
}

/// Empty when it is not set.
fn text_of_env() -> Result<String, ConfigError> {
    match std::env::var(ENV) {
        Ok(text) => Ok(text),
        Err(std::env::VarError::NotPresent) => Ok(String::new()),
        Err(std::env::VarError::NotUnicode(text)) => Err(ConfigError::Syntax { text: text.to_string_lossy().into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_key() {
        let text = "limit:0.5, chunk:32MiB,magazine: 0.1,gc_threshold:0.8,cross_stream_wait:true,address_space:4,plan:inline,\
             trace:100,strict:true,poison:check,redzone:512,quarantine:1MiB,leaks:true,\
             tiers:host=1GiB+nvme=/a=b=2GiB+peer=1=3GiB,tier_policy:arc,tier_workers:0,tier_admission:again,tier_encrypt:true";
        let config = Config::parse(text).unwrap();
        assert_eq!(
            (config.poison, config.redzone, config.quarantine),
            (Poison::Check, ByteSize(512), ByteSize::mib(1))
        );
        assert!(config.leaks && config.tier_encrypt && config.tier_admission == TierAdmission::Again);
        assert_eq!((config.tiers.specs.len(), config.tier_policy, config.tier_workers), (3, VictimOrder::Arc, 0));
        assert_eq!(config.limit, Some(Limit::Fraction(0.5)));
        assert_eq!(config.chunk, ByteSize::mib(32));
        assert_eq!((config.magazine, config.gc_threshold, config.cross_stream_wait), (0.1, 0.8, StreamWait::Always));
        assert_eq!((config.address_space, config.plan), (4, Plan::Inline));
        assert_eq!((config.trace, config.strict), (100, true));
        assert_eq!(Config::parse(&config.to_string()).unwrap(), config);
        assert_eq!(Config::parse("limit:70GiB").unwrap().limit, Some(Limit::Bytes(ByteSize::gib(70))));
        let one_byte = Config::parse("limit:1B").unwrap();
        assert_eq!(Config::parse(&one_byte.to_string()).unwrap(), one_byte);
        assert_eq!(Config::parse("limit:1").unwrap().limit, Some(Limit::Fraction(1.0)));
        assert_eq!(Config::parse(" ").unwrap(), Config::default());
    }

    #[test]
    fn refusals_name_the_key_the_value_and_what_is_allowed() {
        for (text, parts) in [
            ("limt:0.5", ["limt", "unknown key", "gc_threshold"]),
            ("limit:1.5", ["limit", "'1.5'", "at most 1.0"]),
            ("limit:0", ["limit", "'0'", "above 0"]),
            ("limit:", ["limit", "''", "a size"]),
            ("chunk:3MiB", ["chunk", "'3MiB'", "power of two"]),
            ("chunk:1MiB", ["chunk", "'1MiB'", "2MiB to 1GiB"]),
            ("magazine:nan", ["magazine", "'nan'", "0 (off) to 1"]),
            ("gc_threshold:0", ["gc_threshold", "'0'", "above 0"]),
            ("cross_stream_wait:yes", ["cross_stream_wait", "'yes'", "true, false or scarce"]),
            ("address_space:0", ["address_space", "'0'", "1 to 64"]),
            ("plan:true", ["plan", "'true'", "off, on or inline"]),
            ("trace:-1", ["trace", "'-1'", "0 (off)"]),
            ("strict:1", ["strict", "'1'", "true or false"]),
            ("poison:true", ["poison", "'true'", "off, fill"]),
            ("redzone:2GiB", ["redzone", "'2GiB'", "1GiB"]),
            ("quarantine:-1", ["quarantine", "'-1'", "0 for off"]),
            ("leaks:2", ["leaks", "'2'", "true or false"]),
            ("tiers:host", ["tiers", "'host'", "host=SIZE"]),
            ("tiers:host=0", ["tiers", "'host=0'", "host=SIZE"]),
            ("tiers:nvme=a=1GiB", ["tiers", "'nvme=a=1GiB'", "nvme=/FOLDER=SIZE"]),
            ("tiers:host=1GiB+host=1GiB", ["tiers", "host=1GiB+host", "+ between"]),
            ("tier_policy:mru", ["tier_policy", "'mru'", "lru"]),
            ("tier_admission:some", ["tier_admission", "'some'", "again"]),
            ("tier_workers:65", ["tier_workers", "'65'", "0 to 64"]),
            ("limit=0.5", ["limit=0.5", "key:value", "commas"]),
        ] {
            let message = Config::parse(text).unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{text}: {message}");
        }
    }
    #[test]
    fn what_is_wrong_gives_the_defaults_unless_it_is_strict() {
        assert_eq!(Config::parse_or_default("trace:5").unwrap(), (Config { trace: 5, ..Config::default() }, None));
        let (config, wrong) = Config::parse_or_default("trace:5,limt:0.5").unwrap();
        assert_eq!(config, Config::default());
        assert!(wrong.unwrap().to_string().contains("limt"));
        for text in ["limt:0.5, strict : true", "strict:true,trace"] {
            assert!(Config::parse_or_default(text).is_err(), "{text}");
        }
        assert!(Config::parse_or_default("strict:false,trace").unwrap().1.is_some());
    }
}
