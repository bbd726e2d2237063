//! The ledger as other programs read it: `stratalloc_preload_ledger`.

use super::Kind;
use crate::state::Shim;

/// A device's figures. The C declaration is in the README.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct LedgerView {
    /// The size of this structure, set by the caller: fields beyond it are not written.
    pub size: usize,
    /// The limit in bytes; the device's memory where there is none.
    pub limit: u64,
    /// Device memory held.
    pub held: u64,
    /// Blocks that the program has from the allocator, and their bytes as asked for.
    pub live_count: u64,
    /// See `live_count`.
    pub live_bytes: u64,
    /// Blocks that were freed during a capture and wait for its end.
    pub set_aside: u64,
    /// Address space that the allocator has mapped.
    pub served_mapped: u64,
    /// Address space that the allocator has reserved.
    pub served_reserved: u64,
    /// Bytes of each kind.
    pub bytes: [u64; Kind::COUNT],
    /// Number of each kind.
    pub counts: [u64; Kind::COUNT],
}

impl LedgerView {
    /// A device's figures now.
    pub(crate) fn of(shim: &Shim, device: usize) -> LedgerView {
        let ledger = &shim.ledger;
        let live = shim.blocks.live_on(device);
        let served = shim.devices.of_ordinal(device).map(|served| served.gate.address_space());
        let (served_mapped, served_reserved) = served.unwrap_or_default();
        let mut view = LedgerView {
            size: size_of::<LedgerView>(),
            limit: ledger.limit_of(ledger.total(device)),
            held: ledger.held(device),
            live_count: live.count,
            live_bytes: live.bytes,
            set_aside: shim.captures.set_aside() as u64,
            served_mapped,
            served_reserved,
            ..LedgerView::default()
        };
        for (kind, _) in Kind::ALL {
            (view.bytes[kind as usize], view.counts[kind as usize]) = ledger.figure(device, kind);
        }
        view
    }
}
