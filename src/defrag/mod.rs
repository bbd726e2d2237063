//! Defragmentation: what is live changes its place so that memory becomes free. Plans, which are pure; `pool` carries them out.
//!
//! | file | what |
//! |---|---|
//! | `mesh` | which pages can share memory, since their live slots are at different places |
//! | `compact` | which blocks to move, whose owners follow them, so that chunks become free |
//! | `movable` | these blocks, and who holds on to them |

mod compact;
mod mesh;
mod movable;

pub(crate) use compact::compact;
pub(crate) use mesh::mesh;
pub(crate) use movable::{Handle, Movables};
