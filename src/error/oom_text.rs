//! A shortage in words: one line for logs, and a page for whoever has to find out.

use std::fmt::{Display, Formatter, Result};

use super::{OomBlock, OomCause, OomExplanation, OomGap, OomNeighbour, OomRemedy, OutOfMemory};
use crate::units::{ByteSize, StreamId};

/// Blocks named in one line.
const BLOCKS_NAMED: usize = 4;
/// Things to do that are listed.
const ADVICE_TOLD: usize = 8;

impl Display for OutOfMemory {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "out of memory on device {}: no room for {}", self.device, ByteSize(self.size))?;
        write!(f, "; {} of {} reserved", ByteSize(self.reserved), ByteSize(self.capacity))?;
        if let Some(limit) = self.limit {
            write!(f, " (limit {})", ByteSize(limit))?;
        }
        write!(
            f,
            ", {} live, {} cached (largest block {}), {} waiting for streams",
            ByteSize(self.live),
            ByteSize(self.cached),
            ByteSize(self.largest_free),
            ByteSize(self.pending)
        )?;
        if let Some(driver) = &self.driver {
            write!(f, "; the driver: {driver}")?;
        }
        write!(f, "; {}", self.explanation.verdict())
    }
}

impl Display for OomCause {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            OomCause::LargerThanDevice => "the request is larger than the device",
            OomCause::LargerThanLimit => "the request is larger than the limit",
            OomCause::TagLimit => "the limit of the request's tag is reached",
            OomCause::Limit => "the limit on reserved memory is reached",
            OomCause::OtherProcesses => "other processes hold what is missing",
            OomCause::InUse => "live blocks fill the memory",
            OomCause::Streams => "what is free waits for its streams, and the request was not to wait",
            OomCause::NoGrow => "the request was to take nothing from the device (NO_GROW)",
            OomCause::Capture => "a capture is under way, in which nothing may be waited for",
            OomCause::PrivatePool => "a private pool keeps what is missing",
            OomCause::FragmentedSegments => {
                "enough is free, but in pieces, which cannot be joined without virtual memory"
            }
            OomCause::FragmentedChunks => "enough is free, but in pieces of chunks that live blocks share",
            OomCause::FragmentedSlabs => "enough is free, but as slots of slabs that are in use",
            OomCause::Alignment => "the alignment does not fit",
            OomCause::Dedicated => "there is no room for a physical allocation of its own",
            OomCause::Persistent => "there is no room where long-lived blocks lie",
            OomCause::ChunkSize => "chunks are too large for what is left",
            OomCause::Mappings => "the driver makes no more mappings",
            OomCause::Addresses => "no addresses are left",
            OomCause::HostMemory => "the host has no memory for metadata",
            OomCause::DriverRefused => "the driver refused, though it says that there is room",
            OomCause::DriverFailed => "the driver failed",
            OomCause::DriverDead => "the CUDA context is broken",
        })
    }
}

fn streams(streams: &[StreamId]) -> String {
    let named: Vec<String> = streams.iter().take(BLOCKS_NAMED).map(ToString::to_string).collect();
    let more = streams.len().saturating_sub(BLOCKS_NAMED);
    named.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// Without the names of tags.
impl Display for OomRemedy {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(&self.say(&|tag| format!("tag {tag}")))
    }
}

