//! Modules, libraries, kernels, launches.

use std::ffi::{c_char, c_void};

use super::exports;
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{LaunchConfig, Text};
use crate::code::{functions, launch, libraries, modules, occupancy};

exports! {
    plain fn cuModuleLoad(module: Out<usize>, path: Text) = modules::load_file;
    plain fn cuModuleLoadData(module: Out<usize>, image: *const c_void) = modules::load;
    plain fn cuModuleLoadDataEx(module: Out<usize>, image: *const c_void, count: u32, options: usize, values: usize) = modules::load_with_options;
    plain fn cuModuleLoadFatBinary(module: Out<usize>, image: *const c_void) = modules::load;
    plain fn cuModuleUnload(module: usize) = modules::unload;
    plain fn cuModuleGetFunction(function: Out<usize>, module: usize, name: Text) = modules::function;
    plain fn cuModuleGetFunctionCount(count: Out<u32>, module: usize) = modules::function_count;
    plain fn cuModuleGetGlobal_v2(ptr: Out<u64>, size: Out<usize>, module: usize, name: Text) = modules::global;
    plain fn cuModuleGetLoadingMode(mode: Out<u32>) = modules::loading_mode;
    plain fn cuLinkCreate_v2(count: u32, options: usize, values: usize, state: Out<usize>) [6050] = modules::link_create;
    plain fn cuLinkAddData_v2(state: usize, kind: u32, data: *const c_void, size: usize, name: Text, count: u32, options: usize, values: usize) [6050] = modules::link_add_data;
    plain fn cuLinkAddFile_v2(state: usize, kind: u32, path: Text, count: u32, options: usize, values: usize) [6050] = modules::link_add_file;
    plain fn cuLinkComplete(state: usize, image: Out<*const c_void>, size: Out<usize>) = modules::link_complete;
    plain fn cuLinkDestroy(state: usize) = modules::link_destroy;

    plain fn cuLibraryLoadData(library: Out<usize>, code: *const c_void, jit: usize, jit_values: usize, jit_count: u32, options: usize, values: usize, count: u32) = libraries::load;
    plain fn cuLibraryLoadFromFile(library: Out<usize>, path: Text, jit: usize, jit_values: usize, jit_count: u32, options: usize, values: usize, count: u32) = libraries::load_file;
    plain fn cuLibraryUnload(library: usize) = libraries::unload;
    plain fn cuLibraryGetKernel(kernel: Out<usize>, library: usize, name: Text) = libraries::kernel;
    plain fn cuLibraryGetKernelCount(count: Out<u32>, library: usize) = libraries::kernel_count;
    plain fn cuLibraryEnumerateKernels(kernels: Out<usize>, count: u32, library: usize) = libraries::enumerate;
    plain fn cuLibraryGetModule(module: Out<usize>, library: usize) = libraries::module;
    plain fn cuLibraryGetGlobal(ptr: Out<u64>, size: Out<usize>, library: usize, name: Text) = libraries::global;
    plain fn cuLibraryGetManaged(ptr: Out<u64>, size: Out<usize>, library: usize, name: Text) = libraries::global;
    plain fn cuLibraryGetUnifiedFunction(function: Out<*const c_void>, library: usize, name: Text) = libraries::unified_function;
    plain fn cuKernelGetFunction(function: Out<usize>, kernel: usize) = libraries::kernel_function;
    plain fn cuKernelGetLibrary(library: Out<usize>, kernel: usize) = libraries::kernel_library;
    plain fn cuKernelGetName(name: Out<*const c_char>, kernel: usize) = functions::name;
    plain fn cuKernelGetAttribute(value: Out<i32>, attribute: u32, kernel: usize, device: i32) = functions::kernel_attribute;
    plain fn cuKernelSetAttribute(attribute: u32, value: i32, kernel: usize, device: i32) = functions::set_kernel_attribute;
    plain fn cuKernelSetCacheConfig(kernel: usize, config: u32, device: i32) = functions::set_kernel_cache_config;
    plain fn cuKernelGetParamInfo(kernel: usize, index: usize, offset: Out<usize>, size: Out<usize>) = functions::param_info;

    plain fn cuFuncGetAttribute(value: Out<i32>, attribute: u32, function: usize) = functions::attribute;
    plain fn cuFuncSetAttribute(function: usize, attribute: u32, value: i32) = functions::set_attribute;
    plain fn cuFuncSetCacheConfig(function: usize, config: u32) = functions::set_config;
    plain fn cuFuncSetSharedMemConfig(function: usize, config: u32) = functions::set_config;
    plain fn cuFuncGetModule(module: Out<usize>, function: usize) = functions::module;
    plain fn cuFuncGetName(name: Out<*const c_char>, function: usize) = functions::name;
    plain fn cuFuncGetParamInfo(function: usize, index: usize, offset: Out<usize>, size: Out<usize>) = functions::param_info;
    plain fn cuFuncIsLoaded(state: Out<u32>, function: usize) = functions::is_loaded;
    plain fn cuFuncLoad(function: usize) = functions::load;

    ptsz(stream) fn cuLaunchKernel(function: usize, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared: u32, stream: usize, params: usize, extra: usize) = launch::kernel;
    ptsz(stream) fn cuLaunchCooperativeKernel(function: usize, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared: u32, stream: usize, params: usize) = launch::cooperative;
    config fn cuLaunchKernelEx(config: In<LaunchConfig>, function: usize, params: usize, extra: usize) = launch::with_config;
    plain fn cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: Out<i32>, function: usize, block_size: i32, shared: usize) = occupancy::max_blocks;
    plain fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks: Out<i32>, function: usize, block_size: i32, shared: usize, flags: u32) = occupancy::max_blocks_with_flags;
    plain fn cuOccupancyMaxPotentialBlockSize(grid: Out<i32>, block: Out<i32>, function: usize, shared_of: usize, shared: usize, limit: i32) = occupancy::block_size;
    plain fn cuOccupancyMaxPotentialBlockSizeWithFlags(grid: Out<i32>, block: Out<i32>, function: usize, shared_of: usize, shared: usize, limit: i32, flags: u32) = occupancy::block_size_with_flags;
    plain fn cuOccupancyAvailableDynamicSMemPerBlock(size: Out<usize>, function: usize, blocks: i32, block_size: i32) = occupancy::shared_memory;
    plain fn cuOccupancyMaxActiveClusters(clusters: Out<i32>, function: usize, config: In<LaunchConfig>) = occupancy::clusters;
    plain fn cuOccupancyMaxPotentialClusterSize(size: Out<i32>, function: usize, config: In<LaunchConfig>) = occupancy::cluster_size;
}
