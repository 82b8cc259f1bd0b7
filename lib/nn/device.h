#pragma once

#include <c10/core/Device.h>

#include <string>

namespace elastify::nn {

/// "cpu", "cuda", "cuda:1".
/// \throws UsageError  if there is no such device
c10::Device device_named(const std::string& name);

/// The GPU that process number `rank` of one machine computes on, "cuda:1": processes take turns.
std::string device_of_process(int rank);

/// Threads for LibTorch's kernels and BLAS; 0: all cores. Also keeps freed memory for the next pass.
void set_threads(int n);

}  // namespace elastify::nn
