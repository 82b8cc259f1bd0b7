#pragma once

#include <c10/core/Device.h>

#include <string>

namespace elastify::nn {

/// "cpu", "cuda", "cuda:1".
/// \throws UsageError  if there is no such device
c10::Device device_named(const std::string& name);

/// The GPU of process number `rank` of one machine, "cuda:1". Processes are assigned round-robin.
std::string device_of_process(int rank);

/// Sets the number of threads for LibTorch's kernels and BLAS; 0: all cores. Also makes the process keep
/// freed memory for the next pass.
void set_threads(int n);

}  // namespace elastify::nn
