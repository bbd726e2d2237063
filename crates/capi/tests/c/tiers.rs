//! Evictable memory from C: `tiers.c`, under the sanitizers.

use super::toolchain::{Linked, SANITIZED, compile, missing, program, root, run};

#[test]
fn blocks_leave_and_come_back() {
    if missing() {
        return;
    }
    let compiled = compile(&root().join("crates/capi/tests/c/tiers.c"), SANITIZED, Linked::Shared);
    run("tiers", &mut program(&compiled));
}