impl OomRemedy {
    fn say(&self, tag_name: &dyn Fn(u8) -> String) -> String {
        let size = |bytes: &u64| format!("{} ({bytes} bytes)", ByteSize(*bytes));
        let blocks = |blocks: &[OomBlock]| {
            let named: Vec<String> = blocks.iter().take(BLOCKS_NAMED).map(|block| block.say(tag_name)).collect();
            let more = blocks.len().saturating_sub(BLOCKS_NAMED);
            named.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
        };
        match self {
            OomRemedy::Retry => "ask again".to_string(),
            OomRemedy::Synchronize(these) => format!("synchronise {}", streams(these)),
            OomRemedy::AllowGrowth => "ask without NO_GROW".to_string(),
            OomRemedy::EmptyCache => "empty the cache".to_string(),
            OomRemedy::Defragment => "wait for the device, and defragment (Quiescent::defragment)".to_string(),
            OomRemedy::EndCapture => "end the capture first".to_string(),
            OomRemedy::LowerAlignment(to) => format!("ask for an alignment of {to}"),
            OomRemedy::DropPersistent => "ask without Lifetime::Persistent".to_string(),
            OomRemedy::DropDedicated => "ask without DEDICATED".to_string(),
            OomRemedy::LendPool(pool) => format!("let private pool {pool} lend"),
            OomRemedy::RaiseLimit(to) => format!("raise the limit to {} or more", size(to)),
            OomRemedy::RaiseTagLimit { tag, to } => {
                format!("raise the limit of {} to {} or more", tag_name(*tag), size(to))
            }
            OomRemedy::FreePins(these) => format!("free what keeps free memory apart: {}", blocks(these)),
            OomRemedy::ReleasePool(pool) => format!("release private pool {pool}: destroy its graphs"),
            OomRemedy::Configure { key, value } => format!("start with STRATALLOC_CONF={key}:{value}"),
            OomRemedy::FreeElsewhere(bytes) => format!("free {} in other processes", size(bytes)),
            OomRemedy::Split(piece) => format!("ask for pieces of at most {}", size(piece)),
            OomRemedy::Free(these) => format!("free {}", blocks(these)),
            OomRemedy::FreeTag(tag) => format!("free the blocks of {}", tag_name(*tag)),
            OomRemedy::AskForLess(most) => format!("ask for at most {}", size(most)),
            OomRemedy::FreeHostMemory => "give the process more host memory or address space (ulimit -v)".to_string(),
            OomRemedy::Restart => "start the process again: nothing else helps".to_string(),
        }
    }
}

impl OomBlock {
    fn say(&self, tag_name: &dyn Fn(u8) -> String) -> String {
        let mut text = format!("{} at {} ({}", ByteSize(self.size), self.ptr, self.stream);
        if self.tag != 0 {
            text += &format!(", {}", tag_name(self.tag));
        }
        if let Some(pool) = self.pool {
            text += &format!(", private pool {pool}");
        }
        if self.dedicated {
            text += ", dedicated";
        }
        if self.pending {
            text += ", freed, waiting for recorded streams";
        }
        if let Some((events, us)) = self.age {
            text += &format!(", {events} events and {:.3} s old", us as f64 / 1e6);
        }
        text + ")"
    }
}

impl OomGap {
    fn say(&self, tag_name: &dyn Fn(u8) -> String) -> String {
        let [below, above] = self.beside.map(|beside| match beside {
            OomNeighbour::Block(block) => block.say(tag_name),
            OomNeighbour::Slab { slot_size, taken, slots } => {
                format!("a slab of {} with {taken} of {slots} slots taken", ByteSize(slot_size))
            }
            OomNeighbour::Foreign { stream, pool: None, size } => {
                format!("{} that {stream} has free and not passed", ByteSize(size))
            }
            OomNeighbour::Foreign { pool: Some(pool), size, .. } => {
                format!("{} that private pool {pool} has free", ByteSize(size))
            }
            OomNeighbour::Edge => "the edge".to_string(),
        });
        format!("{} at {}, between {below} and {above}", ByteSize(self.size), self.ptr)
    }
}

impl OomExplanation {
    fn tag_name(&self, tag: u8) -> String {
        match self.tags.iter().find(|known| known.tag == tag) {
            _ if tag == 0 => "no tag".to_string(),
            Some(known) if !known.name.is_empty() => format!("tag '{}'", known.name),
            _ => format!("tag {tag}"),
        }
    }

    /// Why, and the cheapest thing to do: one line.
    pub fn verdict(&self) -> String {
        let tag_name = |tag| self.tag_name(tag);
        match self.remedy() {
            Some(remedy) => format!("{}; {}", self.cause, remedy.say(&tag_name)),
            None => match self.advice.first() {
                Some(first) if first.frees == 0 => format!("{}; {}", self.cause, first.remedy.say(&tag_name)),
                _ => format!("{}; no single thing is known to help", self.cause),
            },
        }
    }

    /// A line of the table, unless there is nothing in it.
    fn line(f: &mut Formatter<'_>, name: &str, items: &[String]) -> Result {
        if items.is_empty() { Ok(()) } else { write!(f, "\n  {name:<10}{}", items.join(", ")) }
    }
}

