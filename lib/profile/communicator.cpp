#include "profile/communicator.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>

#include "base/error.h"

#ifdef ELASTIFY_WITH_MPI
#include <mpi.h>
#endif

namespace elastify {
namespace {

/// The number of processes that a launcher says it started; 1 without a launcher.
int n_launched() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"})
    if (const char* value = std::getenv(name); value != nullptr) return std::max(1, std::atoi(value));
  // srun sets its variables for every step, also without MPI. It sets those of PMIx only if MPI uses it.
  if (const char* tasks = std::getenv("SLURM_NTASKS");
      tasks != nullptr && std::getenv("PMIX_RANK") != nullptr)
    return std::max(1, std::atoi(tasks));
  return 1;
}

}  // namespace

#ifdef ELASTIFY_WITH_MPI

namespace {

void check(int status, const char* action) {
  if (status != MPI_SUCCESS) fail("MPI: {}: error {}", action, status);
}

}  // namespace

Communicator Communicator::start() {
  Communicator world;
  if (n_launched() == 1) return world;
  check(MPI_Init(nullptr, nullptr), "cannot start");
  check(MPI_Comm_rank(MPI_COMM_WORLD, &world.rank_), "cannot tell the rank");
  check(MPI_Comm_size(MPI_COMM_WORLD, &world.size_), "cannot count the processes");
  world.joined_ = true;
  return world;
}

Communicator::~Communicator() {
  if (joined_) MPI_Finalize();
}

void Communicator::sum(std::span<double> values) const {
  if (size_ == 1) return;
  constexpr size_t kAtOnce = size_t{1} << 24;  // MPI counts in int
  for (size_t first = 0; first < values.size(); first += kAtOnce) {
    const auto n = static_cast<int>(std::min(kAtOnce, values.size() - first));
    check(MPI_Allreduce(MPI_IN_PLACE, values.data() + first, n, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD),
          "cannot add up");
  }
}

void Communicator::wait() const {
  if (size_ > 1) check(MPI_Barrier(MPI_COMM_WORLD), "cannot wait for the others");
}

void Communicator::abort(int status) const {
  if (size_ > 1) MPI_Abort(MPI_COMM_WORLD, status);
  std::_Exit(status);
}

#else

Communicator Communicator::start() {
  if (const int n = n_launched(); n > 1)
    throw Error(fmt::format("{} processes were started together, but this build has no MPI", n),
                "install libopenmpi-dev and build again, or start one process");
  return {};
}

Communicator::~Communicator() = default;
void Communicator::sum(std::span<double>) const {}
void Communicator::wait() const {}
void Communicator::abort(int status) const {
  std::_Exit(status);
}

#endif

Communicator::Communicator(Communicator&& other) noexcept
    : rank_(other.rank_), size_(other.size_), joined_(std::exchange(other.joined_, false)) {}

}  // namespace elastify
