//! Values that streams write and wait for.

use stratalloc::driver::Driver;
use stratalloc::driver::soft::Comparison;
use stratalloc::units::DevicePtr;

use super::capture;
use super::streams::{self, Stream};
use super::work::Op;
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::In;
use crate::abi::structs::BatchMemOp;
use crate::memory::space;
use crate::process::devices::code_of;

fn submit(stream: &Stream, op: Op) -> Res {
    if stream.is_capturing() { capture::record(stream, op) } else { op.run(stream) }
}

fn check(ptr: u64, width: u64) -> Res {
    if ptr.is_multiple_of(width) && space::find(ptr).is_some() { Ok(()) } else { Err(Code::INVALID_VALUE) }
}

/// Queues a write of a number.
pub(crate) fn write_on(stream: &Stream, ptr: u64, value: u64, width: u64) -> Res {
    let bytes = value.to_le_bytes();
    stream.device.soft.write(DevicePtr(ptr), &bytes[..width as usize], stream.soft).map_err(code_of)
}

fn comparison(flags: u32) -> Res<Comparison> {
    // Bit 30 asks for a flush of remote writes, of which there are none.
    match flags & !(1 << 30) {
        0 => Ok(Comparison::GreaterOrEqual),
        1 => Ok(Comparison::Equal),
        2 => Ok(Comparison::And),
        3 => Ok(Comparison::Nor),
        _ => Err(Code::INVALID_VALUE),
    }
}

fn write(stream: usize, ptr: u64, value: u64, width: u64, flags: u32) -> Res {
    let stream = streams::for_work(stream)?;
    check(ptr, width)?;
    if flags > 1 {
        return Err(Code::INVALID_VALUE);
    }
    submit(&stream, Op::WriteValue { ptr, value, width })
}

fn wait(stream: usize, ptr: u64, value: u64, width: u64, flags: u32) -> Res {
    let stream = streams::for_work(stream)?;
    check(ptr, width)?;
    submit(&stream, Op::WaitValue { ptr, value, width, comparison: comparison(flags)? })
}

pub(crate) fn write_32(stream: usize, ptr: u64, value: u32, flags: u32) -> Res {
    write(stream, ptr, u64::from(value), 4, flags)
}

pub(crate) fn write_64(stream: usize, ptr: u64, value: u64, flags: u32) -> Res {
    write(stream, ptr, value, 8, flags)
}

pub(crate) fn wait_32(stream: usize, ptr: u64, value: u32, flags: u32) -> Res {
    wait(stream, ptr, u64::from(value), 4, flags)
}

pub(crate) fn wait_64(stream: usize, ptr: u64, value: u64, flags: u32) -> Res {
    wait(stream, ptr, value, 8, flags)
}

/// An operation of a batch: its kind, an address, a value, flags.
pub(crate) fn op_of(batch: &BatchMemOp) -> Res<Option<Op>> {
    let [kind, ptr, value, flags, ..] = batch.0;
    let flags = flags as u32;
    let width = if matches!(kind as u32, 4 | 5) { 8 } else { 4 };
    let value = if width == 8 { value } else { u64::from(value as u32) };
    Ok(match kind as u32 {
        1 | 4 => {
            check(ptr, width)?;
            Some(Op::WaitValue { ptr, value, width, comparison: comparison(flags)? })
        }
        2 | 5 => {
            check(ptr, width)?;
            Some(Op::WriteValue { ptr, value, width })
        }
        // Barriers and flushes: all is in order here.
        3 | 6 => None,
        _ => return Err(Code::INVALID_VALUE),
    })
}

pub(crate) fn batch(stream: usize, count: u32, ops: In<BatchMemOp>, flags: u32) -> Res {
    let stream = streams::for_work(stream)?;
    if flags != 0 || count > 256 {
        return Err(Code::INVALID_VALUE);
    }
    let ops = ops.all(count as usize)?.iter().map(op_of).collect::<Res<Vec<_>>>()?;
    ops.into_iter().flatten().try_for_each(|op| submit(&stream, op))
}
