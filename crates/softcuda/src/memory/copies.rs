//! Copies: between all kinds of memory, in stream order.
//!
//! What lies on the stream's own device is queued there. Pageable host memory is read when the call is made, and written
//! before it returns. Copies that involve another device wait for both, which is one of their legal orders.

use stratalloc::driver::{CopyOp, Driver};
use stratalloc::units::{DevicePtr, StreamId};

use super::space;
use crate::abi::codes::{Code, Res};
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{Memcpy2D, Memcpy3D};
use crate::process::contexts;
use crate::process::devices::{Device, code_of};
use crate::stream::capture;
use crate::stream::streams::{self, Stream};
use crate::stream::work::Op;

/// Bytes that go from one address to another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) dst: u64,
    pub(crate) src: u64,
    pub(crate) size: u64,
}

/// Pageable memory goes in pieces of so many bytes.
const PIECE: u64 = 64 << 20;

#[derive(Clone, Copy)]
enum Side {
    /// Memory that the stream's device knows: its own, or pinned.
    Local,
    /// Memory of another device.
    Remote(&'static Device),
    /// Host memory that the device does not know.
    Pageable,
}

fn side(device: &Device, ptr: u64) -> Side {
    match space::find(ptr) {
        Some(block) if block.device.ordinal == device.ordinal => Side::Local,
        Some(block) if block.kind.is_host() => Side::Pageable,
        Some(block) => Side::Remote(block.device),
        None => Side::Pageable,
    }
}

/// Whether the first and the last byte of a range can be read by the process: what is no memory at all is told apart from
/// pageable memory.
pub(crate) fn is_host_memory(ptr: u64, size: u64) -> bool {
    let Some(last) = ptr.checked_add(size.max(1) - 1) else { return false };
    [ptr, last].iter().all(|&address| {
        let mut byte = 0u8;
        let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let remote = libc::iovec { iov_base: address as *mut _, iov_len: 1 };
        // SAFETY: the call writes one byte into `byte`, and reports addresses that cannot be read.
        let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        // Where the system forbids the call, nothing is known, and the caller is believed.
        read == 1 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EFAULT)
    })
}

/// Runs copies of a stream, now or in a graph. The order among them is free.
pub(crate) fn run(stream: &Stream, rows: &[Row]) -> Res {
    let device = stream.device;
    let local = |row: &Row| matches!((side(device, row.dst), side(device, row.src)), (Side::Local, Side::Local));
    if rows.iter().all(local) {
        let ops: Vec<CopyOp> = rows
            .iter()
            .filter(|row| row.dst != row.src)
            .map(|row| CopyOp { dst: DevicePtr(row.dst), src: DevicePtr(row.src), size: row.size })
            .collect();
        return device.soft.copy(&ops, stream.soft).map_err(code_of);
    }
    rows.iter().try_for_each(|&row| run_row(stream, row))
}

fn run_row(stream: &Stream, row: Row) -> Res {
    let device = stream.device;
    let (dst, src) = (side(device, row.dst), side(device, row.src));
    for (side, ptr) in [(dst, row.dst), (src, row.src)] {
        if matches!(side, Side::Pageable) && !is_host_memory(ptr, row.size) {
            return Err(Code::INVALID_VALUE);
        }
    }
    // Both ends are checked before any byte moves.
    let remote = matches!((dst, src), (Side::Remote(_), _) | (_, Side::Remote(_)));
    if remote || matches!((dst, src), (Side::Pageable, Side::Pageable)) {
        device.wait_stream(stream.soft)?;
    }
    for side in [dst, src] {
        if let Side::Remote(other) = side {
            other.wait_idle()?;
        }
    }
    let mut at = 0;
    while at < row.size {
        let size = PIECE.min(row.size - at);
        let piece = Row { dst: row.dst + at, src: row.src + at, size };
        match (dst, src) {
            (Side::Local, Side::Local) => {
                let op = CopyOp { dst: DevicePtr(piece.dst), src: DevicePtr(piece.src), size };
                device.soft.copy(&[op], stream.soft).map_err(code_of)?;
            }
            (Side::Local, Side::Pageable) => {
                device.soft.write(DevicePtr(piece.dst), host_bytes(piece.src, size), stream.soft).map_err(code_of)?;
            }
            (Side::Pageable, Side::Local) => {
                device
                    .soft
                    .read(host_bytes_mut(piece.dst, size), DevicePtr(piece.src), stream.soft)
                    .map_err(code_of)?;
            }
            (Side::Pageable, Side::Pageable) => {
                // SAFETY: both are host memory of the program, which the caller has said to be copied; they may overlap.
                unsafe { std::ptr::copy(piece.src as *const u8, piece.dst as *mut u8, size as usize) };
            }
            (dst, src) => {
                let mut bytes = vec![0; size as usize];
                match src {
                    Side::Remote(other) => fetch(other, &mut bytes, piece.src)?,
                    Side::Local => fetch(device, &mut bytes, piece.src)?,
                    Side::Pageable => bytes.copy_from_slice(host_bytes(piece.src, size)),
                }
                match dst {
                    Side::Remote(other) => store(other, &bytes, piece.dst)?,
                    Side::Local => store(device, &bytes, piece.dst)?,
                    Side::Pageable => host_bytes_mut(piece.dst, size).copy_from_slice(&bytes),
                }
            }
        }
        at += size;
    }
    Ok(())
}

