#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace elastify {

/// How another program ended.
struct ChildOutcome {
  int status = 0;          ///< exit status, if no signal ended it
  int signal = 0;          ///< the signal that ended it; 0: none
  bool timed_out = false;  ///< it was killed at its time limit
  std::string out, err;    ///< the last 4 MiB of its stdout and stderr
  int64_t peak_rss_bytes = 0;
  double seconds = 0;

  bool succeeded() const { return status == 0 && signal == 0; }
  /// "was ended by signal 6 (Aborted)", "ended with exit status 1", "took longer than 300 s"
  std::string how() const;
};

/// Runs a program to its end with nothing on its standard input. A crash of the program is an outcome, not an
/// error.
/// \param arguments  the program, looked up in PATH, and its arguments
/// \param limit_seconds  after this time the program and all processes that it started are killed
/// \throws Error  if it cannot be started
/// \throws Interrupted  after an interrupt; the program is killed first
ChildOutcome run_child(const std::vector<std::string>& arguments, double limit_seconds);

}  // namespace elastify
