// What differs between versions of torch. Only versions that were compiled and tested are accepted; see
// `TESTED` in ../_build.py for the list that Python checks first.
#pragma once

#include <torch/headeronly/version.h>

#include <c10/cuda/CUDACachingAllocator.h>

#if TORCH_VERSION_MAJOR != 2 || TORCH_VERSION_MINOR < 15
#error "stratalloc's extension is written for torch 2.15; earlier versions have other virtual functions"
#endif

namespace stratalloc_torch {

using namespace c10::cuda::CUDACachingAllocator;
using c10::CachingDeviceAllocator::AnnotationEntry;
using c10::CachingDeviceAllocator::Stat;
using c10::CachingDeviceAllocator::StatArray;
using c10::CachingDeviceAllocator::StatType;
using c10::DeviceIndex;
using c10::MempoolId_t;

} // namespace stratalloc_torch
