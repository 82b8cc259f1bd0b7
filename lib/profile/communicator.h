#pragma once

#include <span>

namespace elastify {

/// The processes that share one piece of work: those that mpirun or srun started, or this one alone. Every
/// process must call the same functions in the same order.
class Communicator {
 public:
  /// Joins the other processes if a launcher started this one. Call it once, early.
  /// \throws Error  if there are others and this build has no MPI
  static Communicator start();
  Communicator() = default;  ///< this process alone
  ~Communicator();
  Communicator(Communicator&& other) noexcept;
  Communicator& operator=(Communicator&&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  bool is_root() const { return rank_ == 0; }
  /// Replaces values by their sums over all processes.
  void sum(std::span<double> values) const;
  /// Waits for all processes.
  void wait() const;
  /// Ends all processes at once. Otherwise one that failed would leave the others waiting.
  [[noreturn]] void abort(int status) const;

 private:
  int rank_ = 0, size_ = 1;
  bool joined_ = false;
};

}  // namespace elastify
