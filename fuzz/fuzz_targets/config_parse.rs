//! The configuration parser never panics, keeps to the bounds that it states, and reads back what it prints.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stratalloc::{Config, Limit};

fuzz_target!(|text: &str| {
    match Config::parse(text) {
        Ok(config) => {
            assert_eq!(Config::parse(&config.to_string()).as_ref(), Ok(&config));
            assert!(config.chunk.0.is_power_of_two() && (2 << 20..=1 << 30).contains(&config.chunk.0));
            assert!((0.0..=1.0).contains(&config.magazine));
            assert!(config.gc_threshold > 0.0 && config.gc_threshold <= 1.0);
            assert!((1..=64).contains(&config.address_space));
            if let Some(Limit::Fraction(part)) = config.limit {
                assert!(part > 0.0 && part <= 1.0);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
