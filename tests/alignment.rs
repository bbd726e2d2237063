//! Every block is at a multiple of the alignment that was asked for, whatever its size.

use stratalloc::{AllocRequest, Allocator, ByteSize, DeviceSpec};

#[test]
fn blocks_are_aligned_as_asked_for() {
    let allocator = Allocator::builder().device(DeviceSpec::Software(ByteSize::gib(1))).build().unwrap();
    for size in [1, 512, 3000, 60_000, 65_536, 65_537, 1 << 20, 3 << 20] {
        for shift in 0..=21 {
            let request = AllocRequest::new(size).alignment(1 << shift);
            // Several at a time, since the first is often aligned by chance.
            let ptrs: Vec<_> = (0..3).map(|_| allocator.raw_alloc(request).unwrap()).collect();
            for ptr in ptrs {
                assert_eq!(ptr.0 % (1 << shift), 0, "{size} bytes aligned to {}", 1 << shift);
                allocator.raw_free(ptr).unwrap();
            }
        }
    }
    allocator.validate(0).unwrap().unwrap();
}
