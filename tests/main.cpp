#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdlib>

#include "base/openblas.h"
#include "support/skip.h"

#if defined(__SANITIZE_ADDRESS__)
// HDF5 does not free all of what it made when it refuses a damaged file.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libhdf5";
}
#endif

int main(int argc, char** argv) {
  if (const auto kernels = elastify::missed_openblas_kernels()) {
    setenv(elastify::kOpenBlasCoreType, kernels->c_str(), 1);
    execv("/proc/self/exe", argv);
  }
  const int status = doctest::Context(argc, argv).run();
  return status == 0 && elastify::test::all_skipped() ? elastify::test::kSkippedStatus : status;
}
