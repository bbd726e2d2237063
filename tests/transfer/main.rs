//! The transfer engine between the software device and tiers: contents, order, faults, and what it asks of the driver.

mod coded;
mod ends;
mod faults;
mod kit;
mod order;
mod roundtrip;
mod tiers;
