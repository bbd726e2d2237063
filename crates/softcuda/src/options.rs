//! Options, all from the environment, all parsed here. README.md has the list.

use std::fmt;
use std::path::PathBuf;

use stratalloc::driver::fault::When;
use stratalloc::driver::soft::{Backing, LatencyModel};
use stratalloc::units::ByteSize;

use crate::abi::codes::Code;

/// A fault that was ordered: calls of one function that fail.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fault {
    pub(crate) function: String,
    pub(crate) when: When,
    pub(crate) code: Code,
}

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Options {
    pub(crate) devices: usize,
    pub(crate) memory: u64,
    pub(crate) seed: u64,
    pub(crate) checker: bool,
    pub(crate) latency: LatencyModel,
    pub(crate) tails: bool,
    pub(crate) event_lag_us: u64,
    /// Whether virtual time moves with the host's clock.
    pub(crate) host_clock: bool,
    pub(crate) faults: Vec<Fault>,
    pub(crate) max_mappings: Option<u64>,
    pub(crate) fill: bool,
    pub(crate) report: Option<PathBuf>,
    pub(crate) vmm: bool,
    pub(crate) partial_mapping: bool,
    pub(crate) backing: Backing,
    pub(crate) driver_version: i32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            devices: 1,
            memory: 80 << 30,
            seed: 0,
            checker: false,
            latency: LatencyModel::Off,
            tails: false,
            event_lag_us: 0,
            host_clock: true,
            faults: Vec::new(),
            max_mappings: None,
            fill: true,
            report: None,
            vmm: true,
            partial_mapping: false,
            backing: Backing::Memfd,
            driver_version: 13000,
        }
    }
}

/// A variable that cannot be understood.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Malformed {
    name: &'static str,
    value: String,
    wanted: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={} is not understood: give {}", self.name, self.value, self.wanted)
    }
}

impl Options {
    /// Reads the environment.
    pub(crate) fn from_environment() -> Result<Options, Malformed> {
        Options::parse(&|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// Reads the variables that `get` knows. An empty one counts as absent.
    pub(crate) fn parse(get: &dyn Fn(&'static str) -> Option<String>) -> Result<Options, Malformed> {
        let mut options = Options::default();
        let read = Reader { get };
        read.value("SOFTCUDA_DEVICES", "a number from 0 to 16", &mut options.devices, |text| {
            text.parse().ok().filter(|&n| n <= 16)
        })?;
        read.value("SOFTCUDA_MEMORY", "a size from 2MiB to 1024TiB, such as 80GiB", &mut options.memory, |text| {
            text.parse::<ByteSize>().ok().map(|size| size.0).filter(|size| (2 << 20..=1 << 50).contains(size))
        })?;
        read.value("SOFTCUDA_SEED", "a number", &mut options.seed, |text| text.parse().ok())?;
        read.value("SOFTCUDA_CHECKER", SWITCH, &mut options.checker, switch)?;
        read.value("SOFTCUDA_LATENCY", "off, a100, h100 or study-a", &mut options.latency, |text| match text {
            "off" => Some(LatencyModel::Off),
            "a100" => Some(LatencyModel::A100),
            "h100" => Some(LatencyModel::H100),
            "study-a" => Some(LatencyModel::StudyA),
            _ => None,
        })?;
        read.value("SOFTCUDA_TAILS", SWITCH, &mut options.tails, switch)?;
        read.value("SOFTCUDA_EVENT_LAG_US", "a number of microseconds", &mut options.event_lag_us, |text| {
            text.parse().ok().filter(|&us: &u64| us <= 1 << 40)
        })?;
        read.value("SOFTCUDA_CLOCK", "host or virtual", &mut options.host_clock, |text| match text {
            "host" => Some(true),
            "virtual" => Some(false),
            _ => None,
        })?;
        let faults = "function:when:error, such as cuMemCreate:3:oom or cuMemAlloc_v2:10+:oom or cuMemMap:1%:invalid";
        read.value("SOFTCUDA_FAULTS", faults, &mut options.faults, |text| text.split(',').map(fault).collect())?;
        read.value("SOFTCUDA_MAX_MAPPINGS", "a number", &mut options.max_mappings, |text| text.parse().ok().map(Some))?;
        read.value("SOFTCUDA_MEMSET", "run or skip", &mut options.fill, |text| match text {
            "run" => Some(true),
            "skip" => Some(false),
            _ => None,
        })?;
        read.value("SOFTCUDA_REPORT", "a path, or -", &mut options.report, |text| Some(Some(PathBuf::from(text))))?;
        read.value("SOFTCUDA_VMM", SWITCH, &mut options.vmm, switch)?;
        read.value("SOFTCUDA_PARTIAL_MAPPING", SWITCH, &mut options.partial_mapping, switch)?;
        read.value("SOFTCUDA_BACKING", "memory or none", &mut options.backing, |text| match text {
            "memory" => Some(Backing::Memfd),
            "none" => Some(Backing::AddressesOnly),
            _ => None,
        })?;
        let version = "a version as CUDA counts, such as 13000";
        read.value("SOFTCUDA_DRIVER_VERSION", version, &mut options.driver_version, |text| {
            text.parse().ok().filter(|version| (10_000..100_000).contains(version))
        })?;
        Ok(options)
    }
}

const SWITCH: &str = "1 or 0";

fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "true" | "on" => Some(true),
        "0" | "false" | "off" => Some(false),
        _ => None,
    }
}

fn fault(text: &str) -> Option<Fault> {
    let parts: Vec<&str> = text.trim().split(':').collect();
    let [function, when, code] = parts[..] else { return None };
    let crate::export::Found::Function(entry) = crate::export::find(function, u32::MAX, false) else { return None };
    let function = entry.name.to_string();
    let when = if let Some(percent) = when.strip_suffix('%') {
        let percent: f64 = percent.parse().ok().filter(|p| (0.0..=100.0).contains(p))?;
        When::Random { probability: percent / 100.0, seed: 1 }
    } else if let Some(first) = when.strip_suffix('+') {
        When::From(first.parse().ok().filter(|&n| n > 0)?)
    } else {
        When::Nth(when.parse().ok().filter(|&n| n > 0)?)
    };
    let code = match code {
        "oom" => Code::OUT_OF_MEMORY,
        "invalid" => Code::INVALID_VALUE,
        "handle" => Code::INVALID_HANDLE,
        "unsupported" => Code::NOT_SUPPORTED,
        "sticky" => Code::ILLEGAL_ADDRESS,
        "unknown" => Code::UNKNOWN,
        number => Code(number.parse().ok().filter(|&code| code > 0)?),
    };
    Some(Fault { function, when, code })
}

struct Reader<'a> {
    get: &'a dyn Fn(&'static str) -> Option<String>,
}

