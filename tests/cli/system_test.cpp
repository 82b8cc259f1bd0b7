// Tests which kernels OpenBLAS runs in `elastify-torch`.

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "support/program.h"
#include "support/skip.h"

namespace elastify {
namespace {

/// OpenBLAS's kernels in a process that starts after `before`; empty if LibTorch has no OpenBLAS.
std::string kernels(const std::string& before) {
  const auto outcome = test::run_elastify("inspect --system --json", before);
  CAPTURE(outcome.err);
  REQUIRE(outcome.status == 0);
  return nlohmann::json::parse(outcome.out).at("kernels");
}

TEST_CASE("a processor that OpenBLAS does not know runs its vector kernels, unless the user says otherwise") {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2")) return test::skip("a processor without AVX2");
  if (kernels("export OPENBLAS_CORETYPE=Prescott;") != "Prescott")
    return test::skip("no OpenBLAS that has all kernels");
  CHECK(kernels("unset OPENBLAS_CORETYPE;") != "Prescott");
#else
  test::skip("not an x86-64 processor");
#endif
}

}  // namespace
}  // namespace elastify
