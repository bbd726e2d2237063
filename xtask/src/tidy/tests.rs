//! One violation of each rule, planted in a tree of its own, is found; a tree without any is clean.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::mask::Masked;
use super::{Violation, check};

/// A project in a temporary folder, removed when dropped.
struct Tree {
    root: PathBuf,
}

impl Tree {
    fn new(files: &[(&str, &str)]) -> Tree {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("xtask-tidy-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Tree { root }
    }

    fn violations(&self) -> Vec<Violation> {
        check(&self.root).1
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The one violation in these files is on this line and says this.
#[track_caller]
fn finds(files: &[(&str, &str)], line: usize, words: &str) {
    let found = Tree::new(files).violations();
    let right = matches!(found.as_slice(), [one] if one.line == line && one.message.contains(words));
    assert!(right, "expected {words:?} on line {line}, found {found:#?}");
}

#[track_caller]
fn is_clean(files: &[(&str, &str)]) {
    assert_eq!(Tree::new(files).violations(), []);
}

#[test]
fn modules_name_lower_ones_only() {
    let above = "`block` (rank 2) names `pool` (rank 4)";
    finds(&[("src/block/bins.rs", "\nuse crate::pool::Pool;")], 2, above);
    finds(&[("src/block/bins.rs", "use crate::{error, units::{DevicePtr,\n PAGE}, pool::{self, A}};")], 1, above);
    finds(&[("src/block/bins.rs", "fn f() { crate::pool::f() }")], 1, above);
    finds(&[("src/block/bins.rs", "use super::super::pool::Pool;")], 1, above);
    finds(&[("src/error/mod.rs", "use super::pool::Pool;")], 1, "`error` (rank 1) names `pool` (rank 4)");
    finds(&[("src/kv/mod.rs", "use crate::admit::A;")], 1, "only lower ranks");
    finds(&[("src/pool/mod.rs", "use crate::Allocator;")], 1, "`crate::Allocator` is no module");
    finds(&[("src/novelty.rs", "")], 1, "`novelty` has no rank");
    is_clean(&[
        ("src/lib.rs", "pub use crate::allocator::A; mod pool;"),
        ("src/pool/mod.rs", "use crate::{block, vm::V, stream}; use super::error; crate::trace!(1);"),
        ("src/pool/ladder.rs", "use super::{Pool, limits}; use super::super::vm; // crate::allocator"),
        ("src/block/slab.rs", "#[cfg(test)]\nmod tests { use crate::pool::Pool; }\n"),
        ("src/block/tests.rs", "use crate::pool::Pool;"),
        ("src/block/mod.rs", "#![forbid(unsafe_code)]"),
    ]);
}

#[test]
fn strangers_meet_in_the_pool() {
    finds(&[("src/vm/mod.rs", "use crate::block::Bins;")], 1, "meet in `pool` only");
    finds(&[("src/stream/mod.rs", "use crate::vm::V;")], 1, "`stream` (rank 3) names `vm` (rank 3)");
}

#[test]
fn cudarc_stays_in_the_driver() {
    finds(&[("src/pool/mod.rs", "\nuse cudarc::driver;")], 2, "may name cudarc");
    finds(&[("src/pool/mod.rs", "#[cfg(test)] mod a;\nuse cudarc::driver;")], 2, "may name cudarc");
    is_clean(&[("src/driver/cuda/mod.rs", "use cudarc::driver;"), ("src/interop.rs", "use cudarc::driver;")]);
}

#[test]
fn the_block_core_is_safe() {
    finds(&[("src/block/mod.rs", "//! #![forbid(unsafe_code)]\n")], 1, "must say #![forbid(unsafe_code)]");
}

#[test]
fn files_are_short() {
    finds(&[("benches/a.rs", &"\n".repeat(601))], 0, "601 lines");
    is_clean(&[("benches/a.rs", &"\n".repeat(600))]);
}

#[test]
fn unsafe_has_a_reason() {
    let none = "`unsafe` without a SAFETY comment";
    finds(&[("src/vm/a.rs", "fn f() {\n    unsafe { g() }\n}")], 2, none);
    finds(&[("src/vm/a.rs", "// SAFETY: of the line below\nfn f() {}\nunsafe impl Send for A {}")], 3, none);
    finds(&[("src/vm/a.rs", "/// Does it.\npub unsafe fn f() {}")], 2, none);
    finds(&[("src/vm/a.rs", "// SAFETY: far away\n\nunsafe extern \"C\" fn f() {}")], 3, none);
    is_clean(&[(
        "src/vm/a.rs",
        "/// # Safety\n/// The pointer is valid.\n#[inline]\npub unsafe fn f(g: unsafe extern \"C\" fn()) {\n    \
         // SAFETY: it is, as the caller promised,\n    // at length.\n    let a = b\n        .c(unsafe { g() });\n    \
         unsafe { g() } // SAFETY: as above.\n}\n// an unsafe { } comment\nconst A: &str = \"unsafe { }\";\n\
         #[unsafe(no_mangle)]\nfn h() {}\n",
    )]);
}

#[test]
fn documents_name_what_exists() {
    let code = ("src/pool/mod.rs", "pub struct Ladder; impl Ladder { fn climb(&self) {} } // Rope");
    let finds_in = |text: &str, words: &str| finds(&[code, ("README.md", text)], 1, words);
    finds_in("See `src/pool/rope.rs`.", "`src/pool/rope.rs` does not exist");
    finds_in("See `rope.rs`.", "`rope.rs` does not exist");
    finds_in("See `src/rope/`.", "`src/rope/` does not exist");
    finds_in("A `Rope` is", "there is no `Rope`");
    finds_in("`Ladder::descend`", "there is no `descend`");
    finds_in("call `descend()`", "there is no `descend`");
    finds_in("set `STRATALLOC_ROPE`", "nothing reads `STRATALLOC_ROPE`");
    let text = "`src/pool/` and `pool/mod.rs` and `mod.rs`, `Ladder::climb`, `climb()`, `cuMemMap`, `std::mem::swap`, \
                `max_size`, `malloc/free`, `cargo test`, `80GiB`\n```\nRope `Rope`\n```\n";
    is_clean(&[code, ("README.md", text), ("notes.md", "`Rope`")]);
}

#[test]
fn nothing_is_left_over() {
    finds(&[("src/vm/a.rs", concat!("fn f() {\n    to", "do!()\n}"))], 2, "is left over");
    finds(&[("README.md", concat!("\nFIX", "ME later"))], 2, "is left over");
    finds(&[("tests/a.sh", concat!("cd /ho", "me/me/project"))], 1, "folder of one machine");
    is_clean(&[
        ("src/vm/a.rs", concat!("const A: &str = \"to", "do!\";")),
        ("tests/a.sh", concat!("cd frame/wo", "rk/ && open https://host/ho", "me/x")),
    ]);
}

#[test]
fn code_and_comments_are_told_apart() {
    let masked = Masked::new("a('\\'', 'b, \"x\\\"//y\", r#\"z\"#) /* c /* d\n */ e */ f // g\n'h' i");
    assert_eq!(masked.code, "a(' ', 'b, \"\", \"\") \n f \n' ' i");
    assert_eq!(masked.comments, "/* c /* d\n */ e */// g\n");
}
