#include "nn/kernels.h"

#include <torch/torch.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

// Compiles a function for several instruction sets. The best one is chosen when the program starts.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
#define ELASTIFY_VECTORISED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ELASTIFY_VECTORISED
#endif

namespace elastify::nn {
namespace {

/// Rows of x^T x per matrix product. Smaller blocks compute fewer unneeded elements above the diagonal.
constexpr int64_t kMomentRows = 512;

/// exp(x) with an error of at most 2 units in the last place, in operations that compilers can vectorise. NaN
/// stays NaN.
/// Source: Cephes, expf
[[gnu::always_inline]] inline float exp_approximate(float x) {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it leaves the integer part in the low bits
  x = std::min(std::max(x, -87.0F), 88.0F);
  const float shifted = x * 1.44269504F + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375F) - n * -2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const int32_t power = (std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound) + 127) << 23;
  return p * std::bit_cast<float>(power);
}

ELASTIFY_VECTORISED void rms_norm_row(const float* x, const float* weight, float eps, float* out, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  const float factor = 1 / std::sqrt(sum / static_cast<float>(n) + eps);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * factor * weight[i];
}

ELASTIFY_VECTORISED void rotate_row(float* x, const float* cosine, const float* sine, int64_t n_heads,
                                    int64_t half) {
  for (int64_t h = 0; h < n_heads; ++h) {
    float* low = x + h * 2 * half;
    float* high = low + half;
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      const float a = low[i], b = high[i];
      low[i] = a * cosine[i] - b * sine[i];
      high[i] = b * cosine[i] + a * sine[i];
    }
  }
}

/// grad_x += weight * grad * f - x * f^3 / n * sum(weight * grad * x), with f = 1 / rms(x).
ELASTIFY_VECTORISED void rms_norm_backward_row(const float* x, const float* weight, float eps,
                                               const float* grad, float* grad_x, int64_t n) {
  float squares = 0, products = 0;
#pragma omp simd reduction(+ : squares, products)
  for (int64_t i = 0; i < n; ++i) {
    squares += x[i] * x[i];
    products += weight[i] * grad[i] * x[i];
  }
  const float factor = 1 / std::sqrt(squares / static_cast<float>(n) + eps);
  const float along = factor * factor * factor * products / static_cast<float>(n);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) grad_x[i] += weight[i] * grad[i] * factor - x[i] * along;
}

// x sigmoid(z(x)) is SiLU with z = x, and GELU's approximation by tanh with this z, because
// (1 + tanh(u)) / 2 = sigmoid(2 u).
constexpr float kGeluScale = 1.5957691216F;  // 2 sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715F;

[[gnu::always_inline]] inline float gelu_exponent(float x) {
  return kGeluScale * (x + kGeluCubic * x * x * x);
}

ELASTIFY_VECTORISED void silu_multiply_run(const float* gate, const float* up, float* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = gate[i] / (1 + exp_approximate(-gate[i])) * up[i];
}

ELASTIFY_VECTORISED void gelu_multiply_run(const float* gate, const float* up, float* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = gate[i] / (1 + exp_approximate(-gelu_exponent(gate[i]))) * up[i];
}

ELASTIFY_VECTORISED void silu_multiply_backward_run(float* gate, float* up, const float* grad, double* sum,
                                                    int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float sigmoid = 1 / (1 + exp_approximate(-gate[i]));
    const float silu = gate[i] * sigmoid;
    const float grad_up = grad[i] * silu;
    sum[i] += static_cast<double>(grad_up * up[i]);
    gate[i] = grad[i] * up[i] * sigmoid * (1 + gate[i] - silu);
    up[i] = grad_up;
  }
}

