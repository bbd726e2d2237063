//! What a thread's requests are for, where they cannot say it themselves: those of torch, whose allocator functions know a size and a stream.

use std::cell::RefCell;

use stratalloc::tier::Evictable;
use stratalloc::{AllocFlags, AllocRequest, DevicePtr, ResidencyError, Tag};

use crate::handle::{get, stratalloc_allocator};
use crate::mode;
use crate::sized;
use crate::status::{Failure, Outcome, guard, stratalloc_status};
use crate::tiers::stratalloc_evictable;

/// So deep may a thread's tags be nested: more is a loop that never pops.
const DEPTH_MAX: usize = 1024;

/// One tag pushed, for one allocator.
struct Pushed {
    /// The handle's address: it is compared, never followed.
    allocator: usize,
    tag: Tag,
    /// Where the memory may leave the device.
    evictable: Option<Evictable>,
}

/// What a thread has pushed. A thread that ends takes it along.
#[derive(Default)]
struct Stack(Vec<Pushed>);

impl Stack {
    fn push(&mut self, pushed: Pushed) -> Outcome<()> {
        if self.0.len() >= DEPTH_MAX {
            return Err(Failure::argument(format!(
                "{DEPTH_MAX} tags are pushed already: stratalloc_pop_tag is missing"
            )));
        }
        if self.0.is_empty() {
            mode::count_tagging(true);
        }
        self.0.push(pushed);
        Ok(())
    }

    fn pop(&mut self, allocator: usize) -> Outcome<()> {
        let newest = self.0.iter().rposition(|pushed| pushed.allocator == allocator);
        let newest = newest.ok_or_else(|| Failure::argument("this thread has pushed no tag for this allocator"))?;
        self.0.remove(newest);
        if self.0.is_empty() {
            mode::count_tagging(false);
        }
        Ok(())
    }

    fn newest(&self, allocator: usize) -> Option<&Pushed> {
        self.0.iter().rfind(|pushed| pushed.allocator == allocator)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            mode::count_tagging(false);
        }
    }
}

thread_local! {
    static PUSHED: RefCell<Stack> = RefCell::default();
}

fn address(handle: &stratalloc_allocator) -> usize {
    std::ptr::from_ref(handle).addr()
}

/// Whether what a request gets may leave the device: not what a private pool serves, whose graphs replay with the addresses they have seen.
fn may_leave(handle: &stratalloc_allocator, request: &AllocRequest) -> Outcome<bool> {
    let is_common = (request.flags - AllocFlags::ZEROED).is_empty();
    Ok(is_common && handle.allocator.private_pool_of(request.device, request.stream)?.is_none())
}

/// Serves a request as the calling thread has said. One that says by itself what it is for, or wants memory of a special kind, is served as
/// it says.
pub(crate) fn serve(handle: &stratalloc_allocator, request: AllocRequest) -> Outcome<DevicePtr> {
    if !mode::is_tagging() || request.tag != Tag::NONE {
        return Ok(handle.allocator.raw_alloc(request)?);
    }
    let newest = |stack: &RefCell<Stack>| {
        stack.borrow().newest(address(handle)).map(|pushed| (pushed.tag, pushed.evictable.clone()))
    };
    // A thread that is ending has no tags any more.
    match PUSHED.try_with(newest).ok().flatten() {
        Some((tag, Some(evictable))) if may_leave(handle, &request)? => {
            Ok(handle.allocator.alloc_evictable(request.tag(tag), evictable)?)
        }
        Some((tag, _)) => Ok(handle.allocator.raw_alloc(request.tag(tag))?),
        None => Ok(handle.allocator.raw_alloc(request)?),
    }
}

/// From now on, and until `stratalloc_pop_tag`, what this thread requests of this allocator without a tag is for `tag`: by `stratalloc_malloc`, by
/// torch's functions, by `stratalloc_alloc` with tag 0. If `evictable` is not null, each such block is evictable, as by
/// `stratalloc_alloc_evictable`; `recompute` must be null there, since no one callback knows them all. A tag of 0 and null take that back
/// for a while. Requests served from private pools, and those with flags other than `STRATALLOC_ZEROED`, are not evictable. `STRATALLOC_TIER_UNUSABLE` where
/// evictable blocks are wanted and no tiers are configured.
/// May be nested. While any thread has tags pushed, every request takes some nanoseconds more.
///
/// # Safety
/// `allocator` is null or a handle; `evictable` is null or a struct of the size it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_push_tag(
    allocator: *mut stratalloc_allocator,
    tag: u32,
    evictable: *const stratalloc_evictable,
) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        let tag = handle.tag_of(tag)?;
        let evictable = if evictable.is_null() {
            None
        } else {
            // SAFETY: as the caller promises.
            let read = unsafe { sized::read(evictable) }?;
            if read.recompute.is_some() {
                return Err(Failure::argument(
                    "`recompute` of a tag's blocks: give it to each by stratalloc_alloc_evictable",
                ));
            }
            if (0..handle.allocator.device_count()).all(|device| !handle.allocator.has_tiers(device)) {
                return Err(stratalloc::Error::from(ResidencyError::NoTiers).into());
            }
            // SAFETY: as the caller promises.
            Some(unsafe { read.options() }?)
        };
        let pushed = Pushed { allocator: address(handle), tag, evictable };
        let pushed = PUSHED.try_with(|stack| stack.borrow_mut().push(pushed));
        pushed.unwrap_or_else(|_| Err(Failure::argument("this thread is ending")))
    })
}

/// Takes this thread's last `stratalloc_push_tag` for this allocator back. `STRATALLOC_INVALID_ARGUMENT` where there is none.
///
/// # Safety
/// `allocator` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn stratalloc_pop_tag(allocator: *mut stratalloc_allocator) -> stratalloc_status {
    guard(|| {
        // SAFETY: as the caller promises.
        let handle = unsafe { get(allocator) }?;
        let popped = PUSHED.try_with(|stack| stack.borrow_mut().pop(address(handle)));
        popped.unwrap_or_else(|_| Err(Failure::argument("this thread is ending")))
    })
}
