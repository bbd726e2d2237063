//! Initialisation, look-up, errors, devices.

use std::ffi::{c_char, c_void};

use super::exports;
use crate::abi::pointers::{In, Out};
use crate::abi::structs::{DevProp, OutText, Text, Uuid};
use crate::process::{devices, startup};

exports! {
    early fn cuInit(flags: u32) = startup::init;
    early fn cuDriverGetVersion(version: Out<i32>) = startup::driver_version;
    early fn cuGetProcAddress(symbol: Text, function: Out<*const ()>, version: i32, flags: u64) = startup::get_proc_address;
    early fn cuGetProcAddress_v2(symbol: Text, function: Out<*const ()>, version: i32, flags: u64, status: Out<u32>) [12000] = startup::get_proc_address_v2;
    early fn cuGetErrorName(code: u32, text: Out<*const c_char>) = startup::error_name;
    early fn cuGetErrorString(code: u32, text: Out<*const c_char>) = startup::error_string;
    early fn cuGetExportTable(table: Out<*const c_void>, id: In<Uuid>) = startup::export_table;
    plain fn cuDeviceGetCount(count: Out<i32>) = devices::count;
    plain fn cuDeviceGet(device: Out<i32>, ordinal: i32) = devices::get;
    plain fn cuDeviceGetName(name: OutText, length: i32, device: i32) = devices::name;
    plain fn cuDeviceGetUuid(uuid: Out<Uuid>, device: i32) = devices::uuid;
    plain fn cuDeviceGetUuid_v2(uuid: Out<Uuid>, device: i32) [11040] = devices::uuid;
    plain fn cuDeviceGetLuid(luid: OutText, mask: Out<u32>, device: i32) = devices::luid;
    plain fn cuDeviceTotalMem(bytes: Out<u32>, device: i32) = devices::total_memory_v1;
    plain fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) = devices::total_memory;
    plain fn cuDeviceGetAttribute(value: Out<i32>, attribute: u32, device: i32) = devices::attribute;
    plain fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, device: i32) = devices::compute_capability;
    plain fn cuDeviceGetProperties(properties: Out<DevProp>, device: i32) = devices::properties;
    plain fn cuDeviceGetPCIBusId(text: OutText, length: i32, device: i32) = devices::pci_bus_id;
    plain fn cuDeviceGetByPCIBusId(device: Out<i32>, text: Text) = devices::by_pci_bus_id;
    plain fn cuDeviceCanAccessPeer(can: Out<i32>, device: i32, peer: i32) = devices::can_access_peer;
    plain fn cuDeviceGetP2PAttribute(value: Out<i32>, attribute: u32, source: i32, destination: i32) = devices::p2p_attribute;
    plain fn cuDeviceGetTexture1DLinearMaxWidth(width: Out<usize>, format: u32, channels: u32, device: i32) = devices::texture_width;
    plain fn cuDeviceGetExecAffinitySupport(value: Out<i32>, kind: u32, device: i32) = devices::exec_affinity_support;
}
