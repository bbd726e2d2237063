//! A trace on an allocator of host memory, or of offsets.

use std::fs;
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

/// What mimalloc's sizes are divided by.
const SHRINK: u64 = 2048;

/// What offset-allocator counts in: its sizes have 32 bits.
const GRANULE: u64 = 512;

pub(super) struct Options {
    trace: PathBuf,
    setting: String,
    passes: usize,
    threads: usize,
}

impl Options {
    pub(super) fn parse(words: &[&str]) -> Result<Options, String> {
        let mut options = Options { trace: PathBuf::new(), setting: String::new(), passes: 1, threads: 1 };
        for pair in words.chunks(2) {
            let [name, value] = pair else { return Err(format!("{} wants a value", pair[0])) };
            let number =
                || value.parse().ok().filter(|&n| n > 0).ok_or_else(|| format!("{name}: '{value}' is no number"));
            match *name {
                "--trace" => options.trace = PathBuf::from(value),
                "--setting" => options.setting = (*value).to_string(),
                "--passes" => options.passes = number()?,
                "--threads" => options.threads = number()?,
                other => return Err(format!("unknown option '{other}'")),
            }
        }
        Ok(options)
    }
}

/// An operation of the decoded trace.
enum Op {
    Alloc { id: usize, bytes: u64 },
    Free { id: usize },
}

/// What is timed.
trait Heap {
    type Block: Copy;
    fn alloc(&mut self, bytes: u64) -> Option<Self::Block>;
    fn free(&mut self, block: Self::Block);
}

struct Mimalloc;

impl Heap for Mimalloc {
    type Block = *mut std::ffi::c_void;

    #[inline]
    fn alloc(&mut self, bytes: u64) -> Option<Self::Block> {
        // SAFETY: mi_malloc takes any size.
        let block = unsafe { libmimalloc_sys::mi_malloc(bytes.div_ceil(SHRINK) as usize) };
        (!block.is_null()).then_some(block)
    }

    #[inline]
    fn free(&mut self, block: Self::Block) {
        // SAFETY: a trace frees each of its blocks once, and `block` is what mi_malloc returned for it.
        unsafe { libmimalloc_sys::mi_free(block) };
    }
}

struct Offsets(offset_allocator::Allocator);

impl Heap for Offsets {
    type Block = offset_allocator::Allocation;

    #[inline]
    fn alloc(&mut self, bytes: u64) -> Option<Self::Block> {
        self.0.allocate(u32::try_from(bytes.div_ceil(GRANULE)).ok()?)
    }

    #[inline]
    fn free(&mut self, block: Self::Block) {
        self.0.free(block);
    }
}

/// Replays. Whether there was room.
pub(super) fn run(options: &Options) -> Result<bool, String> {
    let (ops, allocs) = load(options)?;
    match options.setting.as_str() {
        "mimalloc" => Ok(passes(options, &ops, allocs, || Mimalloc)),
        "offset-allocator" if options.threads > 1 => Err("offset-allocator is for one thread".to_string()),
        "offset-allocator" => {
            let memory = std::env::var("SOFTCUDA_MEMORY").ok().and_then(|text| text.parse::<u64>().ok());
            let memory = memory.ok_or("SOFTCUDA_MEMORY is to say how many bytes there are")?;
            let granules = u32::try_from(memory / GRANULE).map_err(|_| "more than 2 TiB".to_string())?;
            Ok(passes(options, &ops, allocs, || Offsets(offset_allocator::Allocator::new(granules))))
        }
        other => Err(format!("there is no setting '{other}': mimalloc, offset-allocator")),
    }
}

/// Passes over the trace, and the time of each from the first thread's start to the last one's end.
fn passes<H: Heap>(options: &Options, ops: &[Op], allocs: usize, heap: impl Fn() -> H + Sync) -> bool {
    let (heap, gate) = (&heap, &Barrier::new(options.threads));
    let one = move || {
        let mut heap = heap();
        let mut blocks: Vec<Option<H::Block>> = vec![None; allocs];
        let mut spans = Vec::new();
        for _ in 0..options.passes {
            gate.wait();
            let start = Instant::now();
            let done = follow(&mut heap, ops, &mut blocks);
            spans.push((start, Instant::now(), done));
            blocks.iter_mut().filter_map(Option::take).for_each(|block| heap.free(block));
        }
        spans
    };
    let threads: Vec<Vec<(Instant, Instant, bool)>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads).map(|_| scope.spawn(one)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(spans) => spans,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(join).collect()
    });
    for pass in 0..options.passes {
        let spans = threads.iter().map(|spans| spans[pass]);
        let start = spans.clone().map(|span| span.0).min();
        let end = spans.map(|span| span.1).max();
        let time = start.zip(end).map_or(0.0, |(start, end)| (end - start).as_nanos() as f64);
        println!("pass_ns {time:.1}");
    }
    threads.iter().flatten().all(|span| span.2)
}