ELASTIFY_VECTORISED void gelu_multiply_backward_run(float* gate, float* up, const float* grad, double* sum,
                                                    int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float sigmoid = 1 / (1 + exp_approximate(-gelu_exponent(gate[i])));
    const float gelu = gate[i] * sigmoid;
    const float slope = kGeluScale * (1 + 3 * kGeluCubic * gate[i] * gate[i]);  // of the exponent
    const float grad_up = grad[i] * gelu;
    sum[i] += static_cast<double>(grad_up * up[i]);
    gate[i] = grad[i] * up[i] * sigmoid * (1 + slope * (gate[i] - gelu));
    up[i] = grad_up;
  }
}

ELASTIFY_VECTORISED void add_products(const float* x, const float* y, double* sum, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) sum[i] += static_cast<double>(x[i] * y[i]);
}

ELASTIFY_VECTORISED float maximum_of(const float* x, int64_t n) {
  float result = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : result)
  for (int64_t i = 0; i < n; ++i) result = std::max(result, x[i]);
  return result;
}

ELASTIFY_VECTORISED float sum_of_exp(const float* x, float maximum, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += exp_approximate(x[i] - maximum);
  return sum;
}

ELASTIFY_VECTORISED float exp_in_place(float* x, float maximum, float scale, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    x[i] = exp_approximate((x[i] - maximum) * scale);
    sum += x[i];
  }
  return sum;
}

ELASTIFY_VECTORISED void multiply_run(float* x, float factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

ELASTIFY_VECTORISED void softmax_backward_row(const float* weights, float* grad, float scale, int64_t n) {
  float mean = 0;
#pragma omp simd reduction(+ : mean)
  for (int64_t i = 0; i < n; ++i) mean += weights[i] * grad[i];
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) grad[i] = weights[i] * (grad[i] - mean) * scale;
}

ELASTIFY_VECTORISED void add_squares(const float* x, double* sum, double* squares, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    sum[i] += static_cast<double>(x[i]);
    squares[i] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
}

/// Least number of rows for which another thread pays off.
int64_t grain(int64_t row_length) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, row_length));
}

/// Calls run(offset into x, offset into sums [B, n], length) for all of x [B, T, n], by runs of columns. One
/// thread does all rows of a run, so sums over t need no locks and are always added in the same order.
template <typename Run>
void for_column_runs(const at::Tensor& x, const Run& run) {
  constexpr int64_t kColumns = 128;
  const int64_t n_rows = x.size(1), n = x.size(2), n_runs = (n + kColumns - 1) / kColumns;
  at::parallel_for(0, x.size(0) * n_runs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t batch = i / n_runs, first = i % n_runs * kColumns;
      for (int64_t row = 0; row < n_rows; ++row)
        run((batch * n_rows + row) * n + first, batch * n + first, std::min(kColumns, n - first));
    }
  });
}

}  // namespace

bool is_fused(const at::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kFloat;
}

void rms_norm_rows(const at::Tensor& x, const at::Tensor& weight, double eps, const at::Tensor& out) {
  if (!is_fused(x)) {
    const at::Tensor wide = x.to(at::kFloat);
    out.copy_((wide * at::rsqrt(wide.square().mean(-1, true) + eps)).to(x.scalar_type()) * weight);
    return;
  }
  const int64_t n = x.size(-1);
  const float* source = x.data_ptr<float>();
  const float* factors = weight.data_ptr<float>();
  float* target = out.data_ptr<float>();
  at::parallel_for(0, n == 0 ? 0 : x.numel() / n, grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      rms_norm_row(source + row * n, factors, static_cast<float>(eps), target + row * n, n);
  });
}

