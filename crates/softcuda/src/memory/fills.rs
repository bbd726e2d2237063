//! Fills. With `SOFTCUDA_MEMSET=skip` they write nothing, so that pages stay untouched; they are checked all the same.

use stratalloc::driver::Driver;
use stratalloc::driver::soft::Access;
use stratalloc::units::{DevicePtr, StreamId};

use super::space;
use crate::abi::codes::{Code, Res};
use crate::abi::structs::MemsetParams;
use crate::process;
use crate::process::devices::{Device, code_of};
use crate::stream::capture;
use crate::stream::streams::{self, Stream};
use crate::stream::work::Op;

/// Runs a fill of a stream.
pub(crate) fn run(stream: &Stream, fill: &MemsetParams) -> Res {
    let row = fill.width as u64 * u64::from(fill.element_size);
    let (rows, row) =
        if fill.height <= 1 || fill.pitch as u64 == row { (1, row * fill.height as u64) } else { (fill.height, row) };
    let block = space::find(fill.dst).ok_or(Code::INVALID_VALUE)?;
    let (device, on) = if block.device.ordinal == stream.device.ordinal {
        (stream.device, stream.soft)
    } else {
        // Another device's memory: both wait, which is one legal order.
        stream.device.wait_stream(stream.soft)?;
        block.device.wait_idle()?;
        (block.device, StreamId::DEFAULT)
    };
    for at in 0..rows {
        fill_row(device, on, DevicePtr(fill.dst + at as u64 * fill.pitch as u64), row, fill)?;
    }
    if on == stream.soft { Ok(()) } else { device.wait_idle() }
}

fn fill_row(device: &Device, stream: StreamId, ptr: DevicePtr, size: u64, fill: &MemsetParams) -> Res {
    let soft = &device.soft;
    if !process::get()?.options.fill {
        return soft.touch(stream, &[Access::write(ptr, size)]).map_err(code_of);
    }
    if fill.element_size == 1 {
        return soft.fill(ptr, size, fill.value as u8, stream).map_err(code_of);
    }
    soft.fill_pattern(ptr, size, fill.value.to_le_bytes(), fill.element_size as usize, stream).map_err(code_of)
}

/// Fails unless a fill is one that can be run.
pub(crate) fn check(fill: &MemsetParams) -> Res {
    let element = u64::from(fill.element_size);
    let row = (fill.width as u64).checked_mul(element).ok_or(Code::INVALID_VALUE)?;
    let pitch = if fill.height <= 1 { row } else { fill.pitch as u64 };
    let end = pitch.checked_mul(fill.height as u64).and_then(|size| fill.dst.checked_add(size));
    let aligned = fill.dst.is_multiple_of(element.max(1)) && (fill.height <= 1 || pitch.is_multiple_of(element.max(1)));
    if !matches!(element, 1 | 2 | 4) || end.is_none() || !aligned || pitch < row {
        Err(Code::INVALID_VALUE)
    } else {
        Ok(())
    }
}

fn submit(stream: usize, fill: MemsetParams, wait: bool) -> Res {
    check(&fill)?;
    if wait {
        capture::refuse_unsafe()?;
    }
    let stream = streams::for_work(stream)?;
    if fill.width == 0 || fill.height == 0 {
        return Ok(());
    }
    if stream.is_capturing() {
        return capture::record(&stream, Op::Fill(fill));
    }
    run(&stream, &fill)?;
    let host = space::find(fill.dst).is_some_and(|block| block.kind.is_host());
    if wait && host { stream.device.wait_stream(stream.soft) } else { Ok(()) }
}

fn flat(dst: u64, value: u32, element_size: u32, count: usize) -> MemsetParams {
    MemsetParams { dst, pitch: 0, value, element_size, width: count, height: 1 }
}

fn pitched(dst: u64, pitch: usize, value: u32, element_size: u32, width: usize, height: usize) -> MemsetParams {
    MemsetParams { dst, pitch, value, element_size, width, height }
}

macro_rules! fills {
    ($($element:ty, $one:ident, $one_async:ident, $two:ident, $two_async:ident;)*) => {$(
        pub(crate) fn $one(stream: usize, dst: u64, value: $element, count: usize) -> Res {
            submit(stream, flat(dst, u32::from(value), size_of::<$element>() as u32, count), true)
        }

        pub(crate) fn $one_async(dst: u64, value: $element, count: usize, stream: usize) -> Res {
            submit(stream, flat(dst, u32::from(value), size_of::<$element>() as u32, count), false)
        }

        pub(crate) fn $two(stream: usize, dst: u64, pitch: usize, value: $element, width: usize, height: usize) -> Res {
            submit(stream, pitched(dst, pitch, u32::from(value), size_of::<$element>() as u32, width, height), true)
        }

        pub(crate) fn $two_async(
            dst: u64,
            pitch: usize,
            value: $element,
            width: usize,
            height: usize,
            stream: usize,
        ) -> Res {
            submit(stream, pitched(dst, pitch, u32::from(value), size_of::<$element>() as u32, width, height), false)
        }
    )*};
}

fills! {
    u8, d8, d8_async, two_d8, two_d8_async;
    u16, d16, d16_async, two_d16, two_d16_async;
    u32, d32, d32_async, two_d32, two_d32_async;
}
