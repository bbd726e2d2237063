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