/// Less than 40 lines.
impl Display for OomExplanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let tag_name = |tag| self.tag_name(tag);
        let request = &self.request;
        writeln!(f, "no room for {} on device {}: {}", ByteSize(request.size), self.device, self.verdict())?;
        let mut asked = vec![format!("{} bytes", request.size), request.stream.to_string()];
        if request.alignment > crate::units::GRANULE {
            asked.push(format!("aligned to {}", request.alignment));
        }
        if request.tag != 0 {
            asked.push(tag_name(request.tag));
        }
        asked.extend(request.pool.map(|pool| format!("private pool {pool}")));
        for (is, name) in
            [(!request.may_grow, "NO_GROW"), (request.persistent, "persistent"), (request.dedicated, "DEDICATED")]
        {
            asked.extend(is.then(|| name.to_string()));
        }
        write!(f, "  {:<10}{}", "asked", asked.join(", "))?;
        let sized = |list: &[(&str, Option<u64>)]| -> Vec<String> {
            let known = list.iter().filter_map(|&(name, bytes)| Some((name, bytes?)));
            known.map(|(name, bytes)| format!("{} {name}", ByteSize(bytes))).collect()
        };
        let device = [
            ("in all", Some(self.capacity)),
            ("limit", self.limit),
            ("reserved", Some(self.reserved)),
            ("free", self.device_free),
            ("elsewhere", self.elsewhere),
            ("missing", Some(self.missing)),
        ];
        OomExplanation::line(f, "device", &sized(&device))?;
        let tags = self.tags.iter().filter(|tag| tag.bytes > 0);
        let tags = tags.map(|tag| format!("{} {} in {} blocks", tag_name(tag.tag), ByteSize(tag.bytes), tag.blocks));
        OomExplanation::line(
            f,
            "live",
            &[ByteSize(self.live).to_string()].into_iter().chain(tags).collect::<Vec<_>>(),
        )?;
        let some = |bytes: u64| Some(bytes).filter(|&bytes| bytes > 0);
        let free = [
            ("own", some(self.free.own)),
            ("anyone's", some(self.free.shared)),
            ("not passed by their streams", some(self.free.not_passed)),
            ("in private pools", some(self.free.private)),
            ("waiting for recorded streams", some(self.free.pending)),
            ("in slabs", some(self.free.slots)),
            ("in magazines", some(self.free.magazines)),
            ("unmapped", some(self.free.reserve)),
        ];
        OomExplanation::line(f, "not live", &sized(&free))?;
        let waiting = self.waiting.iter().map(|(stream, bytes)| format!("{} for {stream}", ByteSize(*bytes)));
        OomExplanation::line(f, "waiting", &waiting.collect::<Vec<_>>())?;
        let pools = self.pools.iter();
        let pools = pools.map(|pool| format!("{} {} free, {} users", pool.pool, ByteSize(pool.free), pool.users));
        OomExplanation::line(f, "pools", &pools.collect::<Vec<_>>())?;
        let tried = self.rungs.iter().map(|rung| {
            let error = rung.error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
            format!("{} +{}{error}", rung.name, ByteSize(rung.gained))
        });
        OomExplanation::line(f, "tried", &tried.collect::<Vec<_>>())?;
        if let Some(tiers) = &self.tiers {
            let sizes = [("evicted", tiers.evicted), ("evictable still", tiers.evictable), ("pinned", tiers.pinned)];
            let sizes = sizes.map(|(name, bytes)| format!("{} {name}", ByteSize(bytes)));
            OomExplanation::line(f, "tiers", &sizes.into_iter().chain(tiers.failure.clone()).collect::<Vec<_>>())?;
        }
        OomExplanation::line(f, "driver", &self.driver.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        for (index, gap) in self.gaps.iter().enumerate() {
            OomExplanation::line(f, if index == 0 { "gaps" } else { "" }, &[gap.say(&tag_name)])?;
        }
        for (index, advice) in self.advice.iter().take(ADVICE_TOLD).enumerate() {
            let mut text = advice.remedy.say(&tag_name);
            if advice.frees > 0 {
                text += &format!(": {}", ByteSize(advice.frees));
            }
            if !advice.suffices {
                text += ", not known to suffice";
            }
            OomExplanation::line(f, if index == 0 { "to do" } else { "" }, &[text])?;
        }
        if self.is_partial {
            write!(f, "\n  not all blocks were looked at")?;
        }
        Ok(())
    }
}
