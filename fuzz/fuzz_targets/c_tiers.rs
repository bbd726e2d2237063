//! Random calls of the C functions that move memory, good and bad, against a shadow model: what lives, what is pinned, whether all sleeps, and what the
//! bytes are.
#![no_main]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::ptr;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use stratalloc_c::blocks::*;
use stratalloc_c::defrag::*;
use stratalloc_c::device::*;
use stratalloc_c::handle::*;
use stratalloc_c::residency::*;
use stratalloc_c::stash::*;
use stratalloc_c::status::stratalloc_last_error;
use stratalloc_c::status::stratalloc_status::{self, *};
use stratalloc_c::tiers::*;

const DEFAULT: stratalloc_stream = ptr::null_mut();

#[derive(Debug, Arbitrary)]
enum Op {
    Plain { size: u32 },
    Evictable { size: u32, struct_size: u8 },
    Free { which: u8 },
    Write { which: u8, value: u8 },
    Check { which: u8 },
    Pin { which: u8, offset: u8 },
    Unpin { which: u8 },
    Prefetch { which: u8 },
    Offload { select: u8, which: u8 },
    Restore { select: u8, which: u8 },
    Sleep { otherwise: u8 },
    Wake,
    Stash { which: u8 },
    Fetch { which: u8 },
    Movable { size: u32 },
    Move { which: u8, value: u8 },
    Defragment,
    Compact,
}

struct Block {
    bytes: usize,
    evictable: bool,
    /// What all its bytes are, once they are known to be anything.
    value: Option<u8>,
    pins: Vec<*mut stratalloc_pinned>,
}

struct Stashed {
    handle: *mut stratalloc_stashed,
    bytes: usize,
    value: u8,
}

struct Movable {
    handle: *mut stratalloc_movable,
    bytes: usize,
    value: u8,
}

struct Shadow {
    gpu: *mut stratalloc_allocator,
    blocks: BTreeMap<u64, Block>,
    stashed: Vec<Stashed>,
    movable: Vec<Movable>,
}

/// A failure says something, and is one of these.
fn check_words(status: stratalloc_status, may: &[stratalloc_status]) {
    // SAFETY: the text ends in 0, and no call fails meanwhile.
    let words = unsafe { CStr::from_ptr(stratalloc_last_error()) }.to_string_lossy();
    assert!(status == STRATALLOC_OK || (words.len() > 10 && may.contains(&status)), "{status:?}: {words}");
}

/// There is no room, in one place or the other.
const SHORT: [stratalloc_status; 5] = [
    STRATALLOC_OUT_OF_MEMORY,
    STRATALLOC_NEVER_FITS,
    STRATALLOC_TIER_FULL,
    STRATALLOC_TIER_UNUSABLE,
    STRATALLOC_RESIDENCY,
];

impl Shadow {
    fn nth(&self, which: u8) -> Option<u64> {
        let count = self.blocks.len();
        self.blocks.keys().nth(usize::from(which) % count.max(1)).copied()
    }

    /// Bytes are there when what they came by has been waited for: giving free memory back does that.
    fn settle(&self) {
        // SAFETY: the handle lives.
        assert_eq!(unsafe { stratalloc_empty_cache(self.gpu, 0, ptr::null_mut()) }, STRATALLOC_OK);
    }

    /// All bytes of a block that is there.
    fn bytes(&self, at: u64, bytes: usize) -> &mut [u8] {
        self.settle();
        // SAFETY: the software device's memory is the process's own, the block lives, is there, and nothing is under way in it.
        unsafe { std::slice::from_raw_parts_mut(at as *mut u8, bytes) }
    }

    /// Does something with the bytes of a block, under a pin where it needs one. Whether it was there.
    fn with_bytes(&self, at: u64, then: impl FnOnce(&mut [u8])) -> bool {
        let block = &self.blocks[&at];
        let mut pin = ptr::null_mut();
        if block.evictable {
            // SAFETY: the handle lives, and the out-pointer is a local's.
            let status = unsafe { stratalloc_pin(self.gpu, at as *mut c_void, DEFAULT, &mut pin) };
            check_words(status, &SHORT);
            if status != STRATALLOC_OK {
                return false;
            }
        }
        then(self.bytes(at, block.bytes));
        // SAFETY: the pin is null or this one.
        unsafe { stratalloc_unpin(pin) };
        true
    }

