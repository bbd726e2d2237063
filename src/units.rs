//! The units of the whole library, as types: [`ByteSize`] for people, [`DevicePtr`] and [`StreamId`] for drivers.
//!
//! Sizes inside the library are plain `u64` bytes, named `size`, `..._bytes` or `offset`.

use std::fmt;
use std::str::FromStr;

/// Every size handed out is a multiple of this: 512 bytes, as CUDA's own allocator aligns at least to 256 and
/// PyTorch's to 512.
pub const GRANULE: u64 = 512;

/// The unit in which physical memory is mapped, 2 MiB: the granularity of device memory on every CUDA device so far.
/// Chunks are multiples of it and slabs are exactly this long.
pub const PAGE: u64 = 2 << 20;

/// `size` rounded up to a multiple of `unit`, a power of two. `None` on overflow.
#[inline]
pub const fn align_up(size: u64, unit: u64) -> Option<u64> {
    debug_assert!(unit.is_power_of_two());
    match size.checked_add(unit - 1) {
        Some(sum) => Some(sum & !(unit - 1)),
        None => None,
    }
}

/// `size` rounded down to a multiple of `unit`, a power of two.
#[inline]
pub const fn align_down(size: u64, unit: u64) -> u64 {
    debug_assert!(unit.is_power_of_two());
    size & !(unit - 1)
}

/// An address in a device's address space (`CUdeviceptr`). Never dereferenced by this library.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// The null address.
    pub const NULL: DevicePtr = DevicePtr(0);

    /// The address `bytes` further on.
    #[inline]
    pub const fn add(self, bytes: u64) -> DevicePtr {
        DevicePtr(self.0 + bytes)
    }

    /// Whether this is the null address.
    #[inline]
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for DevicePtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for DevicePtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A stream, by its driver handle (`CUstream` as a number). 0 is the default stream. Synchronise a stream before destroying it: the driver may
/// use the handle again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StreamId(pub u64);

impl StreamId {
    /// The default ("legacy") stream.
    pub const DEFAULT: StreamId = StreamId(0);
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {:#x}", self.0)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {:#x}", self.0)
    }
}

/// A private pool of memory, by a number that its user chooses, in two parts as PyTorch has it (`MempoolId_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PoolId(pub u64, pub u64);

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.0, self.1)
    }
}

/// A number of bytes that reads and prints with binary units: `"1.5GiB".parse()`, `"80 GiB"`, `"4096"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many KiB.
    pub const fn kib(n: u64) -> ByteSize {
        ByteSize(n << 10)
    }
    /// So many MiB.
    pub const fn mib(n: u64) -> ByteSize {
        ByteSize(n << 20)
    }
    /// So many GiB.
    pub const fn gib(n: u64) -> ByteSize {
        ByteSize(n << 30)
    }
    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        for (unit, shift) in UNITS {
            if self.0 >= 1 << shift {
                if self.0.trailing_zeros() >= shift {
                    return write!(f, "{} {unit}", self.0 >> shift);
                }
                return write!(f, "{:.2} {unit}", self.0 as f64 / (1u64 << shift) as f64);
            }
        }
        write!(f, "{} B", self.0)
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a size: write a number of bytes, or a number with B, KiB, MiB, GiB or TiB, such as 80GiB")]
pub struct ParseByteSizeError {
    /// What was given.
    pub text: String,
}

impl FromStr for ByteSize {
    type Err = ParseByteSizeError;

    fn from_str(text: &str) -> Result<ByteSize, ParseByteSizeError> {
        let fail = || ParseByteSizeError { text: text.chars().take(64).collect() };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(fail()),
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(1 << shift).map(ByteSize).ok_or_else(fail);
        }
        if number.matches('.').count() != 1 || number.len() < 2 || shift == 0 {
            return Err(fail());
        }
        let value = number.parse::<f64>().map_err(|_| fail())? * (1u64 << shift) as f64;
        if value < u64::MAX as f64 { Ok(ByteSize(value.round() as u64)) } else { Err(fail()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1KiB", 1 << 10),
            ("1.5 GiB", 3 << 29),
            ("80GiB", 80 << 30),
            ("2 mb", 2 << 20),
            ("512 B", 512),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap(), ByteSize(bytes), "{text}");
        }
        for text in
            ["", "GiB", "-1", "1.5", "1..5GiB", ".GiB", "1e9", "99999999TiB", "1 parsec", "18446744073709551616"]
        {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert_eq!(ByteSize::gib(80).to_string(), "80 GiB");
        assert_eq!(ByteSize(3 << 29).to_string(), "1.50 GiB");
        assert_eq!(ByteSize(17).to_string(), "17 B");
    }

    #[test]
    fn rounding() {
        assert_eq!(align_up(1, 512), Some(512));
        assert_eq!(align_up(512, 512), Some(512));
        assert_eq!(align_up(u64::MAX, 512), None);
        assert_eq!(align_down(1023, 512), 512);
    }
}
