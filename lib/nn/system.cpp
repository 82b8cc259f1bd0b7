#include "nn/system.h"

#include <dlfcn.h>
#include <torch/torch.h>

#include <ATen/Version.h>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <mutex>

#include "base/log.h"
#include "base/openblas.h"

namespace elastify::nn {
namespace {

/// Reference BLAS reaches 2 to 4 GFLOP/s; optimised ones are beyond 20 on one core of any current machine.
constexpr double kSlowGflops = 8;

/// GFLOP/s of a float32 product of two n x n matrices, best of a few.
double measure_gemm(int64_t n, int repetitions) {
  const c10::NoGradGuard no_gradients;
  const at::Tensor a = at::ones({n, n}), b = at::ones({n, n});
  at::Tensor c = at::empty({n, n});
  at::mm_out(c, a, b);
  double best = 0;
  for (int i = 0; i < repetitions; ++i) {
    const auto start = std::chrono::steady_clock::now();
    at::mm_out(c, a, b);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, 2e-9 * static_cast<double>(n * n * n) / seconds);
  }
  return best;
}

/// The library that performs LibTorch's matrix products.
std::string blas_library() {
  Dl_info found{};
  if (void* symbol = dlsym(RTLD_DEFAULT, "sgemm_");
      symbol != nullptr && dladdr(symbol, &found) != 0 && found.dli_fname != nullptr) {
    std::error_code ignored;
    const auto path = std::filesystem::canonical(found.dli_fname, ignored);
    return path.empty() ? found.dli_fname : path.string();
  }
  return at::hasMKL() ? "MKL, part of LibTorch" : "part of LibTorch";
}

/// The text after `key` up to the end of its line in LibTorch's own description.
std::string config_line(const std::string& key) {
  const std::string text = at::show_config();
  const size_t found = text.find(key);
  if (found == std::string::npos) return "unknown";
  const size_t first = text.find_first_not_of(' ', found + key.size());
  return text.substr(first, text.find('\n', first) - first);
}

}  // namespace

SystemReport inspect_system() {
  SystemReport report;
  report.torch_version = TORCH_VERSION;
  report.blas = blas_library();
  report.kernels = openblas_kernels();
  report.simd = config_line("CPU capability usage:");
  const auto n_devices = torch::cuda::is_available() ? torch::cuda::device_count() : 0;
  report.cuda = n_devices == 0 ? "none" : fmt::format("{} device{}", n_devices, n_devices == 1 ? "" : "s");
  report.threads = at::get_num_threads();
  report.gemm_gflops = measure_gemm(1024, 10);
  return report;
}

void warn_if_blas_is_slow() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (const double gflops = measure_gemm(256, 20); gflops < kSlowGflops)
      log::warn(
          "matrix products run at {:.1f} GFLOP/s in {}; an optimised BLAS on an idle machine does 50 and "
          "more per core "
          "(on Debian: apt-get install libopenblas0-openmp)",
          gflops, blas_library());
  });
}

}  // namespace elastify::nn
