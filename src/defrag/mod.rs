//! Defragmentation: what is live changes its place so that memory becomes free. Pure plans; `pool` carries them out.
//!
//! | file | what |
//! |---|---|
//! | `mesh` | which pages can share memory, since their live slots are at different places |

mod mesh;

pub(crate) use mesh::mesh;
