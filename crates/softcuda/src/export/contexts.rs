//! Contexts.

use super::exports;
use crate::abi::pointers::Out;
use crate::process::contexts;

exports! {
    plain fn cuDevicePrimaryCtxRetain(context: Out<usize>, device: i32) = contexts::primary_retain;
    plain fn cuDevicePrimaryCtxRelease(device: i32) = contexts::primary_release;
    plain fn cuDevicePrimaryCtxRelease_v2(device: i32) [11000] = contexts::primary_release;
    plain fn cuDevicePrimaryCtxSetFlags(device: i32, flags: u32) = contexts::primary_set_flags;
    plain fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) [11000] = contexts::primary_set_flags;
    plain fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) = contexts::primary_state;
    plain fn cuDevicePrimaryCtxReset(device: i32) = contexts::primary_reset;
    plain fn cuDevicePrimaryCtxReset_v2(device: i32) [11000] = contexts::primary_reset;
    plain fn cuCtxCreate(context: Out<usize>, flags: u32, device: i32) = contexts::create;
    plain fn cuCtxCreate_v2(context: Out<usize>, flags: u32, device: i32) = contexts::create;
    plain fn cuCtxCreate_v3(context: Out<usize>, affinity: usize, count: i32, flags: u32, device: i32) [11040] = contexts::create_v3;
    plain fn cuCtxCreate_v4(context: Out<usize>, params: usize, flags: u32, device: i32) [12050] = contexts::create_v4;
    plain fn cuCtxDestroy(context: usize) = contexts::destroy;
    plain fn cuCtxDestroy_v2(context: usize) [4000] = contexts::destroy;
    plain fn cuCtxGetCurrent(context: Out<usize>) = contexts::get_current;
    plain fn cuCtxSetCurrent(context: usize) = contexts::set_current;
    plain fn cuCtxPushCurrent(context: usize) = contexts::push_current;
    plain fn cuCtxPushCurrent_v2(context: usize) [4000] = contexts::push_current;
    plain fn cuCtxPopCurrent(context: Out<usize>) = contexts::pop_current;
    plain fn cuCtxPopCurrent_v2(context: Out<usize>) [4000] = contexts::pop_current;
    plain fn cuCtxAttach(context: Out<usize>, flags: u32) = contexts::attach;
    plain fn cuCtxDetach(context: usize) = contexts::detach;
    plain fn cuCtxSynchronize() = contexts::synchronize;
    plain fn cuCtxSynchronize_v2(context: usize) [13000] = contexts::synchronize_v2;
    plain fn cuCtxGetDevice(device: Out<i32>) = contexts::get_device;
    plain fn cuCtxGetDevice_v2(device: Out<i32>, context: usize) [13000] = contexts::get_device_v2;
    plain fn cuCtxGetFlags(flags: Out<u32>) = contexts::get_flags;
    plain fn cuCtxSetFlags(flags: u32) = contexts::set_flags;
    plain fn cuCtxGetId(context: usize, id: Out<u64>) = contexts::get_id;
    plain fn cuCtxGetApiVersion(context: usize, version: Out<u32>) = contexts::api_version;
    plain fn cuCtxGetLimit(value: Out<usize>, limit: u32) = contexts::get_limit;
    plain fn cuCtxSetLimit(limit: u32, value: usize) = contexts::set_limit;
    plain fn cuCtxGetCacheConfig(config: Out<u32>) = contexts::get_cache_config;
    plain fn cuCtxSetCacheConfig(config: u32) = contexts::set_cache_config;
    plain fn cuCtxGetSharedMemConfig(config: Out<u32>) = contexts::get_cache_config;
    plain fn cuCtxSetSharedMemConfig(config: u32) = contexts::set_cache_config;
    plain fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) = contexts::stream_priority_range;
    plain fn cuCtxResetPersistingL2Cache() = contexts::reset_l2;
    plain fn cuCtxEnablePeerAccess(peer: usize, flags: u32) = contexts::enable_peer;
    plain fn cuCtxDisablePeerAccess(peer: usize) = contexts::disable_peer;
    plain fn cuCtxRecordEvent(context: usize, event: usize) = contexts::record_event;
    plain fn cuCtxWaitEvent(context: usize, event: usize) = contexts::wait_event;
}
