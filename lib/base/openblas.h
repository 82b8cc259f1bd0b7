#pragma once

#include <optional>
#include <string>

namespace elastify {

/// The variable that names OpenBLAS's kernels. OpenBLAS reads it only once, when it is loaded.
inline constexpr const char* kOpenBlasCoreType = "OPENBLAS_CORETYPE";

/// OpenBLAS's name for the kernels that it took, such as "Haswell"; empty if this program has no OpenBLAS.
std::string openblas_kernels();

/// The kernels that OpenBLAS should have taken, if it took those of a processor without AVX on one that has
/// it. OpenBLAS up to 0.3.24 does that on Intel processors that are newer than itself (OpenBLAS issue 4267;
/// Debian 12 has 0.3.21): matrix products are then 5 to 10 times slower than the machine allows.
/// \returns a value for kOpenBlasCoreType; none if the user set it, if the kernels are the right ones, or if
///          this program has no OpenBLAS
std::optional<std::string> missed_openblas_kernels();

}  // namespace elastify
