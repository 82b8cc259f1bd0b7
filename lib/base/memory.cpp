#include "base/memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <fstream>

namespace elastify {

int64_t resident_bytes() {
  int64_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident > 0 ? resident * ::sysconf(_SC_PAGESIZE) : peak_resident_bytes();
}

int64_t peak_resident_bytes() {
  struct rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace elastify
