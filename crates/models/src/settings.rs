//! The settings that change how much memory is held, and the parser of torch's own text for them.

use std::str::FromStr;

/// All sizes are multiples of this, and no block is smaller.
pub(crate) const MIN_BLOCK: u64 = 512;

/// Requests above this are large: they have a pool of their own, and no rest up to this size is split off them.
pub(crate) const LARGE_ABOVE: u64 = 1 << 20;

/// Small requests share segments of this size; it is also a page of their expandable segments.
const SMALL_SEGMENT: u64 = 2 << 20;

/// Requests from this on have segments of their own size, rounded up to [`ROUND_LARGE`].
const OWN_SEGMENT_FROM: u64 = 10 << 20;
const ROUND_LARGE: u64 = 2 << 20;

/// No limit on splitting.
pub(crate) const UNLIMITED: u64 = u64::MAX;

/// Sizes from 1 MiB to 64 GiB in steps of a doubling have a number of divisions each.
const INTERVALS: usize = 16;

const MIB: u64 = 1 << 20;

/// What may be set of torch's allocator, as far as it decides how much memory is held. [`Settings::default`] is torch's default.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `expandable_segments`.
    pub expandable: bool,
    /// `max_split_size_mb`, in bytes: blocks from this on are never split. Default: no limit.
    pub max_split_size: u64,
    /// `max_non_split_rounding_mb`, in bytes: a request of at least `max_split_size` takes a block only if it is less than this larger.
    pub max_non_split_rounding: u64,
    /// `garbage_collection_threshold`: the part of what is allowed above which old segments are given back. Takes effect only with
    /// `memory_fraction`. 0: off.
    pub gc_threshold: f64,
    /// `per_process_memory_fraction`: the part of the device's memory that may be held.
    pub memory_fraction: Option<f64>,
    /// `large_segment_size_mb`, in bytes: the segment for requests from 1 to 10 MiB, and a page of large expandable segments.
    pub large_segment: u64,
    /// `roundup_power2_divisions`, by powers of two from 1 MiB: into how many sizes each doubling is divided. 0 and 1: not at all.
    pub power2_divisions: [u64; INTERVALS],
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            expandable: false,
            max_split_size: UNLIMITED,
            max_non_split_rounding: 20 * MIB,
            gc_threshold: 0.0,
            memory_fraction: None,
            large_segment: 20 * MIB,
            power2_divisions: [0; INTERVALS],
        }
    }
}

/// Why a text is not understood as torch's settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SettingsError {
    #[error("'{text}' is not of the form key:value; settings are separated by commas")]
    Syntax { text: String },
    #[error("unknown key '{key}': {known} are modelled")]
    UnknownKey { key: String, known: String },
    #[error("'{value}' is not a value of {key}: {allowed}")]
    InvalidValue { key: String, value: String, allowed: &'static str },
}

/// The keys that are modelled, with what is allowed.
const KEYS: [(&str, &str); 7] = [
    ("expandable_segments", "True or False"),
    ("max_split_size_mb", "a number of MiB from 20 on"),
    ("max_non_split_rounding_mb", "a number of MiB from 20 on"),
    ("garbage_collection_threshold", "a number between 0 and 1"),
    ("per_process_memory_fraction", "a number from 0 to 1"),
    ("large_segment_size_mb", "a number of MiB from 20 on"),
    ("roundup_power2_divisions", "0, a power of two, or a list such as [256:1,512:2,>:4] with sizes in MiB"),
];

/// These are torch's too, and change nothing of what is modelled.
const IRRELEVANT: [&str; 9] = [
    "release_lock_on_cudamalloc",
    "graph_capture_record_stream_reuse",
    "throw_on_cudamalloc_oom",
    "pinned_use_cuda_host_register",
    "pinned_num_register_threads",
    "pinned_use_background_threads",
    "pinned_reserve_segment_size_mb",
    "pinned_max_round_threshold_mb",
    "pinned_max_cached_size_mb",
];

impl FromStr for Settings {
    type Err = SettingsError;

    /// Reads what `PYTORCH_ALLOC_CONF` holds.
    fn from_str(text: &str) -> Result<Settings, SettingsError> {
        let mut settings = Settings::default();
        for setting in split_outside_brackets(text) {
            let setting = setting.trim();
            if setting.is_empty() {
                continue;
            }
            let (key, value) =
                setting.split_once(':').ok_or_else(|| SettingsError::Syntax { text: setting.to_owned() })?;
            let (key, value) = (key.trim(), value.trim());
            if IRRELEVANT.contains(&key) || (key, value) == ("backend", "native") {
                continue;
            }
            let Some((_, allowed)) = KEYS.iter().find(|(name, _)| *name == key) else {
                let known = KEYS.map(|(name, _)| name).join(", ");
                return Err(SettingsError::UnknownKey { key: key.to_owned(), known });
            };
            if settings.set(key, value).is_none() {
                return Err(SettingsError::InvalidValue { key: key.to_owned(), value: value.to_owned(), allowed });
            }
        }
        Ok(settings)
    }
}

