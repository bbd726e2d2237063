//! Random calls through the C functions, good and bad, against a shadow model: what is live, what a call must return, and that statistics, snapshots
//! and the recorded trace agree with it.
#![no_main]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_void};
use std::ptr;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use stratalloc_c::blocks::*;
use stratalloc_c::device::*;
use stratalloc_c::handle::*;
use stratalloc_c::pools::*;
use stratalloc_c::record::*;
use stratalloc_c::snapshot::*;
use stratalloc_c::stats::*;
use stratalloc_c::status::stratalloc_last_error;
use stratalloc_c::status::stratalloc_status::{self, *};

const DEVICE_BYTES: u64 = 64 << 20;
const POOL: stratalloc_pool_id = stratalloc_pool_id { first: 0, second: 1 };
const DEFAULT: stratalloc_stream = ptr::null_mut();

#[derive(Debug, Arbitrary)]
enum Op {
    Malloc { size: u32, device: i8 },
    Request { size: u32, alignment: u8, tag: u8, flags: u8, lifetime: u8, struct_size: u8 },
    Huge(u64),
    Free { which: u8 },
    FreeOn { which: u8, device: i8 },
    FreeAgain { which: u8 },
    FreeInside { which: u8, offset: u16 },
    FreeForeign(u64),
    Find { which: u8, offset: u16 },
    Tag(u8),
    TagLimit { tag: u8, bytes: u32 },
    Limit { bytes: u32 },
    LimitPart(f64),
    Empty,
    Begin,
    End,
    Checkpoint,
    Restore,
    Stats,
    Visit,
}

struct Shadow {
    gpu: *mut stratalloc_allocator,
    /// Bytes requested, by address.
    live: BTreeMap<u64, u64>,
    freed: Vec<u64>,
    tags: u32,
    filling: bool,
    checkpoint: *mut stratalloc_checkpoint,
}

fn is_shortage(status: stratalloc_status) -> bool {
    matches!(status, STRATALLOC_OUT_OF_MEMORY | STRATALLOC_NEVER_FITS | STRATALLOC_OVER_LIMIT)
}

/// A failure says something.
fn check_words(status: stratalloc_status) {
    // SAFETY: the text ends in 0, and no call fails meanwhile.
    let words = unsafe { CStr::from_ptr(stratalloc_last_error()) }.to_bytes();
    assert!(status == STRATALLOC_OK || words.len() > 10, "{status:?}: {words:?}");
    assert_ne!(status, STRATALLOC_INTERNAL, "{}", String::from_utf8_lossy(words));
}

impl Shadow {
    fn nth(&self, which: u8) -> Option<(u64, u64)> {
        let count = self.live.len();
        self.live.iter().nth(usize::from(which) % count.max(1)).map(|(&at, &bytes)| (at, bytes))
    }

    /// Notes what an allocation came to. `possible`: whether it could have succeeded at all.
    fn made(&mut self, status: stratalloc_status, out: *mut c_void, bytes: u64, possible: bool) {
        check_words(status);
        if status != STRATALLOC_OK {
            assert!(out.is_null());
            assert!(is_shortage(status) || !possible, "{status:?} for {bytes} bytes");
            return;
        }
        assert!(possible, "{bytes} bytes cannot be had");
        let at = out as u64;
        assert_eq!(at % 512, 0);
        let before = self.live.range(..at + bytes).next_back();
        assert!(before.is_none_or(|(&other, &length)| other + length <= at), "blocks overlap");
        self.live.insert(at, bytes);
        self.freed.retain(|&other| other != at);
    }

