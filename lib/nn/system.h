#pragma once

#include <string>

namespace elastify::nn {

/// LibTorch version, BLAS in use and OpenBLAS's kernels, threads, SIMD, CUDA devices, and GFLOP/s of a
/// float32 matrix product measured now.
struct SystemReport {
  std::string torch_version, blas, kernels, simd, cuda;
  int threads = 0;
  double gemm_gflops = 0;
};
SystemReport inspect_system();

/// Warns once on stderr if matrix products are far slower than this machine allows (reference BLAS).
void warn_if_blas_is_slow();

}  // namespace elastify::nn
