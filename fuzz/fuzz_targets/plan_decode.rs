//! The decoder of plans: whatever the bytes, with a checksum that is right or not, steps or an error. What decodes encodes to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stratalloc::plan::{Layout, Room, decode, encode, solve};

fuzz_target!(|data: &[u8]| {
    let _ = decode(data);
    // The checksum would keep everything else from being looked at.
    let mut whole = b"stplan\r\n\x02\0\0\0".to_vec();
    whole.extend(data);
    let hash = whole
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    whole.extend(hash.to_le_bytes());
    let Ok(export) = decode(&whole) else { return };
    assert_eq!(encode(&export), whole);
    for step in &export.steps {
        let layout: Layout = solve(step, &[Room { from: 0, to: 1 << 47 }], &[]);
        assert!(layout.left_out > 0 || layout.top >= step.bound() * 512);
    }
});
