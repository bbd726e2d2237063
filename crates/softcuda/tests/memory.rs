//! Memory through the C interface: copies, fills, pointers, virtual memory, pools, arrays, sharing with another process.

mod common;

use std::process::Command;

use common::{
    ARRAYS, CHUNKS, Cuda, GRAPH, HOST, INVALID_VALUE, MANAGED, MAPPED, NOT_SUPPORTED, OUT_OF_MEMORY, PLAIN,
    POOL_RESERVED, POOL_USED, REGISTERED, RESERVED, SHARED, at, of, pattern,
};

const PAGE: usize = 2 << 20;

/// `CUmemAllocationProp`: pinned, as a file descriptor, on device 0.
const PROP: [u32; 8] = [1, 1, 1, 0, 0, 0, 0, 0];
/// `CUmemAccessDesc`: device 0, reading and writing.
const ACCESS: [u32; 3] = [1, 0, 3];

/// A mapped chunk: its address and handle.
fn mapped(cuda: &Cuda, handle: usize) -> usize {
    let ptr = cuda.get("cuMemAddressReserve", &[PAGE, 0, 0, 0]);
    cuda.ok("cuMemMap", &[ptr, PAGE, 0, handle, 0]);
    cuda.ok("cuMemSetAccess", &[ptr, PAGE, of(&ACCESS), 1]);
    ptr
}

fn attribute(cuda: &Cuda, attribute: usize, ptr: usize) -> usize {
    let mut value = 0usize;
    cuda.ok("cuPointerGetAttribute", &[at(&mut value), attribute, ptr]);
    value
}

