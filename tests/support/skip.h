#pragma once

#include <string>

namespace elastify::test {

/// Says why the running test case, or the rest of it, cannot run here; the test case then returns. The reason
/// goes to stdout and, for the list at the end of ctest, to the file that ELASTIFY_SKIPS names.
/// \param reason  with a way out: "scripts/fetch_model.sh has not run"
void skip(const std::string& reason);

/// Whether every test case that ran has skipped and checked nothing.
bool all_skipped();

/// The exit status of a program whose test cases all skipped; ctest shows it as "Skipped".
constexpr int kSkippedStatus = 77;

}  // namespace elastify::test
