//! C and C++ programs against the installed library: compiled, linked through pkg-config, run.

mod aids;
mod bad_input;
mod cuda;
mod examples;
mod layout;
mod recording;
mod tiers;
mod toolchain;
