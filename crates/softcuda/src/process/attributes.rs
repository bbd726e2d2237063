//! Attributes of a device: those of an H100, where a software device has no answer of its own.

use stratalloc::driver::Driver;

use super::devices::Device;

/// The value of a `CUdevice_attribute`, by number.
pub(crate) fn value(attribute: u32, device: &Device) -> Option<i32> {
    let vmm = i32::from(device.soft.properties().vmm);
    Some(match attribute {
        // The bus that the device is on, and the group of boards that it is in.
        33 => 1 + device.ordinal as i32,
        85 => device.ordinal as i32,
        // Virtual memory management, and chunks that become file descriptors.
        102 | 103 => vmm,
        _ => *VALUES.iter().find_map(|(number, value)| (*number == attribute).then_some(value))?,
    })
}

/// By number; the names are those of `cuda.h` without their prefix.
const VALUES: &[(u32, i32)] = &[
    (1, 1024),        // max_threads_per_block
    (2, 1024),        // max_block_dim_x
    (3, 1024),        // max_block_dim_y
    (4, 64),          // max_block_dim_z
    (5, 2147483647),  // max_grid_dim_x
    (6, 65535),       // max_grid_dim_y
    (7, 65535),       // max_grid_dim_z
    (8, 49152),       // max_shared_memory_per_block
    (9, 65536),       // total_constant_memory
    (10, 32),         // warp_size
    (11, 2147483647), // max_pitch
    (12, 65536),      // max_registers_per_block
    (13, 1980000),    // clock_rate
    (14, 512),        // texture_alignment
    (15, 1),          // gpu_overlap
    (16, 132),        // multiprocessor_count
    (17, 0),          // kernel_exec_timeout
    (18, 0),          // integrated
    (19, 1),          // can_map_host_memory
    (20, 0),          // compute_mode
    (21, 131072),     // maximum_texture1d_width
    (22, 131072),     // maximum_texture2d_width
    (23, 65536),      // maximum_texture2d_height
    (24, 16384),      // maximum_texture3d_width
    (25, 16384),      // maximum_texture3d_height
    (26, 16384),      // maximum_texture3d_depth
    (27, 32768),      // maximum_texture2d_layered_width
    (28, 32768),      // maximum_texture2d_layered_height
    (29, 2048),       // maximum_texture2d_layered_layers
    (30, 512),        // surface_alignment
    (31, 1),          // concurrent_kernels
    (32, 1),          // ecc_enabled
    (34, 0),          // pci_device_id
    (35, 0),          // tcc_driver
    (36, 2619000),    // memory_clock_rate
    (37, 5120),       // global_memory_bus_width
    (38, 52428800),   // l2_cache_size
    (39, 2048),       // max_threads_per_multiprocessor
    (40, 3),          // async_engine_count
    (41, 1),          // unified_addressing
    (42, 32768),      // maximum_texture1d_layered_width
    (43, 2048),       // maximum_texture1d_layered_layers
    (44, 1),          // can_tex2d_gather
    (45, 32768),      // maximum_texture2d_gather_width
    (46, 32768),      // maximum_texture2d_gather_height
    (47, 8192),       // maximum_texture3d_width_alternate
    (48, 8192),       // maximum_texture3d_height_alternate
    (49, 32768),      // maximum_texture3d_depth_alternate
    (50, 0),          // pci_domain_id
    (51, 32),         // texture_pitch_alignment
    (52, 32768),      // maximum_texturecubemap_width
    (53, 32768),      // maximum_texturecubemap_layered_width
    (54, 2046),       // maximum_texturecubemap_layered_layers
    (55, 32768),      // maximum_surface1d_width
    (56, 131072),     // maximum_surface2d_width
    (57, 65536),      // maximum_surface2d_height
    (58, 16384),      // maximum_surface3d_width
    (59, 16384),      // maximum_surface3d_height
    (60, 16384),      // maximum_surface3d_depth
    (61, 32768),      // maximum_surface1d_layered_width
    (62, 2048),       // maximum_surface1d_layered_layers
    (63, 32768),      // maximum_surface2d_layered_width
    (64, 32768),      // maximum_surface2d_layered_height
    (65, 2048),       // maximum_surface2d_layered_layers
    (66, 32768),      // maximum_surfacecubemap_width
    (67, 32768),      // maximum_surfacecubemap_layered_width
    (68, 2046),       // maximum_surfacecubemap_layered_layers
    (69, 268435456),  // maximum_texture1d_linear_width
    (70, 131072),     // maximum_texture2d_linear_width
    (71, 65000),      // maximum_texture2d_linear_height
    (72, 2097120),    // maximum_texture2d_linear_pitch
    (73, 32768),      // maximum_texture2d_mipmapped_width
    (74, 32768),      // maximum_texture2d_mipmapped_height
    (75, 9),          // compute_capability_major
    (76, 0),          // compute_capability_minor
    (77, 32768),      // maximum_texture1d_mipmapped_width
    (78, 1),          // stream_priorities_supported
    (79, 1),          // global_l1_cache_supported
    (80, 1),          // local_l1_cache_supported
    (81, 233472),     // max_shared_memory_per_multiprocessor
    (82, 65536),      // max_registers_per_multiprocessor
    (83, 1),          // managed_memory
    (84, 0),          // multi_gpu_board
    (86, 0),          // host_native_atomic_supported
    (87, 2),          // single_to_double_precision_perf_ratio
    (88, 0),          // pageable_memory_access
    (89, 1),          // concurrent_managed_access
    (90, 1),          // compute_preemption_supported
    (91, 1),          // can_use_host_pointer_for_registered_mem
    (92, 1),          // can_use_stream_mem_ops_v1
    (93, 1),          // can_use_64_bit_stream_mem_ops_v1
    (94, 1),          // can_use_stream_wait_value_nor_v1
    (95, 1),          // cooperative_launch
    (96, 0),          // cooperative_multi_device_launch
    (97, 232448),     // max_shared_memory_per_block_optin
    (98, 0),          // can_flush_remote_writes
    (99, 1),          // host_register_supported
    (100, 0),         // pageable_memory_access_uses_host_page_tables
    (101, 0),         // direct_managed_mem_access_from_host
    (104, 0),         // handle_type_win32_handle_supported
    (105, 0),         // handle_type_win32_kmt_handle_supported
    (106, 32),        // max_blocks_per_multiprocessor
    (107, 0),         // generic_compression_supported
    (108, 32768000),  // max_persisting_l2_cache_size
    (109, 134213632), // max_access_policy_window_size
    (110, 0),         // gpu_direct_rdma_with_cuda_vmm_supported
    (111, 1024),      // reserved_shared_memory_per_block
    (112, 0),         // sparse_cuda_array_supported
    (113, 0),         // read_only_host_register_supported
    (114, 0),         // timeline_semaphore_interop_supported
    (115, 1),         // memory_pools_supported
    (116, 0),         // gpu_direct_rdma_supported
    (117, 0),         // gpu_direct_rdma_flush_writes_options
    (118, 0),         // gpu_direct_rdma_writes_ordering
    (119, 1),         // mempool_supported_handle_types
    (120, 1),         // cluster_launch
    (121, 0),         // deferred_mapping_cuda_array_supported
    (122, 1),         // can_use_64_bit_stream_mem_ops
    (123, 1),         // can_use_stream_wait_value_nor
    (124, 0),         // dma_buf_supported
    (125, 1),         // ipc_event_supported
    (126, 4),         // mem_sync_domain_count
    (127, 1),         // tensor_map_access_supported
    (128, 0),         // handle_type_fabric_supported
    (129, 1),         // unified_function_pointers
    (130, 0),         // numa_config
    (131, -1),        // numa_id
    (132, 0),         // multicast_supported
    (133, 0),         // mps_enabled
    (134, 0),         // host_numa_id
    (135, 0),         // d3d12_cig_supported
    (136, 0),         // mem_decompress_algorithm_mask
    (137, 0),         // mem_decompress_maximum_length
    (138, 0),         // vulkan_cig_supported
    (139, 590352606), // gpu_pci_device_id
    (140, 381751518), // gpu_pci_subsystem_id
    (141, 1),         // host_numa_virtual_memory_management_supported
    (142, 0),         // host_numa_memory_pools_supported
    (143, 0),         // host_numa_multinode_ipc_supported
    (144, 1),         // host_memory_pools_supported
    (145, 1),         // host_virtual_memory_management_supported
    (146, 0),         // host_alloc_dma_buf_supported
    (147, 0),         // only_partial_host_native_atomic_supported
    (148, 0),         // atomic_reduction_supported
];
