//! That interposition is complete: every entry point is called, with the shim and without, and after each step the shim's ledger is
//! libsoftcuda's own account, and what the program has is the same.

mod common;

use std::collections::BTreeSet;

use common::{passes, with_driver};

/// Every entry point that a shim for CUDA memory must interpose. `+` stands for the variant for the per-thread default stream.
const REQUIRED: &str = "
    cuGetProcAddress cuGetProcAddress_v2 cuInit cuGetExportTable
    cuMemAlloc_v2 cuMemAllocPitch_v2 cuMemAllocManaged cuMemAllocAsync+ cuMemAllocFromPoolAsync+
    cuMemCreate cuArrayCreate_v2 cuArray3DCreate_v2 cuMipmappedArrayCreate cuMemAllocHost_v2 cuMemHostAlloc
    cuMemHostRegister_v2 cuMemPoolCreate cuMemPoolImportFromShareableHandle cuMemPoolImportPointer
    cuMemImportFromShareableHandle cuIpcOpenMemHandle_v2 cuImportExternalMemory cuExternalMemoryGetMappedBuffer
    cuExternalMemoryGetMappedMipmappedArray cuMulticastCreate cuGraphAddMemAllocNode cuGraphAddNode cuGraphAddNode_v2
    cuMemFree_v2 cuMemFreeAsync+ cuMemFreeHost cuMemHostUnregister cuArrayDestroy cuMipmappedArrayDestroy
    cuMemRelease cuMemUnmap cuMemAddressFree cuMemPoolDestroy cuMemPoolTrimTo cuIpcCloseMemHandle
    cuDestroyExternalMemory cuGraphAddMemFreeNode cuGraphDestroy cuGraphExecDestroy cuDeviceGraphMemTrim
    cuCtxDestroy_v2 cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxReset_v2
    cuMemAddressReserve cuMemMap cuMemMapArrayAsync+ cuMemSetAccess cuMemGetAccess
    cuMemRetainAllocationHandle cuMemGetAllocationPropertiesFromHandle cuMemExportToShareableHandle
    cuMemGetHandleForAddressRange cuMemGetAddressRange_v2 cuPointerGetAttribute cuPointerGetAttributes cuIpcGetMemHandle
    cuMemPoolExportToShareableHandle cuMemPoolExportPointer
    cuMemGetInfo_v2 cuDeviceTotalMem_v2 cuMemPoolGetAttribute cuMemPoolSetAttribute cuDeviceGetDefaultMemPool
    cuDeviceGetMemPool cuDeviceSetMemPool cuDeviceGetGraphMemAttribute cuDeviceSetGraphMemAttribute
    cuCtxCreate_v2 cuCtxCreate_v3 cuCtxCreate_v4 cuDevicePrimaryCtxRetain cuModuleLoad cuModuleLoadData
    cuModuleLoadDataEx cuModuleLoadFatBinary cuLibraryLoadData cuLibraryLoadFromFile cuCtxSetLimit
    cuGraphInstantiate_v2 cuGraphInstantiateWithFlags cuGraphInstantiateWithParams cuGraphLaunch+ cuStreamEndCapture+
    cuMemGetDefaultMemPool cuMemGetMemPool cuMemSetMemPool cuMemPrefetchBatchAsync+ cuMemDiscardBatchAsync+
    cuMemDiscardAndPrefetchBatchAsync+ cuMemcpyBatchAsync_v2+ cuMemcpy3DBatchAsync_v2+ cuMulticastBindMem_v2
    cuMulticastBindAddr_v2 cuMemcpyWithAttributesAsync+ cuMemcpy3DWithAttributesAsync+";

/// The names in the table of `entries.rs`.
fn interposed() -> BTreeSet<String> {
    let source = include_str!("../src/entries.rs");
    let table = source.split("needed {").next().unwrap();
    let names = table.lines().filter_map(|line| line.trim().strip_prefix("fn ")?.split('(').next());
    names.map(str::to_string).collect()
}

fn required() -> BTreeSet<String> {
    let both = |name: &str| match name.strip_suffix('+') {
        Some(name) => vec![name.to_string(), format!("{name}_ptsz")],
        None => vec![name.to_string()],
    };
    REQUIRED.split_whitespace().flat_map(both).collect()
}

#[test]
fn every_required_entry_point_is_interposed() {
    let missing: Vec<String> = required().difference(&interposed()).cloned().collect();
    assert!(missing.is_empty(), "not interposed: {missing:?}");
}

#[test]
fn the_ledger_is_the_drivers_own_account_at_every_step() {
    let names = interposed();
    let (with, err) = passes(with_driver("complete.c", "complete", true).args(&names));
    assert!(with.lines().count() > 50, "{with}{err}");
    let (without, _) = passes(with_driver("complete.c", "complete", false).args(&names));
    assert_eq!(with, without, "what the program has differs with the shim");
    // The stand-in has all that is required; what else is interposed need not be there.
    let absent: BTreeSet<String> =
        with.lines().filter_map(|line| line.strip_prefix("absent ")).map(str::to_string).collect();
    let untested: Vec<&String> = absent.iter().filter(|name| required().contains(*name)).collect();
    assert!(untested.is_empty(), "libsoftcuda lacks {untested:?}");
}

#[test]
fn it_holds_without_virtual_memory_management_too() {
    // No chunks then: segments from cuMemAlloc, which a block that is freed twice may bear the address of.
    let (out, _) = passes(with_driver("segments.c", "complete", true).env("SOFTCUDA_VMM", "0"));
    assert!(out.contains("served from segments"), "{out}");
}