fn fetch(device: &Device, bytes: &mut [u8], src: u64) -> Res {
    device.soft.read(bytes, DevicePtr(src), StreamId::DEFAULT).map_err(code_of)
}

fn store(device: &Device, bytes: &[u8], dst: u64) -> Res {
    device.soft.write(DevicePtr(dst), bytes, StreamId::DEFAULT).map_err(code_of)?;
    device.wait_stream(StreamId::DEFAULT)
}

fn host_bytes<'a>(ptr: u64, size: u64) -> &'a [u8] {
    // SAFETY: host memory of the program (`is_host_memory`), which by CUDA's contract is valid for the size of the copy and is
    // not written meanwhile.
    unsafe { std::slice::from_raw_parts(ptr as *const u8, size as usize) }
}

fn host_bytes_mut<'a>(ptr: u64, size: u64) -> &'a mut [u8] {
    // SAFETY: as above; the program neither reads nor writes it meanwhile.
    unsafe { std::slice::from_raw_parts_mut(ptr as *mut u8, size as usize) }
}

/// Whether a copy has an end in host memory, so that a synchronous one waits.
fn touches_host(rows: &[Row]) -> bool {
    rows.iter()
        .any(|row| [row.dst, row.src].iter().any(|&ptr| space::find(ptr).is_none_or(|block| block.kind.is_host())))
}

fn submit(stream: usize, rows: Vec<Row>) -> Res {
    let stream = streams::for_work(stream)?;
    if stream.is_capturing() {
        return capture::record(&stream, Op::Rows(rows));
    }
    run(&stream, &rows)
}

fn submit_and_wait(stream: usize, rows: Vec<Row>) -> Res {
    capture::refuse_unsafe()?;
    let stream = streams::for_work(stream)?;
    run(&stream, &rows)?;
    if touches_host(&rows) { stream.device.wait_stream(stream.soft) } else { Ok(()) }
}

pub(crate) fn any_async(dst: u64, src: u64, size: usize, stream: usize) -> Res {
    if size == 0 {
        return streams::resolve(stream).map(|_| ());
    }
    submit(stream, vec![Row { dst, src, size: size as u64 }])
}

pub(crate) fn any(stream: usize, dst: u64, src: u64, size: usize) -> Res {
    if size == 0 {
        return streams::resolve(stream).map(|_| ());
    }
    submit_and_wait(stream, vec![Row { dst, src, size: size as u64 }])
}

pub(crate) fn with_attributes(dst: u64, src: u64, size: usize, _attributes: usize, stream: usize) -> Res {
    any_async(dst, src, size, stream)
}

pub(crate) fn peer(stream: usize, dst: u64, dst_context: usize, src: u64, src_context: usize, size: usize) -> Res {
    contexts::by_handle(dst_context)?;
    contexts::by_handle(src_context)?;
    any(stream, dst, src, size)
}

pub(crate) fn peer_async(
    dst: u64,
    dst_context: usize,
    src: u64,
    src_context: usize,
    size: usize,
    stream: usize,
) -> Res {
    contexts::by_handle(dst_context)?;
    contexts::by_handle(src_context)?;
    any_async(dst, src, size, stream)
}

// ---- two and three dimensions -------------------------------------------------------------------------------------------

const HOST: u32 = 1;
const DEVICE: u32 = 2;
const ARRAY: u32 = 3;
const UNIFIED: u32 = 4;

fn base(kind: u32, host: usize, device: u64) -> Res<u64> {
    match kind {
        HOST => Ok(host as u64),
        DEVICE | UNIFIED => Ok(device),
        ARRAY => Err(Code::NOT_SUPPORTED),
        _ => Err(Code::INVALID_VALUE),
    }
}