impl Reader<'_> {
    fn value<T>(
        &self,
        name: &'static str,
        wanted: &'static str,
        into: &mut T,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<(), Malformed> {
        let Some(value) = (self.get)(name).filter(|value| !value.is_empty()) else { return Ok(()) };
        match parse(value.trim()) {
            Some(parsed) => {
                *into = parsed;
                Ok(())
            }
            None => Err(Malformed { name, value, wanted }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&'static str, &str)]) -> Result<Options, Malformed> {
        Options::parse(&|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn nothing_set_is_the_default() {
        assert_eq!(parse(&[]).unwrap(), Options::default());
        assert_eq!(parse(&[("SOFTCUDA_MEMORY", "")]).unwrap(), Options::default());
    }

    #[test]
    fn values_are_read() {
        let options = parse(&[
            ("SOFTCUDA_MEMORY", "1.5GiB"),
            ("SOFTCUDA_DEVICES", "4"),
            ("SOFTCUDA_FAULTS", "cuMemCreate:3:oom,cuMemAlloc:2+:719,cuMemMap:50%:invalid"),
            ("SOFTCUDA_MEMSET", "skip"),
            ("SOFTCUDA_CLOCK", "virtual"),
        ])
        .unwrap();
        assert_eq!((options.memory, options.devices, options.fill), (3 << 29, 4, false));
        assert!(!options.host_clock);
        assert_eq!(options.faults[0].when, When::Nth(3));
        assert_eq!(options.faults[1].function, "cuMemAlloc_v2");
        assert_eq!(options.faults[1].code, Code(719));
        assert_eq!(options.faults[2].when, When::Random { probability: 0.5, seed: 1 });
    }

    #[test]
    fn mistakes_are_named() {
        for (name, value) in [
            ("SOFTCUDA_MEMORY", "many"),
            ("SOFTCUDA_DEVICES", "-1"),
            ("SOFTCUDA_FAULTS", "cuMemCreat:3:oom"),
            ("SOFTCUDA_FAULTS", "cuMemCreate:0:oom"),
            ("SOFTCUDA_BACKING", "disk"),
            ("SOFTCUDA_CLOCK", "wall"),
            ("SOFTCUDA_CHECKER", "maybe"),
        ] {
            let message = parse(&[(name, value)]).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(value), "{message}");
        }
    }
}
