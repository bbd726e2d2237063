//! How fast the device's kernels go through memory.

use std::str::FromStr;

/// Bytes a second. Read from text such as `2TB/s`, with decimal units as vendors state it, or binary ones such as `1.8TiB/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth(u64);

impl Bandwidth {
    /// How long a kernel over so many bytes takes, in nanoseconds, rounded up.
    pub fn ns(self, bytes: u64) -> u64 {
        u64::try_from((u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.0))).unwrap_or(u64::MAX)
    }
}

impl FromStr for Bandwidth {
    type Err = String;

    fn from_str(text: &str) -> Result<Bandwidth, String> {
        let fail = || format!("'{text}' is not a bandwidth: write a number with MB/s, GB/s or TB/s, such as 2TB/s");
        let rate = text.trim().strip_suffix("/s").ok_or_else(fail)?.trim();
        let digits = rate.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(fail)?;
        let (number, unit) = rate.split_at(digits);
        let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            _ => return Err(fail()),
        };
        let rate = number.parse::<f64>().map_err(|_| fail())? * unit as f64;
        // From a byte a microsecond to a thousand times what devices have.
        if (1e6..=1e16).contains(&rate) { Ok(Bandwidth(rate as u64)) } else { Err(fail()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_take_as_long_as_their_bytes() {
        let fast: Bandwidth = "2TB/s".parse().unwrap();
        assert_eq!([0, 1, 2_000, 2_001, 2 << 20, 80 << 30].map(|bytes| fast.ns(bytes)), [0, 1, 1, 2, 1049, 42_949_673]);
        assert_eq!("1.5 GiB/s".parse::<Bandwidth>().unwrap().ns(3 << 29), 1_000_000_000);
        assert_eq!("1MB/s".parse::<Bandwidth>().unwrap().ns(u64::MAX), u64::MAX);
    }

    #[test]
    fn what_is_no_bandwidth_is_refused() {
        for text in ["", "2TB", "2", "/s", "TB/s", "0TB/s", "-1GB/s", "1..2GB/s", "2 parsec/s", "1kB/s", "99999TB/s"] {
            let error = text.parse::<Bandwidth>().unwrap_err();
            assert!(error.contains("2TB/s"), "{error}");
        }
    }
}
