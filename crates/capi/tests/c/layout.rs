//! The compiler of C and that of Rust agree on every struct: sizes and the place of each field.

use std::fmt::Write;
use std::fs;
use std::mem::offset_of;

use stratalloc_c::blocks::{stratalloc_block, stratalloc_request};
use stratalloc_c::handle::stratalloc_options;
use stratalloc_c::observe::{stratalloc_event, stratalloc_shortage};
use stratalloc_c::pools::stratalloc_pool_id;
use stratalloc_c::residency::{stratalloc_tier, stratalloc_tier_stats};
use stratalloc_c::snapshot::stratalloc_segment;
use stratalloc_c::stats::{stratalloc_gauge, stratalloc_size_range, stratalloc_stats};
use stratalloc_c::tiers::{stratalloc_evictable, stratalloc_sleep_plan, stratalloc_sleep_tag};

use super::toolchain::{Linked, compile, missing, scratch};

macro_rules! layout {
    ($text:ident: $($name:ident { $($field:ident),* $(,)? })*) => {$(
        let (name, size) = (stringify!($name), size_of::<$name>());
        writeln!($text, "static_assert(sizeof({name}) == {size}, \"{name}\");").unwrap();
        $(
            let (field, at) = (stringify!($field), offset_of!($name, $field));
            writeln!($text, "static_assert(offsetof({name}, {field}) == {at}, \"{name}.{field}\");").unwrap();
        )*
        // A field that is missing above would not compile.
        let _ = |value: $name| { let $name { $($field: _),* } = value; };
    )*};
}

#[test]
fn structs_lie_as_the_header_says() {
    if missing() {
        return;
    }
    let mut text = "#include <assert.h>\n#include <stratalloc.h>\n".to_string();
    layout! { text:
        stratalloc_options { struct_size, config, devices, device_count, software_bytes }
        stratalloc_request { struct_size, bytes, alignment, device, tag, stream, flags, lifetime }
        stratalloc_pool_id { first, second }
        stratalloc_block { struct_size, address, bytes, requested, device, tag, stream, pool, state, is_dedicated }
        stratalloc_gauge { current, peak }
        stratalloc_size_range { up_to, allocs, frees, bytes_allocated, bytes_freed }
        stratalloc_stats {
            struct_size, live, active, reserved, cached, magazines, pending, reserve, limit, capacity, allocs, frees, out_of_memory,
            cleanup_failures, metadata, chunks, chunk_bytes, device_allocs, device_frees, synchronizations, largest_free, driver_calls,
            driver_ns, sizes, rungs,
        }
        stratalloc_segment {
            struct_size, device, address, bytes, requested, allocated, active, stream, pool, is_large, is_expandable, blocks, block_count,
        }
        stratalloc_event { struct_size, kind, device, address, bytes, stream, pool, tag, time_us }
        stratalloc_evictable { struct_size, codec, only_when_asked, recompute, context, drop_context, tier, recompute_ns }
        stratalloc_sleep_tag { tag, action }
        stratalloc_sleep_plan { struct_size, otherwise, tag_count, tags }
        stratalloc_tier_stats {
            struct_size, tiers, blocks, requested, resident, pinned, away, dropped, moving, evictions, evicted_bytes, drops, spills, restores,
            restored_bytes, recomputes, failures, stall_ns, metadata, device_synchronizations, asleep,
        }
        stratalloc_tier { struct_size, state, name, capacity, used, bytes_in, bytes_out }
        stratalloc_shortage { struct_size, device, requested, live, reserved, capacity, limit, driver_free, explanation }
    }
    text += "int main(void) { return STRATALLOC_INTERNAL == 14 && STRATALLOC_EVENT_FREE_DEFERRED == 8 ? 0 : 1; }\n";
    for name in ["layout.c", "layout.cpp"] {
        let source = scratch().join(name);
        fs::write(&source, text.replace("(void)", if name.ends_with('c') { "(void)" } else { "()" })).unwrap();
        compile(&source, "", Linked::Shared);
    }
}