/// The rows of a copy. Neighbouring rows that touch on both sides are one.
pub(crate) fn rows_of(copy: &Memcpy3D) -> Res<Vec<Row>> {
    let dst = base(copy.dst_kind, copy.dst_host, copy.dst_device)?;
    let src = base(copy.src_kind, copy.src_host, copy.src_device)?;
    let (width, height, depth) = (copy.width as u64, copy.height as u64, copy.depth as u64);
    if width == 0 || height == 0 || depth == 0 {
        return Ok(Vec::new());
    }
    let start = |base: u64, x: usize, y: usize, z: usize, pitch: usize, rows: usize| -> Option<(u64, u64, u64)> {
        let (pitch, rows) = (pitch as u64, rows as u64);
        let pitch = if pitch == 0 && height == 1 && depth == 1 { width } else { pitch };
        let slice = pitch.checked_mul(if rows == 0 && depth == 1 { height } else { rows })?;
        if height > 1 && pitch < width + x as u64 || depth > 1 && rows < height + y as u64 {
            return None;
        }
        let at = base
            .checked_add(slice.checked_mul(z as u64)?)?
            .checked_add(pitch.checked_mul(y as u64)?)?
            .checked_add(x as u64)?;
        // The end is computed too, so that nothing below overflows.
        at.checked_add(slice.checked_mul(depth)?)?.checked_add(pitch.checked_mul(height)?)?.checked_add(width)?;
        Some((at, pitch, slice))
    };
    let d =
        start(dst, copy.dst_x, copy.dst_y, copy.dst_z, copy.dst_pitch, copy.dst_height).ok_or(Code::INVALID_VALUE)?;
    let s =
        start(src, copy.src_x, copy.src_y, copy.src_z, copy.src_pitch, copy.src_height).ok_or(Code::INVALID_VALUE)?;
    if height.checked_mul(depth).is_none_or(|rows| rows > 1 << 24) {
        return Err(Code::INVALID_VALUE);
    }
    let mut rows: Vec<Row> = Vec::new();
    for z in 0..depth {
        for y in 0..height {
            let row = Row { dst: d.0 + z * d.2 + y * d.1, src: s.0 + z * s.2 + y * s.1, size: width };
            match rows.last_mut() {
                Some(last) if last.dst + last.size == row.dst && last.src + last.size == row.src => last.size += width,
                _ => rows.push(row),
            }
        }
    }
    Ok(rows)
}

/// A flat copy is one slice of a solid one.
pub(crate) fn solid(copy: &Memcpy2D) -> Memcpy3D {
    Memcpy3D {
        src_x: copy.src_x,
        src_y: copy.src_y,
        src_z: 0,
        src_lod: 0,
        src_kind: copy.src_kind,
        src_host: copy.src_host,
        src_device: copy.src_device,
        src_array: copy.src_array,
        src_context: 0,
        src_pitch: copy.src_pitch,
        src_height: 0,
        dst_x: copy.dst_x,
        dst_y: copy.dst_y,
        dst_z: 0,
        dst_lod: 0,
        dst_kind: copy.dst_kind,
        dst_host: copy.dst_host,
        dst_device: copy.dst_device,
        dst_array: copy.dst_array,
        dst_context: 0,
        dst_pitch: copy.dst_pitch,
        dst_height: 0,
        width: copy.width,
        height: copy.height,
        depth: 1,
    }
}

pub(crate) fn two_d(stream: usize, copy: In<Memcpy2D>) -> Res {
    submit_and_wait(stream, rows_of(&solid(&copy.get()?))?)
}

pub(crate) fn two_d_async(copy: In<Memcpy2D>, stream: usize) -> Res {
    submit(stream, rows_of(&solid(&copy.get()?))?)
}

pub(crate) fn three_d(stream: usize, copy: In<Memcpy3D>) -> Res {
    submit_and_wait(stream, rows_of(&copy.get()?)?)
}

pub(crate) fn three_d_async(copy: In<Memcpy3D>, stream: usize) -> Res {
    submit(stream, rows_of(&copy.get()?)?)
}

// ---- batches --------------------------------------------------------------------------------------------------------------

#[allow(clippy::too_many_arguments, reason = "C's parameters")]
pub(crate) fn batch(
    dsts: In<u64>,
    srcs: In<u64>,
    sizes: In<usize>,
    count: usize,
    attributes: usize,
    indices: In<usize>,
    attribute_count: usize,
    stream: usize,
) -> Res {
    // The driver takes no batch on the default streams, nor an empty one.
    if count == 0 || stream <= crate::stream::PER_THREAD || attributes == 0 || attribute_count == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let starts = indices.all(attribute_count)?;
    if starts[0] != 0 || starts.windows(2).any(|pair| pair[0] >= pair[1]) || starts[starts.len() - 1] >= count {
        return Err(Code::INVALID_VALUE);
    }
    let (dsts, srcs, sizes) = (dsts.all(count)?, srcs.all(count)?, sizes.all(count)?);
    if sizes.contains(&0) {
        return Err(Code::INVALID_VALUE);
    }
    let found = streams::for_work(stream)?;
    if found.is_capturing() {
        return Err(capture::refuse(&found));
    }
    let row = |((&dst, &src), &size): ((&u64, &u64), &usize)| Row { dst, src, size: size as u64 };
    let rows: Vec<Row> = dsts.iter().zip(&srcs).zip(&sizes).map(row).collect();
    run(&found, &rows)
}

#[allow(clippy::too_many_arguments, reason = "C's parameters")]
pub(crate) fn batch_v1(
    dsts: In<u64>,
    srcs: In<u64>,
    sizes: In<usize>,
    count: usize,
    attributes: usize,
    indices: In<usize>,
    attribute_count: usize,
    failed: Out<usize>,
    stream: usize,
) -> Res {
    let result = batch(dsts, srcs, sizes, count, attributes, indices, attribute_count, stream);
    if result.is_err() {
        // No single copy is to blame.
        failed.set_if(usize::MAX);
    }
    result
}
