// SPDX-License-Identifier: Apache-2.0
#include "common/device_info.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <mutex>

namespace qutlass {
namespace {

constexpr int kCachedDevices = 64;  // beyond it a query asks the driver each time

struct CacheEntry {
  std::atomic<bool> ready{false};
  DeviceInfo info;
};

Status ask_driver(int device, DeviceInfo* info) {
  int error = cudaSuccess;
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, which, device);
    return value;
  };
  // Single attributes: filling a whole cudaDeviceProp takes the driver milliseconds, and CUDA 13
  // removed the clock rates from it.
  DeviceInfo found;
  found.sm = 10 * attribute(cudaDevAttrComputeCapabilityMajor);
  found.sm += attribute(cudaDevAttrComputeCapabilityMinor);
  found.sm_count = attribute(cudaDevAttrMultiProcessorCount);
  found.smem_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  found.smem_per_sm = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  found.l2_bytes = attribute(cudaDevAttrL2CacheSize);
  if (error != cudaSuccess) {
    cudaGetLastError();  // reported here; leave nothing behind for the next caller to trip over
    return Status::cuda(error, "cudaDeviceGetAttribute");
  }
  // A driver that hides these two (virtual GPUs may) leaves the bandwidth unknown; nothing fails.
  const double kilohertz = attribute(cudaDevAttrMemoryClockRate);
  const double bits = attribute(cudaDevAttrGlobalMemoryBusWidth);
  if (error == cudaSuccess && kilohertz > 0 && bits > 0) {
    found.bandwidth = 2 * kilohertz * 1e3 * bits / 8;  // two transfers a clock
  }
  if (error != cudaSuccess) cudaGetLastError();
  *info = found;
  return Status::success();
}

}  // namespace

Status query_device(int device, DeviceInfo* info) {
  static CacheEntry cache[kCachedDevices];
  static std::mutex mutex;
  if (device < 0) return Status::invalid("query_device: negative device index");
  if (device >= kCachedDevices) return ask_driver(device, info);

  CacheEntry& entry = cache[device];
  if (!entry.ready.load(std::memory_order_acquire)) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!entry.ready.load(std::memory_order_relaxed)) {
      const Status status = ask_driver(device, &entry.info);
      if (!status.ok()) return status;
      entry.ready.store(true, std::memory_order_release);
    }
  }
  *info = entry.info;
  return Status::success();
}

}  // namespace qutlass
