// Time and memory of the covariance algebra.
//     elastify_solve_bench [n D [block]]...      default: 1536 576
// Needs a quiet machine. "of gemm" is relative to a float64 matrix product measured in the same run.

#include <fmt/format.h>
#include <sys/resource.h>
#include <torch/torch.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include "solve/prefix_fit.h"

using namespace elastify;

namespace {

double gemm_rate = 0;

double resident_gib(const char* key) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (double kib = 0; word == key && status >> kib) return kib / (1 << 20);
  return 0;
}

/// Resets the peak of resident memory. Does nothing if the system does not allow that.
void reset_peak() {
  std::ofstream("/proc/self/clear_refs") << "5";
}

/// \param flops  the least number of operations that the work takes if it is done by matrix products
template <typename F>
auto timed(const char* what, double flops, F&& f) {
  reset_peak();
  const double before = resident_gib("VmRSS:");
  const auto start = std::chrono::steady_clock::now();
  auto result = f();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const double rate = flops / seconds / 1e9;
  if (gemm_rate == 0) gemm_rate = rate;
  fmt::print("  {:<22} {:8.2f} s {:7.1f} GFLOP/s {:4.0f} % of gemm, peak {:5.2f} GiB ({:.2f} before)\n", what,
             seconds, rate, 100 * rate / gemm_rate, resident_gib("VmHWM:"), before);
  std::fflush(stdout);
  return result;
}

void measure(int64_t n, int64_t d, int64_t block) {
  const c10::NoGradGuard no_grad;
  const auto options = at::TensorOptions().dtype(at::kDouble);
  const double nn = static_cast<double>(n), dd = static_cast<double>(d);
  at::manual_seed(1);
  solve::Projection p;
  p.block = block;
  {
    // Correlated inputs of unequal sizes. The moments look like those of 4 n tokens, but no tokens are drawn.
    const int64_t rank = std::max<int64_t>(n / 8, 1);
    const at::Tensor mix = at::randn({n, rank}, options) / std::sqrt(static_cast<double>(rank));
    const at::Tensor scale = at::exp(0.5 * at::randn({n}, options));
    p.moments = at::mm(mix, mix.t());
    p.moments.diagonal().add_(1);
    p.moments.mul_(scale).mul_(scale.unsqueeze(1));
    p.moments.diagonal().add_(p.moments.diagonal().mean() * 1e-3);
  }
  p.weight = at::randn({d, n}, options);
  fmt::print("n {} D {} block {}: one n x n matrix is {:.2f} GiB\n", n, d, block, nn * nn * 8 / (1 << 30));

  gemm_rate = 0;
  timed("gemm [2048, 2048]", 4 * 2 * std::pow(2048, 3), [&] {
    const at::Tensor a = at::randn({2048, 2048}, options);
    at::Tensor c;
    for (int i = 0; i < 4; ++i) c = at::mm(a, a);
    return c;
  });
  // Inverse, Gram matrix, and updates of both by products of which half is redundant.
  const auto order =
      timed("obs_order", nn * nn * nn * 3 + 2 * nn * nn * dd, [&] { return solve::obs_order(p); });
  timed("gram_order", nn * nn * dd, [&] { return solve::gram_order(p); });
  timed("forward_order", nn * nn * nn * 2 + 4 * nn * nn * dd, [&] { return solve::forward_order(p); });
  const auto fit =
      timed("PrefixFit", nn * nn * nn / 3 + nn * nn * dd, [&] { return solve::PrefixFit(p, order); });
  const auto errors = timed("errors", 0, [&] { return fit.errors(); });
  const auto unfitted =
      timed("errors_unfitted", nn * nn * nn / 3 + nn * nn * dd, [&] { return fit.errors_unfitted(); });
  const int64_t k = p.n_units() / 2;
  const double kk = static_cast<double>(k * block);
  timed("weights(half)", 2 * dd * kk * (nn - kk) + dd * kk * kk, [&] { return fit.weights(k); });
  for (const int64_t rank : {16, 64}) {
    if (rank > d) continue;
    const auto low = timed(fmt::format("low_rank(half, {})", rank).c_str(), 2 * dd * kk * (nn - kk),
                           [&] { return fit.low_rank(k, rank); });
    fmt::print("    rank {}: error {:.4f}, none {:.4f}, full {:.4f} of {:.4f}\n", rank, low.error,
               unfitted[static_cast<size_t>(k)], errors[static_cast<size_t>(k)], errors[0]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) measure(1536, 576, 1);
  for (int i = 1; i + 1 < argc; i += 3)
    measure(std::atoll(argv[i]), std::atoll(argv[i + 1]), i + 2 < argc ? std::atoll(argv[i + 2]) : 1);
}
