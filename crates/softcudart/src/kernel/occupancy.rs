//! How many blocks of a kernel a multiprocessor takes.

use std::ffi::{c_int, c_uint, c_void};

use super::function::function;
use super::launch::Config;
use crate::entry::{api, read};

api! {
    fn cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int, host: *const c_void, threads: c_int, shared_bytes: usize
    ) |table| {
        let function = function(table, host)?;
        table.cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared_bytes, 0)
    }

    fn cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: *mut c_int, host: *const c_void, threads: c_int, shared_bytes: usize, flags: c_uint
    ) |table| {
        let function = function(table, host)?;
        table.cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared_bytes, flags)
    }

    fn cudaOccupancyAvailableDynamicSMemPerBlock(
        bytes: *mut usize, host: *const c_void, blocks: c_int, threads: c_int
    ) |table| {
        table.cuOccupancyAvailableDynamicSMemPerBlock(bytes, function(table, host)?, blocks, threads)
    }

    fn cudaOccupancyMaxPotentialClusterSize(size: *mut c_int, host: *const c_void, config: *const Config) |table| {
        let config = read(config)?.to_driver()?;
        table.cuOccupancyMaxPotentialClusterSize(size, function(table, host)?, &raw const config)
    }

    fn cudaOccupancyMaxActiveClusters(count: *mut c_int, host: *const c_void, config: *const Config) |table| {
        let config = read(config)?.to_driver()?;
        table.cuOccupancyMaxActiveClusters(count, function(table, host)?, &raw const config)
    }
}
