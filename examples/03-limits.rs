//! Limits, tags and running out of memory: `cargo run --example 03-limits`. On the first GPU, or on the software device.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use stratalloc::{AllocRequest, Allocator, ByteSize, Config, Limit, OomAction, Result};

const MIB: u64 = 1 << 20;

fn main() -> Result<()> {
    // At most 64 MiB of the device, whatever else it has. STRATALLOC_CONF takes the same text: see `Config::from_env`.
    let config = Config::parse("limit:64MiB")?;
    let allocator = Allocator::builder().config(config).build()?;

    // What can never fit is told apart from what does not fit now.
    println!("{}", allocator.alloc(AllocRequest::new(65 * MIB)).unwrap_err());
    let weights = allocator.alloc(AllocRequest::new(40 * MIB))?;
    println!("{}", allocator.alloc(AllocRequest::new(32 * MIB)).unwrap_err());

    // A tag is a name for what memory is for, and can have a limit of its own.
    let cache = allocator.tag("cache")?;
    allocator.set_tag_limit(0, cache, Some((8 * MIB).into()))?;
    let cached = allocator.alloc(AllocRequest::new(8 * MIB).tag(cache))?.into_owned();
    let cached = Arc::new(Mutex::new(Some(cached)));
    println!("{}", allocator.alloc(AllocRequest::new(1).tag(cache)).unwrap_err());

    // An observer is called when there is no room, and may free something: here, the cache.
    let asked = Arc::new(AtomicBool::new(false));
    let observer = allocator.add_oom_observer({
        let (cached, asked) = (cached.clone(), asked.clone());
        move |shortage| {
            println!("observer: {} more are wanted", ByteSize(shortage.size));
            asked.store(true, Ordering::Relaxed);
            if cached.lock().take().is_some() { OomAction::Retry } else { OomAction::Fail }
        }
    });
    let block = allocator.alloc(AllocRequest::new(24 * MIB))?;
    println!("{} at {}, after the cache was dropped", ByteSize(block.size()), block.ptr());
    assert!(asked.load(Ordering::Relaxed) && allocator.remove_oom_observer(observer));

    // A limit can be changed, but not to less than is in use.
    println!("{}", allocator.set_limit(0, Limit::Bytes(ByteSize::mib(32))).unwrap_err());
    drop((weights, block));
    allocator.set_limit(0, Limit::Bytes(ByteSize::mib(32)))?;
    println!("{} held under the new limit", ByteSize(allocator.stats(0)?.reserved.current));
    Ok(())
}
