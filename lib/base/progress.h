#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace elastify {

/// Shows the progress of long work on stderr: on a terminal a bar with the rate and the time left, elsewhere
/// a plain line every few seconds. It also notices interrupts (SIGINT, SIGTERM, SIGHUP).
class Progress {
 public:
  /// \param unit  the unit of `total`, for the rate: "tokens", "tensors"
  Progress(std::string label, int64_t total, std::string unit);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// \throws Interrupted  after an interrupt
  void advance(int64_t n);
  /// Counts units as done that an earlier run did. They do not enter the rate.
  void skip(int64_t n);

 private:
  void draw(bool final);

  std::string label_;
  std::string unit_;
  int64_t total_;
  int64_t done_ = 0;
  int64_t skipped_ = 0;
  bool terminal_;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_drawn_;
};

/// "1:05" (minutes and seconds) or "2:00:10".
std::string clock_text(double seconds);
/// "1234", "12", "3.5", "0.012": whole numbers, or two significant digits below ten.
std::string rate_text(double rate);

/// Makes SIGINT, SIGTERM and SIGHUP (a closed terminal) set a flag instead of ending the process, so that
/// work stops between steps and temporary files are removed. A second signal, half a second later or more,
/// ends the process at once. SIGHUP is left ignored where nohup has it ignored.
void install_interrupt_handler();
/// Blocks these signals until the next install_interrupt_handler(), also across an exec(). An interrupt that
/// arrives while a program still loads its libraries then ends it in the same way as a later one.
void hold_interrupts();
/// \throws Interrupted  if a signal arrived
void check_interrupt();

}  // namespace elastify