void rms_norm_backward_rows(const at::Tensor& x, const at::Tensor& weight, double eps, const at::Tensor& grad,
                            const at::Tensor& grad_x) {
  if (!is_fused(x)) {
    const at::Tensor wide = x.to(at::kFloat), weighted = (grad * weight).to(at::kFloat);
    const at::Tensor factor = at::rsqrt(wide.square().mean(-1, true) + eps);
    const at::Tensor along = factor.pow(3) * (weighted * wide).mean(-1, true);
    grad_x.add_((weighted * factor - wide * along).to(x.scalar_type()));
    return;
  }
  const int64_t n = x.size(-1);
  const float* source = x.data_ptr<float>();
  const float* factors = weight.data_ptr<float>();
  const float* slopes = grad.data_ptr<float>();
  float* target = grad_x.data_ptr<float>();
  at::parallel_for(0, n == 0 ? 0 : x.numel() / n, grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      rms_norm_backward_row(source + row * n, factors, static_cast<float>(eps), slopes + row * n,
                            target + row * n, n);
  });
}

void rotate_heads(const at::Tensor& x, const at::Tensor& cosines, const at::Tensor& sines) {
  const int64_t n_positions = x.size(1), n_heads = x.size(2), head_dim = x.size(3), half = head_dim / 2;
  if (!is_fused(x)) {
    const at::Tensor cosine = cosines.unsqueeze(1).to(x.scalar_type());
    const at::Tensor sine = sines.unsqueeze(1).to(x.scalar_type());
    const at::Tensor low = x.narrow(3, 0, half), high = x.narrow(3, half, half);
    x.copy_(at::cat({low * cosine - high * sine, high * cosine + low * sine}, 3));
    return;
  }
  float* values = x.data_ptr<float>();
  const float* cosine = cosines.data_ptr<float>();
  const float* sine = sines.data_ptr<float>();
  at::parallel_for(0, x.size(0) * n_positions, grain(n_heads * head_dim), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t position = row % n_positions;
      rotate_row(values + row * n_heads * head_dim, cosine + position * half, sine + position * half, n_heads,
                 half);
    }
  });
}

void multiply_gated(Activation activation, const at::Tensor& gate, const at::Tensor& up,
                    const at::Tensor& out) {
  const bool silu = activation == Activation::kSilu;
  if (!is_fused(gate)) {
    out.copy_((silu ? at::silu(gate) : at::gelu(gate, "tanh")) * up);
    return;
  }
  const float* gates = gate.data_ptr<float>();
  const float* factors = up.data_ptr<float>();
  float* target = out.data_ptr<float>();
  at::parallel_for(0, gate.numel(), 8192, [&](int64_t begin, int64_t end) {
    (silu ? silu_multiply_run : gelu_multiply_run)(gates + begin, factors + begin, target + begin,
                                                   end - begin);
  });
}

at::Tensor multiply_gated_backward(Activation activation, const at::Tensor& gate, const at::Tensor& up,
                                   const at::Tensor& grad) {
  const bool silu = activation == Activation::kSilu;
  if (!is_fused(gate)) {
    const at::Tensor wide = gate.to(at::kFloat), grad_out = grad.to(at::kFloat), factor = up.to(at::kFloat);
    const at::Tensor cubic = kGeluCubic * wide.square();
    const at::Tensor sigmoid = (silu ? wide : kGeluScale * wide * (1 + cubic)).sigmoid();
    const at::Tensor active = wide * sigmoid, grad_up = grad_out * active;
    const at::Tensor sums = (grad_up * factor).sum(1, false, at::kDouble);
    const at::Tensor slope = silu ? 1 + wide - active : 1 + kGeluScale * (1 + 3 * cubic) * (wide - active);
    gate.copy_(grad_out * factor * sigmoid * slope);
    up.copy_(grad_up);
    return sums;
  }
  at::Tensor sums = at::zeros({gate.size(0), gate.size(2)}, gate.options().dtype(at::kDouble));
  float* gates = gate.data_ptr<float>();
  float* factors = up.data_ptr<float>();
  const float* slopes = grad.data_ptr<float>();
  for_column_runs(gate, [&](int64_t offset, int64_t sum_offset, int64_t n) {
    (silu ? silu_multiply_backward_run : gelu_multiply_backward_run)(
        gates + offset, factors + offset, slopes + offset, sums.data_ptr<double>() + sum_offset, n);
  });
  return sums;
}

