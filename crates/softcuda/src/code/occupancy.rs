//! Occupancy: what a multiprocessor of 2048 threads and 32 blocks would hold.

use super::functions;
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::{In, Out};
use crate::abi::structs::LaunchConfig;

const THREADS: i32 = 2048;
const BLOCKS: i32 = 32;
const MULTIPROCESSORS: i32 = 132;
const MOST_THREADS: i32 = 1024;
const SHARED: usize = 233_472;

pub(crate) fn max_blocks(blocks: Out<i32>, function: usize, block_size: i32, shared: usize) -> Res {
    blocks.check()?;
    functions::get(function)?;
    if block_size <= 0 {
        return Err(Code::INVALID_VALUE);
    }
    if block_size > MOST_THREADS {
        return blocks.set(0);
    }
    let by_shared = SHARED.checked_div(shared).unwrap_or(BLOCKS as usize).min(BLOCKS as usize) as i32;
    blocks.set((THREADS / block_size).min(BLOCKS).min(by_shared))
}

pub(crate) fn max_blocks_with_flags(
    blocks: Out<i32>,
    function: usize,
    block_size: i32,
    shared: usize,
    flags: u32,
) -> Res {
    if flags > 1 { Err(Code::INVALID_VALUE) } else { max_blocks(blocks, function, block_size, shared) }
}

pub(crate) fn block_size(
    grid: Out<i32>,
    block: Out<i32>,
    function: usize,
    _shared_of: usize,
    _shared: usize,
    limit: i32,
) -> Res {
    grid.check()?;
    block.check()?;
    functions::get(function)?;
    let size = if limit > 0 { limit.min(MOST_THREADS) } else { MOST_THREADS };
    block.set(size)?;
    grid.set(MULTIPROCESSORS * (THREADS / size).min(BLOCKS))
}

#[allow(clippy::too_many_arguments, reason = "C's parameters")]
pub(crate) fn block_size_with_flags(
    grid: Out<i32>,
    block: Out<i32>,
    function: usize,
    shared_of: usize,
    shared: usize,
    limit: i32,
    flags: u32,
) -> Res {
    if flags > 1 { Err(Code::INVALID_VALUE) } else { block_size(grid, block, function, shared_of, shared, limit) }
}

pub(crate) fn shared_memory(size: Out<usize>, function: usize, blocks: i32, block_size: i32) -> Res {
    size.check()?;
    functions::get(function)?;
    let blocks = usize::try_from(blocks).ok().filter(|&n| n > 0 && block_size > 0).ok_or(Code::INVALID_VALUE)?;
    size.set(SHARED / blocks)
}

pub(crate) fn clusters(clusters: Out<i32>, function: usize, config: In<LaunchConfig>) -> Res {
    clusters.check()?;
    functions::get(function)?;
    config.get()?;
    clusters.set(MULTIPROCESSORS / 8)
}

pub(crate) fn cluster_size(size: Out<i32>, function: usize, config: In<LaunchConfig>) -> Res {
    size.check()?;
    functions::get(function)?;
    config.get()?;
    size.set(8)
}