/// At the commas that are in no list.
fn split_outside_brackets(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0i32);
    for (at, letter) in text.char_indices() {
        match letter {
            '[' => depth += 1,
            ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

impl Settings {
    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        let mib = |least: u64| {
            let size = value.parse::<u64>().ok().filter(|&mib| mib >= least)?;
            Some(size.saturating_mul(MIB))
        };
        let part = || value.parse::<f64>().ok().filter(|part| (0.0..=1.0).contains(part));
        match key {
            "expandable_segments" => {
                self.expandable = match value {
                    "True" => true,
                    "False" => false,
                    _ => return None,
                }
            }
            "max_split_size_mb" => self.max_split_size = mib(20)?,
            "max_non_split_rounding_mb" => self.max_non_split_rounding = mib(20)?,
            "garbage_collection_threshold" => self.gc_threshold = part().filter(|&part| part > 0.0 && part < 1.0)?,
            "per_process_memory_fraction" => self.memory_fraction = Some(part()?),
            "large_segment_size_mb" => self.large_segment = mib(20)?,
            "roundup_power2_divisions" => self.power2_divisions = divisions(value)?,
            _ => return None,
        }
        Some(())
    }

    /// What a request becomes.
    pub(crate) fn round(&self, bytes: u64) -> u64 {
        if bytes < MIN_BLOCK {
            return MIN_BLOCK;
        }
        let interval = (bytes.ilog2() as usize).saturating_sub(MIB.ilog2() as usize).min(INTERVALS - 1);
        let divisions = self.power2_divisions[interval];
        if divisions <= 1 || bytes <= MIN_BLOCK * divisions {
            return bytes.next_multiple_of(MIN_BLOCK);
        }
        let step = (1u64 << bytes.ilog2()) >> divisions.ilog2();
        bytes.next_multiple_of(step.max(1))
    }

    /// What is taken from the driver for a request that is rounded already.
    pub(crate) fn segment_for(&self, size: u64) -> u64 {
        if size <= LARGE_ABOVE {
            SMALL_SEGMENT
        } else if size < OWN_SEGMENT_FROM {
            self.large_segment
        } else {
            size.next_multiple_of(ROUND_LARGE)
        }
    }

    /// A page of an expandable segment.
    pub(crate) fn page(&self, small: bool) -> u64 {
        if small { SMALL_SEGMENT } else { self.large_segment }
    }
}

/// One number for all sizes, or a list of `size:number` in MiB: the first holds for smaller sizes too, and `>` for all above the last; what is
/// between two is left as it is, which is torch's reading.
fn divisions(value: &str) -> Option<[u64; INTERVALS]> {
    let power = |text: &str| text.trim().parse::<u64>().ok().filter(|n| n.is_power_of_two());
    let count_of = |text: &str| if text.trim() == "0" { Some(0) } else { power(text) };
    let Some(list) = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) else {
        return Some([count_of(value)?; INTERVALS]);
    };
    let mut all = [0; INTERVALS];
    let mut last = None;
    for entry in list.split(',') {
        let (size, count) = entry.split_once(':')?;
        let count = count_of(count)?;
        if size.trim() == ">" {
            all[last.unwrap_or(0) + 1..].fill(count);
            continue;
        }
        let index = (power(size)?.ilog2() as usize).min(INTERVALS - 1);
        if last.is_none() {
            all[..index].fill(count);
        }
        all[index] = count;
        last = Some(index);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `torch.cuda.memory._snapshot()["allocator_settings"]` has them.
    #[test]
    fn divisions_are_as_torch_reads_them() {
        for (text, expected) in [
            ("[4:2,64:16,>:4]", [2, 2, 2, 0, 0, 0, 16, 4, 4, 4, 4, 4, 4, 4, 4, 4]),
            ("[256:1,512:2,1024:4,>:8]", [1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 4, 8, 8, 8, 8, 8]),
            ("[64:8,16:4]", [8, 8, 8, 8, 4, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("[>:4]", [0, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]),
            ("4", [4; 16]),
            ("[4:0]", [0; 16]),
        ] {
            let settings: Settings = format!("roundup_power2_divisions:{text}").parse().unwrap();
            assert_eq!(settings.power2_divisions, expected, "{text}");
        }
    }

    #[test]
    fn every_key_is_read() {
        let text = "expandable_segments:True, max_split_size_mb:128,max_non_split_rounding_mb:40,garbage_collection_threshold:0.8,\
            per_process_memory_fraction:0.5,large_segment_size_mb:32,backend:native,pinned_use_background_threads:True";
        let settings: Settings = text.parse().unwrap();
        assert!(settings.expandable);
        assert_eq!((settings.max_split_size, settings.max_non_split_rounding), (128 * MIB, 40 * MIB));
        assert_eq!((settings.gc_threshold, settings.memory_fraction), (0.8, Some(0.5)));
        assert_eq!(settings.large_segment, 32 * MIB);
        assert_eq!("".parse(), Ok(Settings::default()));
    }

    #[test]
    fn refusals_name_key_and_value() {
        for (text, words) in [
            ("expandable_segments", "key:value"),
            ("expandable_segments:true", "True or False"),
            ("max_split_size_mb:19", "from 20 on"),
            ("garbage_collection_threshold:1.0", "between 0 and 1"),
            ("per_process_memory_fraction:nan", "from 0 to 1"),
            ("roundup_power2_divisions:3", "a power of two"),
            ("roundup_power2_divisions:[4", "a power of two"),
            ("roundup_power2_divisions:[4:2,]", "a power of two"),
            ("backend:cudaMallocAsync", "unknown key 'backend'"),
            ("expandable:True", "unknown key 'expandable'"),
        ] {
            let error = text.parse::<Settings>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_rounded_within_a_doubling() {
        let settings: Settings = "roundup_power2_divisions:4".parse().unwrap();
        let sizes = [1, 512, 513, 1200, 2048, 2049, 5 << 20, (5 << 20) + 1, 8 << 20];
        let rounded = sizes.map(|bytes| settings.round(bytes));
        assert_eq!(rounded, [512, 512, 1024, 1536, 2048, 2560, 5 << 20, 6 << 20, 8 << 20]);
    }
}
