//! Which keys of the configuration are searched, and the values that are tried.

use stratalloc::config::KEYS;

/// A key that changes memory or driver calls, with the values to try, the default among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Knob {
    pub(super) key: &'static str,
    pub(super) values: &'static [&'static str],
    /// Whether it matters only to programs with several streams.
    pub(super) streams: bool,
}

const fn knob(key: &'static str, values: &'static [&'static str]) -> Knob {
    Knob { key, values, streams: false }
}

/// In the order in which they are tried: what changes most comes first.
const KNOBS: &[Knob] = &[
    knob("thrifty", &["false", "true"]),
    knob("chunk_max", &["2MiB", "4MiB", "8MiB", "16MiB", "32MiB", "64MiB", "128MiB"]),
    knob("chunk", &["2MiB", "4MiB", "8MiB", "16MiB", "32MiB", "64MiB"]),
    knob("gc_threshold", &["0.6", "0.7", "0.8", "0.9", "1"]),
    knob("magazine", &["0", "0.05", "0.1", "0.25", "0.5"]),
    Knob { key: "cross_stream_wait", values: &["scarce", "false", "true"], streams: true },
];

/// Keys that are not searched: limits and aids, which are the user's to decide; what no replay can see, tiers among it; and plans, whose price is time of the
/// host's, which no score has.
#[cfg(test)]
const NOT_SEARCHED: &[&str] = &[
    "limit",
    "address_space",
    "plan",
    "trace",
    "strict",
    "poison",
    "redzone",
    "quarantine",
    "leaks",
    "tiers",
    "tier_policy",
    "tier_admission",
    "tier_workers",
    "tier_encrypt",
];

/// The knobs of this build that matter to traces with so many streams.
pub(super) fn knobs(streams: u16) -> impl Iterator<Item = Knob> {
    let exists = |knob: &&Knob| KEYS.iter().any(|(key, _)| *key == knob.key);
    KNOBS.iter().filter(exists).filter(move |knob| streams > 1 || !knob.streams).copied()
}

#[cfg(test)]
mod tests {
    use stratalloc::config::Config;

    use super::*;

    #[test]
    fn every_key_was_decided_on() {
        for (key, _) in KEYS {
            let searched = KNOBS.iter().any(|knob| knob.key == key);
            let decided = searched != NOT_SEARCHED.contains(&key);
            assert!(decided, "add '{key}' to KNOBS or to NOT_SEARCHED of crates/cli/src/tune/knobs.rs");
        }
    }

    #[test]
    fn every_value_is_allowed_and_the_default_is_among_them() {
        for knob in knobs(2) {
            let configs: Vec<Config> =
                knob.values.iter().map(|value| Config::parse(&format!("{}:{value}", knob.key)).unwrap()).collect();
            assert!(configs.contains(&Config::default()), "{}", knob.key);
        }
        assert!(knobs(1).count() < knobs(2).count());
    }
}
