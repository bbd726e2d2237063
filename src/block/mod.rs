//! The block core: who has which range of an address space. Pure offsets: no pointer, no driver call, no lock, no unsafe code.
//!
//! Words, in the order in which one needs them:
//!
//! - A **node** is a range `[addr, addr + size)`. The nodes of a segment tile it in address order and know their
//!   neighbours. A node is *used*, *free* (mapped, may be handed out), a *hole* (nothing is mapped there) or a
//!   *ghost* (mapped, but its memory is served from another place now).
//! - An **owner** is whoever may use a free node at once: one lane (a stream, or a private pool's part of it), or
//!   [`Owner::SHARED`], which anyone may use. Two free neighbours coalesce unless two different lanes own them.
//! - A **stamp** is the owner's epoch when the node became free. Once the owner's clock has passed it, the node can be
//!   [shared](Arena::share). What a stamp means is the caller's business; here it is a number of which the larger wins.
//! - **Bins** hold the free nodes of one owner by size: two levels of bitmaps over doubly linked lists, as in TLSF (Masmano
//!   et al., 2004) and in Sebastian Aaltonen's OffsetAllocator, 32 bins to a doubling.
//! - A **slab** is a page, or a part of one, cut into equal **slots** of one **size class**.
#![forbid(unsafe_code)]

mod arena;
mod bins;
mod class;
mod growth;
mod slab;

pub use arena::{Arena, Node, NodeId, Owner, State};
pub use bins::Bin;
pub use class::{CLASS_SIZE_MAX, ClassId, block_granules};
pub use growth::Growth;
pub use slab::{Slab, set_bits};
