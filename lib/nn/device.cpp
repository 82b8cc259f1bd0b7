#include "nn/device.h"

#include <malloc.h>
#include <torch/torch.h>

#include <algorithm>
#include <thread>

#include "base/error.h"

namespace elastify::nn {
namespace {

/// Every pass allocates the same large buffers. If they went back to the system in between, page faults, one
/// per 4 KiB, would cost a fifth of the time.
void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the largest value that glibc accepts
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

}  // namespace

c10::Device device_named(const std::string& name) {
  c10::Device device(c10::kCPU);
  try {
    device = c10::Device(name);
  } catch (const std::exception&) {
    throw UsageError(fmt::format("device: unknown device '{}'", name), "one of cpu, cuda, cuda:1");
  }
  if (device.is_cuda() && !torch::cuda::is_available())
    throw UsageError(fmt::format("device: '{}' is not available: this LibTorch finds no CUDA device", name),
                     "use --device cpu");
  if (!device.is_cpu() && !device.is_cuda())
    throw UsageError(fmt::format("device: '{}' is not supported", name), "one of cpu, cuda, cuda:1");
  return device;
}

std::string device_of_process(int rank) {
  const auto n_devices = std::max<int64_t>(1, static_cast<int64_t>(torch::cuda::device_count()));
  return fmt::format("cuda:{}", rank % n_devices);
}

void set_threads(int n) {
  keep_freed_memory();
  at::set_num_threads(n > 0 ? n : std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
}

}  // namespace elastify::nn
