#pragma once

#include <cstdint>
#include <vector>

// Kernels compiled for several instruction sets; the choice is made at run time. A kernel is an always_inline
// function of plain loops. Every copy of it does the same operations in the same order (sums have fixed
// lanes, -ffp-contract=off), so that all of them give the same bytes.

#if defined(__x86_64__) && defined(__GNUC__)
#define ELASTIFY_X86 1
#else
#define ELASTIFY_X86 0
#endif
#define ELASTIFY_KERNEL [[gnu::always_inline]] inline

namespace elastify {

enum class Isa : uint8_t { kPortable, kAvx2, kAvx512 };

#if ELASTIFY_X86
inline bool has_isa(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  return false;
}
#else
inline bool has_isa(Isa isa) {
  return isa == Isa::kPortable;
}
#endif

/// The widest instruction set that this machine has.
inline Isa best_isa() {
  static const Isa best = has_isa(Isa::kAvx512) ? Isa::kAvx512
                          : has_isa(Isa::kAvx2) ? Isa::kAvx2
                                                : Isa::kPortable;
  return best;
}

/// The copies of a kernel, one for each instruction set.
template <auto kKernel>
struct Compiled {
  template <typename... Args>
  static void portable(Args... args) {
    kKernel(args...);
  }
#if ELASTIFY_X86
  template <typename... Args>
  [[gnu::target("avx2")]] static void avx2(Args... args) {
    kKernel(args...);
  }
  template <typename... Args>
  [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")]] static void avx512(
      Args... args) {
    kKernel(args...);
  }
#endif
};

/// Runs the kernel's copy for `isa`. The machine must have that instruction set.
template <auto kKernel, typename... Args>
void run_kernel(Isa isa, Args... args) {
#if ELASTIFY_X86
  if (isa == Isa::kAvx512) return Compiled<kKernel>::avx512(args...);
  if (isa == Isa::kAvx2) return Compiled<kKernel>::avx2(args...);
#endif
  Compiled<kKernel>::portable(args...);
}

}  // namespace elastify
