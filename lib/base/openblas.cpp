#include "base/openblas.h"

#include <dlfcn.h>

#include <cstdlib>

namespace elastify {

std::string openblas_kernels() {
  const auto core_name = reinterpret_cast<const char* (*)()>(dlsym(RTLD_DEFAULT, "openblas_get_corename"));
  return core_name == nullptr ? "" : core_name();
}

std::optional<std::string> missed_openblas_kernels() {
#if defined(__x86_64__)
  if (std::getenv(kOpenBlasCoreType) != nullptr || openblas_kernels() != "Prescott") return std::nullopt;
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return "SkylakeX";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "Haswell";
#endif
  return std::nullopt;
}

}  // namespace elastify