    fn step(&mut self, op: &Op) {
        let gpu = self.gpu;
        let mut out: *mut c_void = ptr::without_provenance_mut(1);
        // SAFETY: the handle lives, out-pointers are those of locals, and structs say their true size or less.
        unsafe {
            match *op {
                Op::Malloc { size, device } => {
                    let status = stratalloc_malloc(gpu, size as usize, device.into(), DEFAULT, &mut out);
                    self.made(status, out, size.into(), size > 0 && device == 0);
                }
                Op::Huge(size) => {
                    let size = size | 1 << 40;
                    let status = stratalloc_malloc(gpu, size as usize, 0, DEFAULT, &mut out);
                    self.made(status, out, size, false);
                }
                Op::Request { size, alignment, tag, flags, lifetime, struct_size } => {
                    let request = stratalloc_request {
                        struct_size: struct_size.into(),
                        bytes: size as usize,
                        alignment: 1usize.checked_shl(alignment.into()).unwrap_or(3),
                        device: 0,
                        tag: tag.into(),
                        stream: DEFAULT,
                        flags: flags.into(),
                        lifetime: lifetime.into(),
                    };
                    // What the struct's size leaves out is 0.
                    let has = |field: usize, length: usize| usize::from(struct_size) >= field + length;
                    let right = |held: bool, fine: bool| !held || fine;
                    let possible = (16..=size_of::<stratalloc_request>()).contains(&usize::from(struct_size))
                        && size > 0
                        && right(has(16, 8), alignment <= if flags & 4 == 0 || !has(40, 4) { 21 } else { 9 })
                        && right(has(28, 4), u32::from(tag) < self.tags)
                        && right(has(40, 4), flags <= 7)
                        && right(has(44, 4), lifetime <= 2);
                    // Fields that are cut in two are anybody's guess.
                    if usize::from(struct_size) % 8 == 0 && usize::from(struct_size) <= size_of::<stratalloc_request>()
                    {
                        let status = stratalloc_alloc(gpu, &request, &mut out);
                        self.made(status, out, size.into(), possible);
                    }
                }
                Op::Free { which } => {
                    let Some((at, _)) = self.nth(which) else { return };
                    assert_eq!(stratalloc_free(gpu, at as *mut c_void), STRATALLOC_OK);
                    self.live.remove(&at);
                    self.freed.push(at);
                }
                Op::FreeOn { which, device } => {
                    let Some((at, _)) = self.nth(which) else { return };
                    let status = stratalloc_free_on(gpu, at as *mut c_void, device.into());
                    check_words(status);
                    assert_eq!(status == STRATALLOC_OK, device == 0);
                    if device == 0 {
                        self.live.remove(&at);
                        self.freed.push(at);
                    }
                }
                Op::FreeAgain { which } => {
                    if self.freed.is_empty() {
                        return;
                    }
                    let at = self.freed[usize::from(which) % self.freed.len()];
                    let status = stratalloc_free(gpu, at as *mut c_void);
                    check_words(status);
                    // Its memory may have become part of another block, or gone back to the device.
                    assert!(matches!(status, STRATALLOC_DOUBLE_FREE | STRATALLOC_INVALID_POINTER), "{status:?}");
                }
                Op::FreeInside { which, offset } => {
                    let Some((at, bytes)) = self.nth(which) else { return };
                    let inside = at + 1 + u64::from(offset) % bytes.max(2);
                    if !self.live.contains_key(&inside) {
                        let status = stratalloc_free(gpu, inside as *mut c_void);
                        check_words(status);
                        assert!(matches!(status, STRATALLOC_DOUBLE_FREE | STRATALLOC_INVALID_POINTER), "{status:?}");
                    }
                }
                Op::FreeForeign(at) => {
                    if at != 0 && !self.live.contains_key(&at) {
                        assert_ne!(stratalloc_free(gpu, at as *mut c_void), STRATALLOC_OK);
                    }
                }
                Op::Find { which, offset } => {
                    let Some((at, bytes)) = self.nth(which) else { return };
                    let mut block: stratalloc_block = std::mem::zeroed();
                    block.struct_size = size_of::<stratalloc_block>();
                    let inside = at + u64::from(offset) % bytes;
                    assert_eq!(stratalloc_find(gpu, inside as *const c_void, &mut block), STRATALLOC_OK);
                    assert_eq!((block.address as u64, block.requested as u64), (at, bytes));
                    let mut usable = 0;
                    assert_eq!(stratalloc_usable_size(gpu, at as *mut c_void, &mut usable), STRATALLOC_OK);
                    assert!(usable == block.bytes && usable as u64 >= bytes);
                }
                Op::Tag(name) => {
                    let (mut number, text) = (0, CString::new(format!("tag {name}")).unwrap());
                    let status = stratalloc_tag(gpu, text.as_ptr(), &mut number);
                    check_words(status);
                    assert!(status == STRATALLOC_OK || self.tags == 64);
                    self.tags = self.tags.max(number + 1);
                }
                Op::TagLimit { tag, bytes } => {
                    let status = stratalloc_set_tag_limit(gpu, 0, tag.into(), bytes.into());
                    check_words(status);
                    assert!(u32::from(tag) < self.tags || status == STRATALLOC_INVALID_ARGUMENT);
                }
                Op::Limit { bytes } => check_words(stratalloc_set_limit(gpu, 0, bytes.into())),
                Op::LimitPart(part) => {
                    let status = stratalloc_set_limit_fraction(gpu, 0, part);
                    check_words(status);
                    assert!(part > 0.0 && part <= 1.0 || status == STRATALLOC_INVALID_ARGUMENT);
                }
                Op::Empty => {
                    let status = stratalloc_empty_cache(gpu, 0, ptr::null_mut());
                    assert_eq!(status == STRATALLOC_CAPTURING, self.filling, "{status:?}");
                }
                Op::Begin => {
                    let status = stratalloc_pool_begin(gpu, 0, POOL, None, ptr::null_mut(), None);
                    assert_eq!(status == STRATALLOC_OK, !self.filling, "{status:?}");
                    self.filling = true;
                }
                Op::End => {
                    let status = stratalloc_pool_end(gpu, 0, POOL);
                    assert_eq!(status == STRATALLOC_OK, self.filling, "{status:?}");
                    self.filling = false;
                }
                Op::Checkpoint => {
                    let mut made = ptr::null_mut();
                    if stratalloc_pool_checkpoint(gpu, 0, POOL, &mut made) == STRATALLOC_OK {
                        stratalloc_checkpoint_destroy(std::mem::replace(&mut self.checkpoint, made));
                    }
                }
                Op::Restore => {
                    let status = stratalloc_pool_restore(
                        gpu,
                        0,
                        self.checkpoint,
                        Some(forget),
                        Some(know),
                        ptr::from_mut(self).cast(),
                    );
                    check_words(status);
                }
                Op::Stats => {
                    let mut stats: stratalloc_stats = std::mem::zeroed();
                    stats.struct_size = size_of::<stratalloc_stats>();
                    assert_eq!(stratalloc_get_stats(gpu, 0, &mut stats), STRATALLOC_OK);
                    assert_eq!(stats.live.current, self.live.values().sum::<u64>());
                    assert_eq!(stats.allocs - stats.frees, self.live.len() as u64);
                }
                Op::Visit => {
                    let mut blocks = 0usize;
                    let status = stratalloc_visit_segments(gpu, 0, Some(count), (&raw mut blocks).cast());
                    assert_eq!((status, blocks), (STRATALLOC_OK, self.live.len()));
                }
            }
        }
    }
}

