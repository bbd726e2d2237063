//! The driver contract, through real loading and C calls: the suite that the software device passes is run over the CUDA
//! driver, on this library.

mod common;
#[path = "../../../tests/common/contract.rs"]
mod contract;

use stratalloc::driver::Driver;
use stratalloc::driver::cuda::CudaDriver;

fn check() {
    let driver = CudaDriver::open(0).unwrap();
    let data = std::env::var_os("SOFTCUDA_BACKING").is_none();
    contract::check_all(&*driver, data);
    let info = driver.memory_info().unwrap();
    assert_eq!(info.free, info.total);
    let cuda = common::Cuda::load();
    assert_eq!(cuda.report_count(), 0);
    let held = cuda.account(0);
    assert_eq!(held[..24], [0; 24], "something was not given back");
}

scenarios! {
    in_order, [("SOFTCUDA_CHECKER", "1")], { check() }
    by_seed, [("SOFTCUDA_CHECKER", "1"), ("SOFTCUDA_SEED", "7")], { check() }
    by_another_seed, [("SOFTCUDA_SEED", "12345"), ("SOFTCUDA_LATENCY", "study-a")], { check() }
    with_latency_and_lag, [("SOFTCUDA_LATENCY", "a100"), ("SOFTCUDA_TAILS", "1"), ("SOFTCUDA_EVENT_LAG_US", "100")], { check() }
    addresses_only, [("SOFTCUDA_BACKING", "none")], { check() }
    without_virtual_memory, [("SOFTCUDA_VMM", "0")], { check() }
    with_partial_mapping, [("SOFTCUDA_PARTIAL_MAPPING", "1")], { check() }
}

/// The suite for real devices, unchanged. It needs the library under the name by which cudarc finds it, too.
#[test]
fn the_gpu_suite_passes() {
    let folder = std::env::temp_dir().join(format!("softcuda-gpu-suite-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["libcuda.so.1", "libcuda.so"] {
        // A folder of this number may be left over from another day.
        let _ = std::fs::remove_file(folder.join(name));
        std::os::unix::fs::symlink(common::library(), folder.join(name)).unwrap();
    }
    let mut suite = std::process::Command::new(env!("CARGO"));
    // As the workspace builds it, which has been done, with all features.
    suite.args(["test", "--workspace", "--test", "gpu", "--manifest-path"]);
    suite.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"));
    let mut path = std::ffi::OsString::from(&folder);
    if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH") {
        path.push(":");
        path.push(rest);
    }
    let output = suite.env("LD_LIBRARY_PATH", path).env("STRATALLOC_REQUIRE_GPU", "1").output().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let ran = |name| text.contains(&format!("test {name} ... ok"));
    assert!(
        ran("two_addresses_one_chunk") && ran("blocks_go_to_files_and_come_back") && !text.contains("skipped"),
        "{text}"
    );
}
