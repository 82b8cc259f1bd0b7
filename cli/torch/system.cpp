#include "nn/system.h"
#include "cli/torch/work.h"
#include "nn/device.h"

namespace elastify::cli {

Report work(const Invocation& call, const SystemCommand&) {
  nn::set_threads(static_cast<int>(call.config.threads));
  const nn::SystemReport system = nn::inspect_system();
  Report report;
  report.json = {{"torch", system.torch_version},
                 {"blas", system.blas},
                 {"kernels", system.kernels},
                 {"simd", system.simd},
                 {"cuda", system.cuda},
                 {"threads", system.threads},
                 {"gemm_gflops", system.gemm_gflops}};
  report.text = fmt::format(
      "LibTorch  {}\nBLAS      {}{}\nSIMD      {}\nCUDA      {}\nthreads   {}\nmatmul    {:.0f} GFLOP/s "
      "(float32)\n",
      system.torch_version, system.blas,
      system.kernels.empty() ? "" : fmt::format(" ({} kernels)", system.kernels), system.simd, system.cuda,
      system.threads, system.gemm_gflops);
  return report;
}

}  // namespace elastify::cli