at::Tensor sum_products(const at::Tensor& x, const at::Tensor& y) {
  if (!is_fused(x)) return (x.to(at::kFloat) * y.to(at::kFloat)).sum(1, false, at::kDouble);
  at::Tensor sums = at::zeros({x.size(0), x.size(2)}, x.options().dtype(at::kDouble));
  const float* a = x.data_ptr<float>();
  const float* b = y.data_ptr<float>();
  for_column_runs(x, [&](int64_t offset, int64_t sum_offset, int64_t n) {
    add_products(a + offset, b + offset, sums.data_ptr<double>() + sum_offset, n);
  });
  return sums;
}

void add_column_sums(const at::Tensor& x, const at::Tensor& sum, const at::Tensor& squares) {
  if (!is_fused(x)) {
    const at::Tensor wide = x.to(at::kFloat);
    sum.add_(wide.sum(0, false, at::kDouble).to(at::kCPU));
    squares.add_(wide.square().sum(0, false, at::kDouble).to(at::kCPU));
    return;
  }
  const float* values = x.data_ptr<float>();
  for_column_runs(x.unsqueeze(0), [&](int64_t offset, int64_t sum_offset, int64_t n) {
    add_squares(values + offset, sum.data_ptr<double>() + sum_offset, squares.data_ptr<double>() + sum_offset,
                n);
  });
}

void add_moments(const at::Tensor& x, const at::Tensor& total) {
  const at::Tensor columns = x.to(at::kFloat);
  const int64_t n = x.size(1);
  for (int64_t first = 0; first < n; first += kMomentRows) {
    const int64_t rows = std::min(kMomentRows, n - first), end = first + rows;
    const at::Tensor product = at::mm(columns.narrow(1, first, rows).t(), columns.narrow(1, 0, end));
    total.narrow(0, first, rows).narrow(1, 0, end).add_(product.to(at::kCPU, at::kDouble));
  }
}

void softmax_row(float* row, int64_t n, int64_t first, int64_t last, float scale) {
  const float maximum = maximum_of(row + first, last - first);
  const float sum = exp_in_place(row + first, maximum, scale, last - first);
  multiply_run(row + first, 1 / sum, last - first);
  std::fill(row, row + first, 0.0F);
  std::fill(row + last, row + n, 0.0F);
}

void softmax_backward_rows(const at::Tensor& weights, const at::Tensor& grad, float scale) {
  const int64_t n = weights.size(1);
  for (int64_t row = 0; row < weights.size(0); ++row)
    softmax_backward_row(weights.data_ptr<float>() + row * n, grad.data_ptr<float>() + row * n, scale, n);
}

void accumulate_log_sum_exp(const at::Tensor& x, const at::Tensor& maximum, const at::Tensor& sum) {
  const int64_t n = x.size(1);
  const float* values = x.data_ptr<float>();
  float* maxima = maximum.data_ptr<float>();
  float* sums = sum.data_ptr<float>();
  at::parallel_for(0, x.size(0), grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float highest = std::max(maxima[row], maximum_of(values + row * n, n));
      sums[row] = sums[row] * std::exp(maxima[row] - highest) + sum_of_exp(values + row * n, highest, n);
      maxima[row] = highest;
    }
  });
}

at::Tensor softmax_rows(const at::Tensor& x) {
  const int64_t n = x.size(1);
  at::Tensor result = at::empty({x.size(0)}, x.options());
  float* values = x.data_ptr<float>();
  float* log_sums = result.data_ptr<float>();
  at::parallel_for(0, x.size(0), grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* run = values + row * n;
      const float maximum = maximum_of(run, n);
      const float sum = exp_in_place(run, maximum, 1, n);
      multiply_run(run, 1 / sum, n);
      log_sums[row] = maximum + std::log(sum);
    }
  });
  return result;
}

}  // namespace elastify::nn