/// One pass. Whether there was room.
fn follow<H: Heap>(heap: &mut H, ops: &[Op], blocks: &mut [Option<H::Block>]) -> bool {
    for op in ops {
        match *op {
            Op::Alloc { id, bytes } => match heap.alloc(bytes) {
                Some(block) => blocks[id] = Some(block),
                None => return false,
            },
            Op::Free { id } => {
                if let Some(block) = blocks[id].take() {
                    heap.free(block);
                }
            }
        }
    }
    true
}

/// The allocations and frees of a decoded trace; streams, markers and the rest mean nothing here.
fn load(options: &Options) -> Result<(Vec<Op>, usize), String> {
    let bytes =
        fs::read(&options.trace).map_err(|error| format!("cannot read {}: {error}", options.trace.display()))?;
    let records = bytes.strip_prefix(b"stratops").and_then(|rest| rest.get(24..));
    let records = records.ok_or_else(|| format!("not a decoded trace: {}", options.trace.display()))?;
    let (mut ops, mut allocs) = (Vec::new(), 0);
    for record in records.as_chunks::<16>().0 {
        let size = u64::from_ne_bytes(record[..8].try_into().unwrap_or_default());
        let id = u32::from_ne_bytes(record[8..12].try_into().unwrap_or_default()) as usize;
        match record[14] {
            0 => {
                ops.push(Op::Alloc { id, bytes: size });
                allocs += 1;
            }
            1 => ops.push(Op::Free { id }),
            _ => {}
        }
    }
    Ok((ops, allocs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &str) -> (tempdir::Folder, Options) {
        let folder = tempdir::Folder::new();
        let (trace, ops) = (folder.path.join("t.trace"), folder.path.join("ops"));
        fs::write(&trace, text).unwrap();
        crate::decode::decode(&trace, &ops).unwrap();
        (folder, Options { trace: ops, setting: String::new(), passes: 2, threads: 1 })
    }

    mod tempdir {
        use std::path::PathBuf;
        use std::sync::atomic::{AtomicU32, Ordering};

        static NEXT: AtomicU32 = AtomicU32::new(0);

        pub(super) struct Folder {
            pub(super) path: PathBuf,
        }

        impl Folder {
            pub(super) fn new() -> Folder {
                let name = format!("peer-floor-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
                let path = std::env::temp_dir().join(name);
                std::fs::create_dir_all(&path).unwrap();
                Folder { path }
            }
        }

        impl Drop for Folder {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.path);
            }
        }
    }

    const TRACE: &str = "# stratalloc-trace 1\na 0 1000 0\na 1 600 0\nm x\nr 0 1\nf 0\na 2 512 1\n";

    #[test]
    fn a_decoded_trace_has_the_operations_of_the_trace() {
        let (_folder, options) = decoded(TRACE);
        let (ops, allocs) = load(&options).unwrap();
        let sizes: Vec<(usize, u64)> = ops
            .iter()
            .filter_map(|op| if let Op::Alloc { id, bytes } = *op { Some((id, bytes)) } else { None })
            .collect();
        assert_eq!((sizes, allocs, ops.len()), (vec![(0, 1000), (1, 600), (2, 512)], 3, 4));
    }

    #[test]
    fn there_is_room_or_there_is_not() {
        let (_folder, options) = decoded(TRACE);
        let (ops, allocs) = load(&options).unwrap();
        let offsets = |granules| passes(&options, &ops, allocs, || Offsets(offset_allocator::Allocator::new(granules)));
        assert!(offsets(64) && !offsets(3));
        let two = Options { threads: 2, ..options };
        assert!(passes(&two, &ops, allocs, || Mimalloc));
    }

    #[test]
    fn bad_input_is_named() {
        assert!(Options::parse(&["--passes", "0"]).is_err() && Options::parse(&["--trace"]).is_err());
        let (_folder, mut options) = decoded(TRACE);
        options.setting = "jemalloc".to_string();
        assert!(run(&options).unwrap_err().contains("jemalloc"));
        fs::write(&options.trace, "no").unwrap();
        assert!(run(&options).unwrap_err().contains("not a decoded trace"));
    }
}