/// What was live before a restore is not any more.
extern "C" fn forget(shadow: *mut c_void, address: *mut c_void) {
    // SAFETY: the shadow is lent to the call that calls this, which has no other use of it meanwhile.
    let shadow = unsafe { &mut *shadow.cast::<Shadow>() };
    let known = shadow.live.remove(&(address as u64));
    assert!(known.is_some(), "{address:?} was not live");
    shadow.freed.push(address as u64);
}

/// What is live after a restore. Requested sizes come back with it, but are not told.
extern "C" fn know(shadow: *mut c_void, address: *mut c_void, bytes: usize) {
    // SAFETY: as above.
    let shadow = unsafe { &mut *shadow.cast::<Shadow>() };
    // SAFETY: numbers and pointers that may be null.
    let mut block: stratalloc_block = unsafe { std::mem::zeroed() };
    block.struct_size = size_of::<stratalloc_block>();
    // SAFETY: the handle lives, and no lock is held.
    assert_eq!(unsafe { stratalloc_find(shadow.gpu, address, &mut block) }, STRATALLOC_OK);
    assert!(block.address == address && block.bytes == bytes);
    shadow.live.insert(address as u64, block.requested as u64);
    shadow.freed.retain(|&other| other != address as u64);
}

extern "C" fn count(blocks: *mut c_void, segment: *const stratalloc_segment) -> bool {
    // SAFETY: the context is a number of the caller's, and the segment is valid during the call.
    let (blocks, segment) = unsafe { (&mut *blocks.cast::<usize>(), &*segment) };
    let mut end = segment.address;
    for index in 0..segment.block_count {
        // SAFETY: the segment is valid, and has so many blocks.
        let block = unsafe { &*stratalloc_segment_block(segment, index) };
        assert_eq!(block.address as u64, end, "blocks tile their segment");
        end += block.bytes as u64;
        *blocks += usize::from(block.state == STRATALLOC_BLOCK_LIVE);
    }
    assert_eq!(end, segment.address + segment.bytes);
    true
}

fuzz_target!(|input: (bool, Vec<Op>)| {
    let (recorded, ops) = input;
    let options = stratalloc_options {
        struct_size: size_of::<stratalloc_options>(),
        config: c"".as_ptr(),
        devices: ptr::null(),
        device_count: 0,
        software_bytes: DEVICE_BYTES,
    };
    let mut gpu = ptr::null_mut();
    let path = std::env::temp_dir().join(format!("stratalloc-fuzz-{}.trace", std::process::id()));
    let text = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the struct says its size, the pointers are those of locals, and nobody else uses the allocator.
    unsafe {
        assert_eq!(stratalloc_create(&options, &mut gpu), STRATALLOC_OK);
        if recorded {
            assert_eq!(stratalloc_trace_start(gpu, text.as_ptr()), STRATALLOC_OK);
        }
        let (live, freed) = (BTreeMap::new(), Vec::new());
        let mut shadow = Shadow { gpu, live, freed, tags: 1, filling: false, checkpoint: ptr::null_mut() };
        ops.iter().for_each(|op| shadow.step(op));
        shadow.step(&Op::Stats);
        shadow.step(&Op::Visit);
        if recorded {
            assert_eq!(stratalloc_trace_stop(gpu, ptr::null_mut()), STRATALLOC_OK);
            assert!(stratalloc_trace::Trace::load(&path).is_ok());
            let _ = std::fs::remove_file(&path);
        }
        stratalloc_checkpoint_destroy(shadow.checkpoint);
        stratalloc_destroy(gpu);
    }
});