    fn made(&mut self, status: stratalloc_status, out: *mut c_void, bytes: usize, evictable: bool) {
        if status == STRATALLOC_OK {
            self.blocks.insert(out as u64, Block { bytes, evictable, value: None, pins: Vec::new() });
        } else {
            assert!(out.is_null());
        }
    }

    fn which(&self, select: u8, which: u8) -> (u32, u64, Option<u64>) {
        let at = self.nth(which);
        match select % 4 {
            0 => (STRATALLOC_SELECT_ALL, 0, None),
            1 => (STRATALLOC_SELECT_TAG, 0, None),
            2 => (STRATALLOC_SELECT_BLOCK, at.unwrap_or(4096), at),
            _ => (77, 0, None),
        }
    }

    fn step(&mut self, op: &Op) {
        let gpu = self.gpu;
        let mut out: *mut c_void = ptr::without_provenance_mut(1);
        // SAFETY: the handle lives, out-pointers are those of locals, and structs say their true size or less.
        unsafe {
            match *op {
                Op::Plain { size } => {
                    let bytes = size as usize % (6 << 20) + 1;
                    let status = stratalloc_malloc(gpu, bytes, 0, DEFAULT, &mut out);
                    check_words(status, &SHORT);
                    self.made(status, out, bytes, false);
                }
                Op::Evictable { size, struct_size } => {
                    let bytes = size as usize % (6 << 20);
                    let mut request: stratalloc_request = std::mem::zeroed();
                    (request.struct_size, request.bytes) = (size_of::<stratalloc_request>(), bytes);
                    let mut how: stratalloc_evictable = std::mem::zeroed();
                    how.struct_size =
                        if struct_size < 64 { struct_size.into() } else { size_of::<stratalloc_evictable>() };
                    let status = stratalloc_alloc_evictable(gpu, &request, &how, &mut out);
                    let wrong = [STRATALLOC_INVALID_ARGUMENT, STRATALLOC_TIER_UNUSABLE];
                    let may = if bytes == 0 || how.struct_size < 16 { &wrong[..] } else { &SHORT[..] };
                    check_words(status, may);
                    assert!(bytes > 0 || status != STRATALLOC_OK);
                    self.made(status, out, bytes, true);
                }
                Op::Free { which } => {
                    let Some(at) = self.nth(which) else { return };
                    let status = stratalloc_free(gpu, at as *mut c_void);
                    let pinned = !self.blocks[&at].pins.is_empty();
                    assert_eq!(status, if pinned { STRATALLOC_RESIDENCY } else { STRATALLOC_OK });
                    if !pinned {
                        self.blocks.remove(&at);
                    }
                }
                Op::Write { which, value } => {
                    let Some(at) = self.nth(which) else { return };
                    if self.with_bytes(at, |bytes| bytes.fill(value)) {
                        self.blocks.get_mut(&at).unwrap().value = Some(value);
                    }
                }
                Op::Check { which } => {
                    let Some(at) = self.nth(which) else { return };
                    if let Some(value) = self.blocks[&at].value {
                        self.with_bytes(at, |bytes| assert!(bytes.iter().all(|&byte| byte == value), "bytes differ"));
                    }
                }
                Op::Pin { which, offset } => {
                    let Some(at) = self.nth(which) else { return };
                    let mut pin = ptr::without_provenance_mut(1);
                    let status = stratalloc_pin(gpu, (at + u64::from(offset)) as *mut c_void, DEFAULT, &mut pin);
                    let right = self.blocks[&at].evictable && offset == 0;
                    // Another block may begin there.
                    if right {
                        check_words(status, &SHORT);
                    } else if offset == 0 || self.blocks[&at].bytes > usize::from(offset) {
                        assert!(matches!(status, STRATALLOC_INVALID_POINTER | STRATALLOC_TIER_UNUSABLE));
                    }
                    assert_eq!(status != STRATALLOC_OK, pin.is_null());
                    if status == STRATALLOC_OK {
                        self.blocks.get_mut(&(at + u64::from(offset))).unwrap().pins.push(pin);
                    }
                }
                Op::Unpin { which } => {
                    let pinned: Vec<u64> =
                        self.blocks.iter().filter(|(_, block)| !block.pins.is_empty()).map(|(&at, _)| at).collect();
                    if let Some(at) = pinned.get(usize::from(which) % pinned.len().max(1)) {
                        stratalloc_unpin(self.blocks.get_mut(at).unwrap().pins.pop().unwrap());
                    }
                }
                Op::Prefetch { which } => {
                    let Some(at) = self.nth(which) else { return };
                    let status = stratalloc_prefetch(gpu, at as *mut c_void, DEFAULT);
                    if self.blocks[&at].evictable {
                        check_words(status, &SHORT);
                    } else {
                        assert!(matches!(status, STRATALLOC_INVALID_POINTER | STRATALLOC_TIER_UNUSABLE));
                    }
                }
                Op::Offload { select, which } => {
                    let (select, which, at) = self.which(select, which);
                    let status = stratalloc_offload(gpu, select, which);
                    self.moved(status, select, at);
                }
                Op::Restore { select, which } => {
                    let (select, which, at) = self.which(select, which);
                    let status = stratalloc_restore(gpu, select, which);
                    self.moved(status, select, at);
                }
                Op::Sleep { otherwise } => {
                    let plan = stratalloc_sleep_plan {
                        struct_size: size_of::<stratalloc_sleep_plan>(),
                        otherwise: (u32::from(otherwise) % 4).min(3),
                        tag_count: 0,
                        tags: ptr::null(),
                    };
                    let status = stratalloc_sleep(gpu, &plan);
                    let wrong = plan.otherwise > 2;
                    check_words(
                        status,
                        if wrong { &[STRATALLOC_INVALID_ARGUMENT, STRATALLOC_TIER_UNUSABLE][..] } else { &SHORT },
                    );
                    assert!(!wrong || status != STRATALLOC_OK);
                    if plan.otherwise == STRATALLOC_SLEEP_DROP && !wrong {
                        // Where it fails half way, nobody can say whose bytes have gone.
                        self.blocks.values_mut().filter(|block| block.evictable).for_each(|block| block.value = None);
                    }
                }
                Op::Wake => check_words(stratalloc_wake(gpu, ptr::null(), 0), &SHORT),
                Op::Stash { which } => {
                    let Some(at) = self.nth(which) else { return };
                    let (bytes, Some(value)) = (self.blocks[&at].bytes, self.blocks[&at].value) else { return };
                    let mut handle = ptr::null_mut();
                    let status = stratalloc_stash(gpu, at as *mut c_void, bytes, DEFAULT, ptr::null(), &mut handle);
                    check_words(status, &SHORT);
                    if status == STRATALLOC_OK {
                        let mut may = false;
                        check_words(stratalloc_stash_may_free(handle, true, &mut may), &[]);
                        assert!(may);
                        self.stashed.push(Stashed { handle, bytes, value });
                    }
                }
                Op::Fetch { which } => {
                    if self.stashed.is_empty() {
                        return;
                    }
                    let Stashed { handle, bytes, value } =
                        self.stashed.swap_remove(usize::from(which) % self.stashed.len());
                    if stratalloc_malloc(gpu, bytes, 0, DEFAULT, &mut out) == STRATALLOC_OK {
                        check_words(stratalloc_stash_fetch(handle, out, DEFAULT), &[]);
                        check_words(stratalloc_stash_order(handle, DEFAULT), &[]);
                        assert!(
                            self.bytes(out as u64, bytes).iter().all(|&byte| byte == value),
                            "stashed bytes differ"
                        );
                        assert_eq!(stratalloc_free(gpu, out), STRATALLOC_OK);
                    }
                    stratalloc_stash_drop(handle);
                }
                Op::Movable { size } => {
                    let bytes = size as usize % (3 << 20) + 1;
                    let mut request: stratalloc_request = std::mem::zeroed();
                    (request.struct_size, request.bytes) = (size_of::<stratalloc_request>(), bytes);
                    let mut handle = ptr::null_mut();
                    let status = stratalloc_alloc_movable(gpu, &request, &mut handle);
                    check_words(status, &SHORT);
                    if status == STRATALLOC_OK {
                        self.write_movable(handle, bytes, 0x11);
                        self.movable.push(Movable { handle, bytes, value: 0x11 });
                    }
                }
                Op::Move { which, value } => {
                    let index = usize::from(which) % self.movable.len().max(1);
                    let Some(&Movable { handle, bytes, value: before }) = self.movable.get(index) else { return };
                    let mut at = ptr::null_mut();
                    assert_eq!(stratalloc_movable_pin(handle, &mut at), STRATALLOC_OK);
                    assert!(self.bytes(at as u64, bytes).iter().all(|&byte| byte == before), "moved bytes differ");
                    assert_eq!(stratalloc_movable_unpin(handle), STRATALLOC_OK);
                    assert_eq!(stratalloc_movable_unpin(handle), STRATALLOC_INVALID_ARGUMENT);
                    if value < 64 {
                        assert_eq!(stratalloc_movable_free(handle), STRATALLOC_OK);
                        self.movable.swap_remove(index);
                    } else {
                        self.write_movable(handle, bytes, value);
                        self.movable[index].value = value;
                    }
                }
                Op::Defragment => {
                    check_words(stratalloc_defragment(gpu, 0, ptr::null(), ptr::null_mut()), &[]);
                }
                Op::Compact => check_words(stratalloc_compact(gpu, 0, ptr::null(), ptr::null_mut()), &[]),
            }
        }
    }

