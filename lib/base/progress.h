#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace elastify {

/// Progress of long work on stderr: a bar with rate and time left on a terminal, a plain line every few
/// seconds elsewhere. Also the place where an interrupt (SIGINT, SIGTERM) is noticed.
class Progress {
 public:
  /// \param unit  what is counted, for the rate: "tokens", "tensors"
  Progress(std::string label, int64_t total, std::string unit);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// \throws Interrupted  after SIGINT or SIGTERM
  void advance(int64_t n);
  /// Counts as done what was done before, which says nothing about the rate.
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
/// "1234", "12", "3.5", "0.012": whole numbers, or two digits of what is less than ten.
std::string rate_text(double rate);

/// Makes SIGINT and SIGTERM set a flag instead of ending the process, so that work stops between steps and
/// temporary files are removed. A second signal, half a second later or more, ends the process at once.
void install_interrupt_handler();
/// Keeps both signals back until the next install_interrupt_handler(), across an exec() too: an interrupt
/// that comes while a program is still loading its libraries then ends it as one that comes later does.
void hold_interrupts();
/// \throws Interrupted  if a signal arrived
void check_interrupt();

}  // namespace elastify
