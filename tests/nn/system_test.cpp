#include "nn/system.h"

#include <doctest/doctest.h>

#include "nn/device.h"

using namespace elastify;

TEST_CASE("system: the report names the library of the matrix products and measures them") {
  nn::set_threads(1);
  const nn::SystemReport report = nn::inspect_system();
  CHECK(report.threads == 1);
  CHECK(report.gemm_gflops > 0.1);
  CHECK_FALSE(report.blas.empty());
  CHECK_FALSE(report.torch_version.empty());
  CHECK_FALSE(report.simd.empty());
}