    /// What came of a call that moves blocks.
    fn moved(&self, status: stratalloc_status, select: u32, at: Option<u64>) {
        match (select, at) {
            (77, _) => assert!(matches!(status, STRATALLOC_INVALID_ARGUMENT | STRATALLOC_TIER_UNUSABLE)),
            (STRATALLOC_SELECT_BLOCK, None) => assert_ne!(status, STRATALLOC_OK),
            (STRATALLOC_SELECT_BLOCK, Some(at)) if !self.blocks[&at].evictable => {
                assert!(matches!(status, STRATALLOC_INVALID_POINTER | STRATALLOC_TIER_UNUSABLE));
            }
            _ => check_words(status, &SHORT),
        }
    }

    fn write_movable(&self, handle: *mut stratalloc_movable, bytes: usize, value: u8) {
        let mut at = ptr::null_mut();
        // SAFETY: the handle lives, and the out-pointer is a local's.
        unsafe {
            assert_eq!(stratalloc_movable_pin(handle, &mut at), STRATALLOC_OK);
            self.bytes(at as u64, bytes).fill(value);
            assert_eq!(stratalloc_movable_unpin(handle), STRATALLOC_OK);
        }
    }
}

fuzz_target!(|input: (u8, Vec<Op>)| {
    let (host, ops) = input;
    let configs = [
        c"",
        c"tiers:host=8MiB,tier_workers:0",
        c"tiers:host=64MiB,tier_workers:0",
        c"tiers:host=32MiB,tier_policy:s3fifo,tier_workers:0",
    ];
    let options = stratalloc_options {
        struct_size: size_of::<stratalloc_options>(),
        config: configs[usize::from(host) % configs.len()].as_ptr(),
        devices: ptr::null(),
        device_count: 0,
        software_bytes: 24 << 20,
    };
    let mut gpu = ptr::null_mut();
    // SAFETY: the struct says its size, the pointers are those of locals, and nobody else uses the allocator.
    unsafe {
        assert_eq!(stratalloc_create(&options, &mut gpu), STRATALLOC_OK);
        let mut shadow = Shadow { gpu, blocks: BTreeMap::new(), stashed: Vec::new(), movable: Vec::new() };
        ops.iter().for_each(|op| shadow.step(op));
        for stashed in shadow.stashed.drain(..) {
            stratalloc_stash_drop(stashed.handle);
        }
        for movable in shadow.movable.drain(..) {
            assert_eq!(stratalloc_movable_free(movable.handle), STRATALLOC_OK);
        }
        for (at, block) in std::mem::take(&mut shadow.blocks) {
            block.pins.into_iter().for_each(|pin| stratalloc_unpin(pin));
            assert_eq!(stratalloc_free(gpu, at as *mut c_void), STRATALLOC_OK);
        }
        let mut stats: stratalloc_tier_stats = std::mem::zeroed();
        stats.struct_size = size_of::<stratalloc_tier_stats>();
        assert_eq!(stratalloc_get_tier_stats(gpu, 0, &mut stats), STRATALLOC_OK);
        assert_eq!((stats.blocks, stats.away), (0, 0));
        stratalloc_destroy(gpu);
    }
});
