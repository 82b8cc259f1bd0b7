#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#if defined(__SANITIZE_ADDRESS__)
// HDF5 does not free all of what it made when it refuses a damaged file.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libhdf5";
}
#endif