scenarios! {
    copies_move_bytes, [], {
        let cuda = Cuda::start();
        let (a, b) = (cuda.alloc(1 << 20), cuda.alloc(1 << 20));
        let bytes = pattern(1 << 20, 1);
        cuda.write(a, &bytes);
        cuda.ok("cuMemcpyDtoD_v2", &[b, a, 1 << 20]);
        assert_eq!(cuda.read(b, 1 << 20), bytes);
        // Host to host, and by addresses alone.
        let mut copy = vec![0u8; 100];
        cuda.ok("cuMemcpy", &[at(&mut copy[0]), of(&bytes[7]), 100]);
        assert_eq!(copy, bytes[7..107]);
        // Pinned, asynchronous, on a stream of its own.
        let pinned = cuda.get("cuMemHostAlloc", &[4096, 0]);
        let stream = cuda.stream();
        cuda.ok("cuMemcpyDtoHAsync_v2", &[pinned, a + 512, 4096, stream]);
        cuda.ok("cuStreamSynchronize", &[stream]);
        // SAFETY: pinned memory of this size.
        assert_eq!(unsafe { std::slice::from_raw_parts(pinned as *const u8, 4096) }, &bytes[512..4608]);
        // The same memory, registered.
        let mut own = vec![0u8; 8192];
        cuda.ok("cuMemHostRegister_v2", &[at(&mut own[0]), 8192, 0]);
        cuda.fails("cuMemHostRegister_v2", &[at(&mut own[0]), 8192, 0], 712);
        cuda.ok("cuMemcpyDtoHAsync_v2", &[at(&mut own[0]), a, 8192, stream]);
        cuda.ok("cuStreamSynchronize", &[stream]);
        assert_eq!(own, bytes[..8192]);
        let held = cuda.account(0);
        assert_eq!((held[PLAIN], held[HOST], held[REGISTERED]), (2 << 20, 4096, 8192));
        cuda.ok("cuMemHostUnregister", &[at(&mut own[0])]);
        cuda.fails("cuMemHostUnregister", &[at(&mut own[0])], 713);
        cuda.ok("cuMemFreeHost", &[pinned]);
        cuda.ok("cuMemFree_v2", &[a]);
        cuda.ok("cuMemFree_v2", &[b]);
        assert_eq!(cuda.account(0)[..24], [0; 24]);
        // What is no memory is refused.
        cuda.fails("cuMemcpyHtoD_v2", &[a, of(&bytes[0]), 512], INVALID_VALUE);
        let c = cuda.alloc(512);
        cuda.fails("cuMemcpyHtoD_v2", &[c, 0x10, 512], INVALID_VALUE);
        cuda.fails("cuMemcpyDtoH_v2", &[at(&mut own[0]), c, 4096], INVALID_VALUE);
    }

    flat_and_solid_copies, [], {
        let cuda = Cuda::start();
        let mut pitch = 0usize;
        let mut ptr = 0usize;
        cuda.ok("cuMemAllocPitch_v2", &[at(&mut ptr), at(&mut pitch), 100, 8, 4]);
        assert_eq!(pitch, 512);
        let bytes = pattern(800, 3);
        // CUDA_MEMCPY2D: source host, destination device.
        let to = [0, 0, 1, of(&bytes[0]), 0, 0, 100, 0, 0, 2, 0, ptr, 0, pitch, 100, 8];
        cuda.ok("cuMemcpy2D_v2", &[of(&to)]);
        for row in 0..8 {
            assert_eq!(cuda.read(ptr + row * pitch, 100), bytes[row * 100..][..100]);
        }
        let mut back = vec![0u8; 800];
        let from = [0, 2, 2, 0, ptr, 0, pitch, 0, 0, 1, at(&mut back[0]), 0, 0, 100, 100, 6];
        cuda.ok("cuMemcpy2D_v2", &[of(&from)]);
        assert_eq!(back[..600], bytes[200..]);
        cuda.fails("cuMemcpy2D_v2", &[of(&[0, 0, 1, of(&bytes[0]), 0, 0, 50, 0, 0, 2, 0, ptr, 0, pitch, 100, 8])], INVALID_VALUE);
        cuda.fails("cuMemcpy2D_v2", &[of(&[0, 0, 3, 0, 0, 1, 0, 0, 0, 2, 0, ptr, 0, pitch, 100, 8])], NOT_SUPPORTED);
        // CUDA_MEMCPY3D within a device: two slices of two rows of ten.
        let dense = cuda.alloc(64);
        let solid = [0, 1, 0, 0, 2, 0, ptr, 0, 0, pitch, 4, 0, 0, 0, 0, 2, 0, dense, 0, 0, 10, 2, 10, 2, 2];
        cuda.ok("cuMemcpy3D_v2", &[of(&solid)]);
        let rows = [100, 200, 500, 600].map(|row| bytes[row..row + 10].to_vec()).concat();
        assert_eq!(cuda.read(dense, 40), rows);
    }

    fills_repeat_values, [], {
        let cuda = Cuda::start();
        let ptr = cuda.alloc(4096);
        cuda.ok("cuMemsetD8_v2", &[ptr, 0, 4096]);
        cuda.ok("cuMemsetD32_v2", &[ptr, 0x0102_0304, 4]);
        cuda.ok("cuMemsetD16_v2", &[ptr + 16, 0xabcd, 2]);
        cuda.ok("cuMemsetD2D8_v2", &[ptr + 32, 16, 9, 2, 3]);
        let bytes = cuda.read(ptr, 80);
        assert_eq!(bytes[..16], [4, 3, 2, 1].repeat(4));
        assert_eq!(bytes[16..22], [0xcd, 0xab, 0xcd, 0xab, 0, 0]);
        for row in [32, 48, 64] {
            assert_eq!(bytes[row..row + 4], [9, 9, 0, 0]);
        }
        cuda.fails("cuMemsetD32_v2", &[ptr + 1, 0, 1], INVALID_VALUE);
        cuda.fails("cuMemsetD8_v2", &[ptr, 0, 4097], INVALID_VALUE);
        cuda.fails("cuMemsetD8_v2", &[of(&bytes[0]), 0, 1], INVALID_VALUE);
    }

    fills_can_be_skipped, [("SOFTCUDA_MEMSET", "skip")], {
        let cuda = Cuda::start();
        let ptr = cuda.alloc(4096);
        cuda.write(ptr, &[7; 16]);
        cuda.ok("cuMemsetD8_v2", &[ptr, 0, 4096]);
        assert_eq!(cuda.read(ptr, 16), [7; 16]);
        cuda.fails("cuMemsetD8_v2", &[ptr, 0, 4097], INVALID_VALUE);
    }

    addresses_say_what_they_are, [], {
        let cuda = Cuda::start();
        let plain = cuda.alloc(1000);
        let managed = cuda.get("cuMemAllocManaged", &[4096, 1]);
        let pinned = cuda.get("cuMemAllocHost_v2", &[4096]);
        assert_eq!((attribute(&cuda, 2, plain), attribute(&cuda, 2, pinned)), (2, 1));
        assert_eq!((attribute(&cuda, 8, managed), attribute(&cuda, 8, plain)), (1, 0));
        assert_eq!((attribute(&cuda, 11, plain + 999), attribute(&cuda, 12, plain + 999)), (plain, 1000));
        assert_eq!(attribute(&cuda, 9, plain), 0);
        assert_ne!(attribute(&cuda, 7, plain), attribute(&cuda, 7, managed));
        let (mut base, mut size) = (0usize, 0usize);
        cuda.ok("cuMemGetAddressRange_v2", &[at(&mut base), at(&mut size), plain + 10]);
        assert_eq!((base, size), (plain, 1000));
        let mut value = 0usize;
        let local = 5u64;
        cuda.fails("cuPointerGetAttribute", &[at(&mut value), 2, of(&local)], INVALID_VALUE);
        // Several at once: an unknown address has none, and is no error.
        let (mut kind, mut ordinal) = (9u32, 9i32);
        let places = [at(&mut kind), at(&mut ordinal)];
        cuda.ok("cuPointerGetAttributes", &[2, of(&[2u32, 9]), of(&places), of(&local)]);
        assert_eq!((kind, ordinal), (0, -2));
        // SAFETY: managed memory is host memory, too.
        unsafe { std::ptr::write_bytes(managed as *mut u8, 3, 4096) };
        assert_eq!(cuda.read(managed, 16), [3; 16]);
        assert_eq!(cuda.account(0)[MANAGED], 4096);
    }

    chunks_are_kept_by_handles_and_mappings, [], {
        let cuda = Cuda::start();
        let handle = cuda.get("cuMemCreate", &[PAGE, of(&PROP), 0]);
        let ptr = mapped(&cuda, handle);
        let held = cuda.account(0);
        assert_eq!((held[CHUNKS], held[MAPPED], held[RESERVED]), (PAGE as u64, PAGE as u64, PAGE as u64));
        cuda.write(ptr, &pattern(4096, 5));
        cuda.ok("cuMemRelease", &[handle]);
        cuda.fails("cuMemRelease", &[handle], 400);
        assert_eq!(cuda.account(0)[CHUNKS], PAGE as u64);
        let again = cuda.get("cuMemRetainAllocationHandle", &[ptr]);
        let mut prop = [0u32; 8];
        cuda.ok("cuMemGetAllocationPropertiesFromHandle", &[at(&mut prop), again]);
        assert_eq!(prop, PROP);
        let alias = mapped(&cuda, again);
        assert_eq!(cuda.read(alias, 4096), pattern(4096, 5));
        let mut flags = 0usize;
        cuda.ok("cuMemGetAccess", &[at(&mut flags), of(&[1u32, 0]), alias]);
        assert_eq!(flags, 3);
        for ptr in [ptr, alias] {
            cuda.ok("cuMemUnmap", &[ptr, PAGE]);
            cuda.ok("cuMemAddressFree", &[ptr, PAGE]);
        }
        assert_eq!(cuda.account(0)[CHUNKS], PAGE as u64);
        cuda.ok("cuMemRelease", &[again]);
        assert_eq!(cuda.account(0)[..24], [0; 24]);
        let mut out = 0usize;
        cuda.fails("cuMemCreate", &[at(&mut out), PAGE + 1, of(&PROP), 0], INVALID_VALUE);
        cuda.fails("cuMemCreate", &[at(&mut out), 1 << 46, of(&PROP), 0], OUT_OF_MEMORY);
    }

    pools_reuse_and_give_back, [("SOFTCUDA_CHECKER", "1")], {
        let cuda = Cuda::start();
        let (a, b) = (cuda.stream(), cuda.stream());
        let first = cuda.get("cuMemAllocAsync", &[1 << 20, a]);
        cuda.ok("cuMemsetD8Async", &[first, 1, 1 << 20, a]);
        cuda.ok("cuMemFreeAsync", &[first, a]);
        cuda.fails("cuMemFreeAsync", &[first, a], INVALID_VALUE);
        assert_eq!(cuda.get("cuMemAllocAsync", &[1 << 20, a]), first, "its own stream has it again at once");
        let held = cuda.account(0);
        assert_eq!((held[POOL_USED], held[POOL_RESERVED]), (1 << 20, 1 << 20));
        let pool = cuda.get("cuDeviceGetDefaultMemPool", &[0]);
        assert_eq!(attribute(&cuda, 17, first), pool);
        let mut bytes = 0usize;
        cuda.ok("cuMemPoolGetAttribute", &[pool, 7, at(&mut bytes)]);
        assert_eq!(bytes, 1 << 20);
        // Kept up to the threshold, given back without one.
        cuda.ok("cuMemPoolSetAttribute", &[pool, 4, of(&usize::MAX)]);
        cuda.ok("cuMemFreeAsync", &[first, a]);
        cuda.ok("cuStreamSynchronize", &[a]);
        assert_eq!(cuda.account(0)[POOL_RESERVED], 1 << 20);
        assert_eq!(cuda.get("cuMemAllocAsync", &[1 << 20, b]), first, "what has passed is anybody's");
        cuda.ok("cuMemFreeAsync", &[first, b]);
        cuda.ok("cuMemPoolSetAttribute", &[pool, 4, of(&0usize)]);
        cuda.ok("cuCtxSynchronize", &[]);
        assert_eq!(cuda.account(0)[..24], [0; 24]);
        // Plain memory may be freed in stream order as well.
        let plain = cuda.alloc(4096);
        cuda.ok("cuMemFreeAsync", &[plain, a]);
        assert_eq!(cuda.account(0)[PLAIN], 0);
        // A pool of one's own, which goes when its last memory does.
        let mut props = [0u32; 22];
        props[..4].copy_from_slice(&[1, 0, 1, 0]);
        let own = cuda.get("cuMemPoolCreate", &[of(&props)]);
        let ptr = cuda.get("cuMemAllocFromPoolAsync", &[1000, own, a]);
        cuda.ok("cuMemPoolDestroy", &[own]);
        cuda.ok("cuMemFreeAsync", &[ptr, a]);
        cuda.ok("cuCtxSynchronize", &[]);
        assert_eq!(cuda.account(0)[..24], [0; 24]);
        assert_eq!(cuda.report_count(), 0);
    }

    arrays_are_accounted, [], {
        let cuda = Cuda::start();
        // Width, height, then format (float) and channels.
        let array = cuda.get("cuArrayCreate_v2", &[of(&[100usize, 10, 4 << 32 | 0x20])]);
        assert_eq!(cuda.account(0)[ARRAYS], 100 * 10 * 16);
        let levels = cuda.get("cuMipmappedArrayCreate", &[of(&[64usize, 64, 0, 1 << 32 | 1, 0]), 3]);
        assert_eq!(cuda.account(0)[ARRAYS], 16000 + 4096 + 1024 + 256);
        let level = cuda.get("cuMipmappedArrayGetLevel", &[levels, 2]);
        cuda.fails("cuArrayDestroy", &[level], 400);
        cuda.ok("cuMipmappedArrayDestroy", &[levels]);
        cuda.ok("cuArrayDestroy", &[array]);
        assert_eq!(cuda.account(0)[..24], [0; 24]);
    }

    several_devices_reach_each_other, [("SOFTCUDA_DEVICES", "2"), ("SOFTCUDA_MEMORY", "256MiB")], {
        let cuda = Cuda::start();
        let (mut first, mut second) = (0usize, 0usize);
        cuda.ok("cuCtxGetCurrent", &[at(&mut first)]);
        cuda.ok("cuDevicePrimaryCtxRetain", &[at(&mut second), 1]);
        let a = cuda.alloc(1 << 20);
        let bytes = pattern(1 << 20, 9);
        cuda.write(a, &bytes);
        cuda.ok("cuCtxPushCurrent_v2", &[second]);
        let b = cuda.alloc(1 << 20);
        let stream = cuda.stream();
        cuda.ok("cuMemcpyPeerAsync", &[b, second, a, first, 1 << 20, stream]);
        cuda.ok("cuStreamSynchronize", &[stream]);
        assert_eq!(cuda.read(b, 1 << 20), bytes);
        assert_eq!(attribute(&cuda, 9, b), 1);
        // A chunk of the first device, mapped while the second is current.
        let handle = cuda.get("cuMemCreate", &[PAGE, of(&PROP), 0]);
        let ptr = mapped(&cuda, handle);
        cuda.ok("cuMemRelease", &[handle]);
        assert_eq!((cuda.account(0)[CHUNKS], cuda.account(1)[CHUNKS]), (PAGE as u64, 0));
        cuda.write(ptr, &bytes[..100]);
        assert_eq!(cuda.read(ptr, 100), bytes[..100]);
        assert_eq!(attribute(&cuda, 9, ptr), 0);
        cuda.ok("cuMemUnmap", &[ptr, PAGE]);
        assert_eq!(cuda.account(0)[CHUNKS], 0);
        cuda.ok("cuCtxPopCurrent_v2", &[0]);
        let mut out = 0usize;
        cuda.fails("cuMemAlloc_v2", &[at(&mut out), 1 << 28], OUT_OF_MEMORY);
    }

    memory_goes_with_its_context, [], {
        let cuda = Cuda::start();
        cuda.alloc(4096);
        cuda.get("cuMemHostAlloc", &[4096, 0]);
        let stream = cuda.stream();
        cuda.ok("cuDevicePrimaryCtxReset_v2", &[0]);
        assert_eq!(cuda.account(0)[..24], [0; 24]);
        cuda.fails("cuStreamSynchronize", &[stream], 400);
        let own = cuda.get("cuCtxCreate_v2", &[0, 0]);
        cuda.alloc(4096);
        cuda.ok("cuCtxDestroy_v2", &[own]);
        assert_eq!(cuda.account(0)[PLAIN], 0);
        // The context below is current again.
        cuda.alloc(4096);
    }

    another_process_sees_the_same_bytes, [], {
        let cuda = Cuda::start();
        let ptr = cuda.alloc(8192);
        let bytes = pattern(8192, 11);
        cuda.write(ptr, &bytes);
        let mut handle = [0u8; 64];
        cuda.ok("cuIpcGetMemHandle", &[at(&mut handle), ptr]);
        let chunk = cuda.get("cuMemCreate", &[PAGE, of(&PROP), 0]);
        let mapped = mapped(&cuda, chunk);
        cuda.write(mapped, &bytes[..4096]);
        let mut descriptor = -1i32;
        cuda.ok("cuMemExportToShareableHandle", &[at(&mut descriptor), chunk, 1, 0]);
        // SAFETY: the descriptor is ours, and the other process is to inherit it.
        assert_eq!(unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) }, 0);
        let text: String = handle.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "child::the_other_process", "--ignored", "--nocapture"]);
        child.env("SOFTCUDA_TEST_HANDLE", text).env("SOFTCUDA_TEST_CHUNK", descriptor.to_string());
        let output = child.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        // What the other process has written is here.
        assert_eq!(cuda.read(ptr, 16), [0x77; 16]);
        assert_eq!(cuda.read(mapped, 16), [0x88; 16]);
    }

    the_other_process, [], {
        let Ok(text) = std::env::var("SOFTCUDA_TEST_HANDLE") else { return };
        let bytes: Vec<u8> = (0..64).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect();
        let cuda = Cuda::start();
        let ptr = cuda.open_handle(bytes.try_into().unwrap());
        assert_eq!(cuda.read(ptr, 8192), pattern(8192, 11));
        cuda.write(ptr, &[0x77; 16]);
        assert_eq!((cuda.account(0)[SHARED], cuda.account(0)[PLAIN]), (8192, 0));
        cuda.ok("cuIpcCloseMemHandle", &[ptr]);
        cuda.fails("cuIpcCloseMemHandle", &[ptr], INVALID_VALUE);
        let descriptor: usize = std::env::var("SOFTCUDA_TEST_CHUNK").unwrap().parse().unwrap();
        let chunk = cuda.get("cuMemImportFromShareableHandle", &[descriptor, 1]);
        let ptr = mapped(&cuda, chunk);
        assert_eq!(cuda.read(ptr, 4096), pattern(8192, 11)[..4096]);
        cuda.write(ptr, &[0x88; 16]);
        cuda.ok("cuMemUnmap", &[ptr, PAGE]);
        cuda.ok("cuMemRelease", &[chunk]);
        let mut out = 0usize;
        cuda.fails("cuMemImportFromShareableHandle", &[at(&mut out), 0, 1], INVALID_VALUE);
        assert_eq!(cuda.account(0)[GRAPH], 0);
    }
}
