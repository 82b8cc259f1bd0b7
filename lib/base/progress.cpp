#include "base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "base/error.h"
#include "base/log.h"
#include "base/terminal.h"

namespace elastify {
namespace {

using Clock = std::chrono::steady_clock;

std::atomic<bool> interrupted{false};
std::atomic<int64_t> first_signal_ms{0};

/// Wrappers such as timeout(1) send one signal twice: to the process and to its group. Signals that come
/// closer together than this count as one.
constexpr int64_t kSameSignalMs = 500;

void on_signal(int signal) {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const int64_t ms = int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1000000;
  if (!interrupted.exchange(true)) {
    first_signal_ms = ms;
  } else if (ms - first_signal_ms > kSameSignalMs) {
    std::_Exit(128 + signal);
  }
}

constexpr int kInterrupts[] = {SIGINT, SIGTERM, SIGHUP};

sigset_t interrupts() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : kInterrupts) sigaddset(&signals, signal);
  return signals;
}

/// nohup starts a program with SIGHUP ignored, and so it stays.
bool is_ignored(int signal) {
  struct sigaction action = {};
  return sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

double seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

std::string clock_text(double total_seconds) {
  const auto whole = static_cast<int64_t>(total_seconds + 0.5);
  if (whole >= 3600) return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

std::string rate_text(double rate) {
  return rate < 9.95 ? fmt::format("{:.2g}", rate) : fmt::format("{:.0f}", rate);
}

void install_interrupt_handler() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  for (const int signal : kInterrupts)
    if (signal != SIGHUP || !is_ignored(signal)) sigaction(signal, &action, nullptr);
  const sigset_t signals = interrupts();
  sigprocmask(SIG_UNBLOCK, &signals, nullptr);
}

void hold_interrupts() {
  const sigset_t signals = interrupts();
  sigprocmask(SIG_BLOCK, &signals, nullptr);
}

void check_interrupt() {
  if (interrupted.load()) throw Interrupted();
}

Progress::Progress(std::string label, int64_t total, std::string unit)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_drawn_(start_) {}

Progress::~Progress() {
  if (log::level() != log::Level::kQuiet && terminal_ && done_ > 0) draw(true);
}

void Progress::advance(int64_t n) {
  check_interrupt();
  done_ += n;
  if (log::level() == log::Level::kQuiet) return;
  const double interval = terminal_ ? 0.1 : 10.0;
  const auto now = Clock::now();
  if (seconds(now - last_drawn_) < interval) return;
  last_drawn_ = now;
  draw(false);
}

void Progress::skip(int64_t n) {
  done_ += n;
  skipped_ += n;
}

void Progress::draw(bool final) {
  const double elapsed = std::max(seconds(Clock::now() - start_), 1e-9);
  const double rate = static_cast<double>(done_ - skipped_) / elapsed;
  const double share =
      total_ > 0 ? std::min(1.0, static_cast<double>(done_) / static_cast<double>(total_)) : 1;
  const double left = rate > 0 ? static_cast<double>(total_ - done_) / rate : 0;
  const std::string line =
      fmt::format("{}: {}/{} {} ({:.0f}%), {} {}/s, {} {}", label_, done_, total_, unit_, 100 * share,
                  rate_text(rate), unit_, clock_text(final ? elapsed : left), final ? "in all" : "left");
  if (!terminal_) {
    log::write_info(line);
    return;
  }
  constexpr int kBarWidth = 24;
  const auto filled = static_cast<size_t>(share * kBarWidth);
  const std::string bar = std::string(filled, '#') + std::string(kBarWidth - filled, '.');
  write_stderr(fmt::format("\r\x1b[K[{}] {}{}", bar, line, final ? "\n" : ""));
}

}  // namespace elastify
