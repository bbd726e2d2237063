//! Which device a command works on.

use std::fmt;
use std::str::FromStr;

/// A kind of device, as options name it: `software`, `cuda`, `cuda:1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Target {
    /// The software device.
    #[default]
    Software,
    /// The CUDA device with this ordinal.
    Cuda(u32),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let ordinal = match text.split_once(':') {
            None if text == "software" => return Ok(Target::Software),
            None if text == "cuda" => Ok(0),
            Some(("cuda", ordinal)) => ordinal.parse(),
            _ => "".parse(),
        };
        ordinal.map(Target::Cuda).map_err(|_| format!("'{text}' is no device: write software, cuda, or cuda:1"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Software => f.write_str("software"),
            Target::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        for (text, target) in [("software", Target::Software), ("cuda:0", Target::Cuda(0)), ("cuda:7", Target::Cuda(7))]
        {
            assert_eq!(text.parse(), Ok(target));
            assert_eq!(target.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Target::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "software:0", "cuda:1:2", "CUDA"] {
            assert!(text.parse::<Target>().unwrap_err().contains("cuda:1"), "{text}");
        }
    }
}
