#include "io/ggml_k_quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "io/half.h"

// A block lies in 16 lanes of 16 elements: lane l holds elements 16 l .. 16 l + 15. Every step works on all
// lanes at once. A run of 32 takes two lanes, which exchange their sums over the run.

namespace elastify::ggml {
namespace {

constexpr int kLanes = 16, kDepth = 16, kBlock = kLanes * kDepth;

struct alignas(64) Lanes {
  float v[kLanes];
  ELASTIFY_KERNEL float& operator[](int l) { return v[l]; }
  ELASTIFY_KERNEL float operator[](int l) const { return v[l]; }
};

/// The block and its weights, [element][lane].
struct Block {
  Lanes x[kDepth], w[kDepth], wx[kDepth];
  Lanes q[kDepth];  ///< rounded
};

/// Step widths to try: the i-th cuts the range into at(i) steps more than usual, or fewer if negative.
struct Candidates {
  int n;
  float first, step;
  constexpr float at(int i) const { return first + step * static_cast<float>(i); }
};
constexpr int kRefinements = 2;
constexpr int kSettlings = 3;  ///< rounds of fitting scales and minima to d and m, and the reverse

/// Per lane, the fit y = a q - b, and by how much it lowers the weighted sum of squares.
struct Fit {
  Lanes a, b, gain;
};

[[noreturn, gnu::noinline]] void refuse(const char* type, float largest) {
  if (!std::isfinite(largest)) fail("{}: found a value that is not finite", type);
  fail("{}: the largest value is {}, above what an f16 scale can hold", type, largest);
}
[[noreturn, gnu::noinline]] void refuse_importance(const char* type) {
  fail("{}: the importance of a column is negative or not finite", type);
}

ELASTIFY_KERNEL float smaller(float a, float b) {
  return a < b ? a : b;
}
ELASTIFY_KERNEL float larger(float a, float b) {
  return a > b ? a : b;
}
/// Rounds to the nearest whole number, ties to even; for |x| < 2^22.
ELASTIFY_KERNEL float rounded(float x) {
  return (x + 12582912.0F) - 12582912.0F;
}
ELASTIFY_KERNEL float quotient(float a, float b) {
  return b > 0 ? a / b : 0.0F;
}

// Sums over a run. A run of 32 has two lanes.
template <int kRun>
ELASTIFY_KERNEL void sum_over_run(Lanes& lanes) {
  if constexpr (kRun == 32) {
    const Lanes own = lanes;
    for (int l = 0; l < kLanes; ++l) lanes[l] = own[l] + own[l ^ 1];
  }
}
template <int kRun>
ELASTIFY_KERNEL void largest_over_run(Lanes& lanes) {
  if constexpr (kRun == 32) {
    const Lanes own = lanes;
    for (int l = 0; l < kLanes; ++l) lanes[l] = larger(own[l], own[l ^ 1]);
  }
}

ELASTIFY_KERNEL float sum_of_lanes(const Lanes& summands) {
  Lanes lanes = summands;
  for (int n = kLanes / 2; n > 0; n /= 2)
    for (int l = 0; l < n; ++l) lanes[l] = lanes[l] + lanes[l + n];
  return lanes[0];
}
ELASTIFY_KERNEL float largest_of_lanes(const Lanes& lanes) {
  float largest = lanes[0];
  for (int l = 1; l < kLanes; ++l) largest = larger(largest, lanes[l]);
  return largest;
}

ELASTIFY_KERNEL void load(const char* type, const float* __restrict source,
                          const float* __restrict importance, int run, Block& block) {
  int32_t largest = 0;
  for (int i = 0; i < kBlock; ++i)
    largest = std::max(largest, std::bit_cast<int32_t>(source[i]) & 0x7fffffff);
  if (largest >= 0x7f800000) refuse(type, std::bit_cast<float>(largest));
  for (int i = 0; i < kDepth; ++i)
    for (int l = 0; l < kLanes; ++l) block.x[i][l] = source[l * kDepth + i];

  Lanes square = {};
  for (int i = 0; i < kDepth; ++i)
    for (int l = 0; l < kLanes; ++l) square[l] = square[l] + block.x[i][l] * block.x[i][l];
  if (run == 32) sum_over_run<32>(square);
  Lanes root;
  for (int l = 0; l < kLanes; ++l) root[l] = std::sqrt(square[l] / static_cast<float>(run));
  for (int i = 0; i < kDepth; ++i)
    for (int l = 0; l < kLanes; ++l) block.w[i][l] = root[l] + std::abs(block.x[i][l]);
  if (importance != nullptr) {
    int32_t worst = 0;  // a negative number counts as an infinity
    for (int i = 0; i < kBlock; ++i)
      worst = std::max(worst, std::bit_cast<int32_t>(importance[i]) < 0 && importance[i] != 0
                                  ? 0x7f800000
                                  : std::bit_cast<int32_t>(importance[i]));
    if (worst >= 0x7f800000) refuse_importance(type);
    for (int i = 0; i < kDepth; ++i)
      for (int l = 0; l < kLanes; ++l) block.w[i][l] = importance[l * kDepth + i];
  }
  for (int i = 0; i < kDepth; ++i)
    for (int l = 0; l < kLanes; ++l) block.wx[i][l] = block.w[i][l] * block.x[i][l];
}

/// Takes over the lanes of `found` that gain more.
ELASTIFY_KERNEL void keep_better(const Fit& found, Fit& best) {
  for (int l = 0; l < kLanes; ++l) {
    const bool better = found.gain[l] > best.gain[l];
    best.a[l] = better ? found.a[l] : best.a[l];
    best.b[l] = better ? found.b[l] : best.b[l];
    best.gain[l] = better ? found.gain[l] : best.gain[l];
  }
}

/// The sums over a run that a weighted fit of y = a q - b needs: of w and of w x.
struct RunSums {
  Lanes w, wx;
};

/// Rounds (x - low) inverse to 0 .. kLast and fits a >= 0 and b >= 0.
template <int kLast>
ELASTIFY_KERNEL Fit fit_with_minimum(const Block& block, const RunSums& sums, const Lanes& low,
                                     const Lanes& inverse) {
  Lanes q1 = {}, q2 = {}, xq = {};
  for (int i = 0; i < kDepth; ++i)
    for (int l = 0; l < kLanes; ++l) {
      const float q = smaller(larger(rounded((block.x[i][l] - low[l]) * inverse[l]), 0.0F), kLast);
      const float wq = block.w[i][l] * q;
      q1[l] = q1[l] + wq;
      q2[l] = q2[l] + wq * q;
      xq[l] = xq[l] + block.wx[i][l] * q;
    }
  sum_over_run<32>(q1);
  sum_over_run<32>(q2);
  sum_over_run<32>(xq);
  Fit fit;
  for (int l = 0; l < kLanes; ++l) {
    const float determinant = sums.w[l] * q2[l] - q1[l] * q1[l];
    const float slope = sums.w[l] * xq[l] - sums.wx[l] * q1[l];
    const float offset = q1[l] * xq[l] - q2[l] * sums.wx[l];
    const bool free = determinant > 0 && offset >= 0 && slope >= 0;
    // If the best minimum has the wrong sign, the best admissible one is zero.
    fit.a[l] = free ? quotient(slope, determinant) : larger(quotient(xq[l], q2[l]), 0.0F);
    fit.b[l] = free ? quotient(offset, determinant) : 0.0F;
    fit.gain[l] = fit.a[l] * xq[l] - fit.b[l] * sums.wx[l];
  }
  return fit;
}

/// Searches the scales and minima of the runs of q4_K and q5_K.
template <int kLast>
ELASTIFY_KERNEL Fit search_with_minimum(const Block& block) {
  constexpr Candidates kTry = kLast == 15 ? Candidates{16, -1.2F, 0.15F} : Candidates{24, -0.9F, 0.15F};
  Lanes low = {}, high = {};  // the range includes zero, because a minimum cannot be positive
  RunSums sums = {};
  for (int i = 0; i < kDepth; ++i)
    for (int l = 0; l < kLanes; ++l) {
      low[l] = larger(low[l], -block.x[i][l]);
      high[l] = larger(high[l], block.x[i][l]);
      sums.w[l] = sums.w[l] + block.w[i][l];
      sums.wx[l] = sums.wx[l] + block.wx[i][l];
    }
  largest_over_run<32>(low);
  largest_over_run<32>(high);
  sum_over_run<32>(sums.w);
  sum_over_run<32>(sums.wx);
  Lanes per_range;
  for (int l = 0; l < kLanes; ++l) {
    per_range[l] = quotient(1.0F, high[l] + low[l]);
    low[l] = -low[l];
  }
  Fit best = {};
  for (int step = 0; step < kTry.n; ++step) {
    Lanes inverse;
    for (int l = 0; l < kLanes; ++l) inverse[l] = (static_cast<float>(kLast) + kTry.at(step)) * per_range[l];
    keep_better(fit_with_minimum<kLast>(block, sums, low, inverse), best);
  }
  for (int again = 0; again < kRefinements; ++again) {
    Lanes inverse;
    for (int l = 0; l < kLanes; ++l) {
      inverse[l] = quotient(1.0F, best.a[l]);
      low[l] = -best.b[l];
    }
    keep_better(fit_with_minimum<kLast>(block, sums, low, inverse), best);
  }
  return best;
}

/// Rounds x inverse to -32 .. 31 and fits a, of either sign.
ELASTIFY_KERNEL Fit fit_symmetric(const Block& block, const Lanes& inverse) {
  Lanes q2 = {}, xq = {};
  for (int i = 0; i < kDepth; ++i)
    for (int l = 0; l < kLanes; ++l) {
      const float q = smaller(larger(rounded(block.x[i][l] * inverse[l]), -32.0F), 31.0F);
      q2[l] = q2[l] + block.w[i][l] * q * q;
      xq[l] = xq[l] + block.wx[i][l] * q;
    }
  Fit fit;
  for (int l = 0; l < kLanes; ++l) {
    fit.a[l] = quotient(xq[l], q2[l]);
    fit.b[l] = 0;
    fit.gain[l] = fit.a[l] * xq[l];
  }
  return fit;
}

ELASTIFY_KERNEL Fit search_symmetric(const Block& block) {
  constexpr Candidates kTry{19, -0.9F, 0.1F};
  Lanes low = {}, high = {};
  for (int i = 0; i < kDepth; ++i)
    for (int l = 0; l < kLanes; ++l) {
      low[l] = larger(low[l], -block.x[i][l]);
      high[l] = larger(high[l], block.x[i][l]);
    }
  Lanes per_largest;  // signed so that the value of largest magnitude becomes -32
  for (int l = 0; l < kLanes; ++l)
    per_largest[l] = low[l] >= high[l] ? quotient(1.0F, low[l]) : -quotient(1.0F, high[l]);
  Fit best = {};
  for (int step = 0; step < kTry.n; ++step) {
    Lanes inverse;
    for (int l = 0; l < kLanes; ++l) inverse[l] = (32.0F + kTry.at(step)) * per_largest[l];
    keep_better(fit_symmetric(block, inverse), best);
  }
  return best;
}

/// The step d and minimum m of the whole block, as stored.
struct Stored {
  uint16_t d_bits, m_bits;
  float d, m;
};
ELASTIFY_KERNEL Stored stored(float d, float m) {
  const uint16_t d_bits = half::to_f16(d), m_bits = half::to_f16(m);
  return {d_bits, m_bits, half::from_f16(d_bits), half::from_f16(m_bits)};
}
ELASTIFY_KERNEL bool fits(const Stored& s) {
  return (s.d_bits & 0x7fff) < 0x7c00 && (s.m_bits & 0x7fff) < 0x7c00;
}

/// The weighted squared error of each run, with all elements rounded to y = (d scale) q - m minimum.
template <int kRun>
ELASTIFY_KERNEL Lanes error_of(const Block& block, const Stored& s, const Lanes& scale, const Lanes& minimum,
                               float first, float last) {
  Lanes step, inverse, low, error = {};
  for (int l = 0; l < kLanes; ++l) {
    step[l] = s.d * scale[l];
    inverse[l] = step[l] != 0 ? 1.0F / step[l] : 0.0F;
    low[l] = s.m * minimum[l];
  }
  for (int i = 0; i < kDepth; ++i)
    for (int l = 0; l < kLanes; ++l) {
      const float shifted = block.x[i][l] + low[l];
      const float q = smaller(larger(rounded(shifted * inverse[l]), first), last);
      const float off = shifted - step[l] * q;
      error[l] = error[l] + block.w[i][l] * off * off;
    }
  sum_over_run<kRun>(error);
  return error;
}

/// Moves each run's scale and minimum to the best of their neighbours, for d and m as they are stored.
/// It has eight parameters: the last four are bounds, which each type states as constants.
template <int kRun>
ELASTIFY_KERNEL void settle(const Block& block, const Stored& s, Lanes& scale, Lanes& minimum, float first,
                            float last, float lowest, float highest) {
  const Lanes a = scale, b = minimum;
  Lanes least = error_of<kRun>(block, s, a, b, first, last);
  constexpr int kReach = kRun == 32 ? 1 : 0;  // runs of 16 have no minimum
  for (int i = -1; i <= 1; ++i)
    for (int j = -kReach; j <= kReach; ++j) {
      Lanes near_a, near_b;
      for (int l = 0; l < kLanes; ++l) {
        near_a[l] = smaller(larger(a[l] + static_cast<float>(i), lowest), highest);
        near_b[l] = smaller(larger(b[l] + static_cast<float>(j), 0), 63);
      }
      const Lanes error = error_of<kRun>(block, s, near_a, near_b, first, last);
      for (int l = 0; l < kLanes; ++l) {
        const bool better = error[l] < least[l];
        scale[l] = better ? near_a[l] : scale[l];
        minimum[l] = better ? near_b[l] : minimum[l];
        least[l] = better ? error[l] : least[l];
      }
    }
}

/// Rounds all elements to y = (d scale) q - m minimum.
ELASTIFY_KERNEL void round_block(Block& block, const Stored& s, const Lanes& scale, const Lanes& minimum,
                                 float first, float last) {
  Lanes inverse, low;
  for (int l = 0; l < kLanes; ++l) {
    const float step = s.d * scale[l];
    inverse[l] = step != 0 ? 1.0F / step : 0.0F;
    low[l] = s.m * minimum[l];
  }
  for (int i = 0; i < kDepth; ++i)
    for (int l = 0; l < kLanes; ++l)
      block.q[i][l] = smaller(larger(rounded((block.x[i][l] + low[l]) * inverse[l]), first), last);
}

/// Fits d and m to the whole block with the numbers as rounded. Returns `s` if the fit is no better.
ELASTIFY_KERNEL Stored refitted(const Block& block, const Stored& s, const Lanes& scale,
                                const Lanes& minimum) {
  Lanes uu = {}, uv = {}, vv = {}, xu = {}, xv = {};
  for (int i = 0; i < kDepth; ++i)
    for (int l = 0; l < kLanes; ++l) {
      const float u = scale[l] * block.q[i][l], v = minimum[l];
      const float wu = block.w[i][l] * u, wv = block.w[i][l] * v;
      uu[l] = uu[l] + wu * u;
      uv[l] = uv[l] + wu * v;
      vv[l] = vv[l] + wv * v;
      xu[l] = xu[l] + block.wx[i][l] * u;
      xv[l] = xv[l] + block.wx[i][l] * v;
    }
  const float a = sum_of_lanes(uu), b = sum_of_lanes(uv), c = sum_of_lanes(vv);
  const float e = sum_of_lanes(xu), f = sum_of_lanes(xv);
  const float determinant = a * c - b * b;
  const bool both = determinant > 0;
  const Stored other =
      both ? stored(quotient(e * c - b * f, determinant), quotient(b * e - a * f, determinant))
           : stored(quotient(e, a), 0.0F);
  const auto gain = [&](const Stored& t) {
    return 2 * (t.d * e - t.m * f) - (t.d * t.d * a - 2 * t.d * t.m * b + t.m * t.m * c);
  };
  return fits(other) && other.m >= 0 && gain(other) > gain(s) ? other : s;
}

/// Stores the rounded numbers in the order of the elements, with `offset` added.
ELASTIFY_KERNEL void store_rounded(const Block& block, float offset, uint8_t* q) {
  for (int i = 0; i < kDepth; ++i)
    for (int l = 0; l < kLanes; ++l)
      q[l * kDepth + i] = static_cast<uint8_t>(static_cast<int32_t>(block.q[i][l] + offset));
}

// The inverse of run_scale() in ggml_blocks.cpp. The first four runs go into the low 6 bits of bytes 0..3
// and 4..7. The others go into bytes 8..11 with 4 bits each, and their top 2 bits above those of the first
// four.
ELASTIFY_KERNEL void store_run_scales(const Lanes& scale, const Lanes& minimum, uint8_t* s) {
  for (int run = 0; run < 8; ++run) {
    const auto a = static_cast<uint8_t>(scale[2 * run]), b = static_cast<uint8_t>(minimum[2 * run]);
    if (run < 4) {
      s[run] = a;
      s[run + 4] = b;
    } else {
      s[run + 4] = static_cast<uint8_t>((a & 15) | (b & 15) << 4);
      s[run - 4] = static_cast<uint8_t>(s[run - 4] | (a >> 4) << 6);
      s[run] = static_cast<uint8_t>(s[run] | (b >> 4) << 6);
    }
  }
}

template <int kBits>
ELASTIFY_KERNEL void encode_with_minimum(const float* __restrict source, std::byte* __restrict target,
                                         int64_t n_blocks, const float* __restrict importance) {
  constexpr const char* kType = kBits == 4 ? "q4_K" : "q5_K";
  constexpr int kLast = (1 << kBits) - 1;
  constexpr int kBytes = kBits == 4 ? 144 : 176;
  Block block;
  for (int64_t b = 0; b < n_blocks; ++b, source += kBlock, target += kBytes) {
    load(kType, source, importance == nullptr ? nullptr : importance + b * kBlock, 32, block);
    const Fit fit = search_with_minimum<kLast>(block);
    const float widest = largest_of_lanes(fit.a), deepest = largest_of_lanes(fit.b);
    Stored s = stored(widest / 63, deepest / 63);
    if (!fits(s)) refuse(kType, larger(widest, deepest));
    Lanes scale, minimum;
    const float per_d = quotient(63, widest), per_m = quotient(63, deepest);
    for (int l = 0; l < kLanes; ++l) {
      scale[l] = smaller(rounded(fit.a[l] * per_d), 63);
      minimum[l] = smaller(rounded(fit.b[l] * per_m), 63);
    }
    for (int again = 0; again < kSettlings; ++again) {
      settle<32>(block, s, scale, minimum, 0, kLast, 0, 63);
      round_block(block, s, scale, minimum, 0, kLast);
      s = refitted(block, s, scale, minimum);
    }
    round_block(block, s, scale, minimum, 0, kLast);

    uint8_t q[kBlock], packed[kBytes] = {};
    store_rounded(block, 0, q);
    std::memcpy(packed, &s.d_bits, 2);
    std::memcpy(packed + 2, &s.m_bits, 2);
    store_run_scales(scale, minimum, packed + 4);
    uint8_t* nibbles = packed + kBytes - 128;
    for (int run = 0; run < 8; run += 2)
      for (int i = 0; i < 32; ++i)
        nibbles[run * 16 + i] =
            static_cast<uint8_t>((q[run * 32 + i] & 15) | (q[run * 32 + 32 + i] & 15) << 4);
    if constexpr (kBits == 5)
      for (int run = 0; run < 8; ++run)
        for (int i = 0; i < 32; ++i)
          packed[16 + i] = static_cast<uint8_t>(packed[16 + i] | (q[run * 32 + i] >> 4) << run);
    std::memcpy(target, packed, kBytes);
  }
}

ELASTIFY_KERNEL void encode_six_bits(const float* __restrict source, std::byte* __restrict target,
                                     int64_t n_blocks, const float* __restrict importance) {
  constexpr int kBytes = 210;
  Block block;
  for (int64_t b = 0; b < n_blocks; ++b, source += kBlock, target += kBytes) {
    load("q6_K", source, importance == nullptr ? nullptr : importance + b * kBlock, 16, block);
    const Fit fit = search_symmetric(block);
    float widest = 0;  // keeps its sign and becomes -128
    for (int l = 0; l < kLanes; ++l) widest = std::abs(fit.a[l]) > std::abs(widest) ? fit.a[l] : widest;
    Stored s = stored(widest / -128, 0);
    if (!fits(s)) refuse("q6_K", std::abs(widest));
    Lanes scale, none = {};
    const float per_d = widest != 0 ? -128.0F / widest : 0.0F;
    for (int l = 0; l < kLanes; ++l) scale[l] = smaller(larger(rounded(fit.a[l] * per_d), -128), 127);
    for (int again = 0; again < kSettlings; ++again) {
      settle<16>(block, s, scale, none, -32, 31, -128, 127);
      round_block(block, s, scale, none, -32, 31);
      s = refitted(block, s, scale, none);
    }
    round_block(block, s, scale, none, -32, 31);

    uint8_t q[kBlock], packed[kBytes] = {};
    store_rounded(block, 32, q);
    for (int part = 0; part < 2; ++part)
      for (int i = 0; i < 32; ++i) {
        const uint8_t* from = q + part * 128 + i;
        uint8_t* low = packed + part * 64 + i;
        low[0] = static_cast<uint8_t>((from[0] & 15) | (from[64] & 15) << 4);
        low[32] = static_cast<uint8_t>((from[32] & 15) | (from[96] & 15) << 4);
        packed[128 + part * 32 + i] =
            static_cast<uint8_t>(from[0] >> 4 | from[32] >> 4 << 2 | from[64] >> 4 << 4 | from[96] >> 4 << 6);
      }
    for (int l = 0; l < kLanes; ++l)
      packed[192 + l] = static_cast<uint8_t>(static_cast<int8_t>(static_cast<int32_t>(scale[l])));
    std::memcpy(packed + 208, &s.d_bits, 2);
    std::memcpy(target, packed, kBytes);
  }
}

}  // namespace

void encode_q4_k(const float* source, std::byte* target, int64_t n_blocks, const float* importance, Isa isa) {
  run_kernel<encode_with_minimum<4>>(isa, source, target, n_blocks, importance);
}
void encode_q5_k(const float* source, std::byte* target, int64_t n_blocks, const float* importance, Isa isa) {
  run_kernel<encode_with_minimum<5>>(isa, source, target, n_blocks, importance);
}
void encode_q6_k(const float* source, std::byte* target, int64_t n_blocks, const float* importance, Isa isa) {
  run_kernel<encode_six_bits>(isa, source, target, n_blocks, importance);
}

}  // namespace elastify::ggml
