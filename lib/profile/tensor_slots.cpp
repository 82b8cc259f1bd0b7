#include "profile/tensor_slots.h"

#include <fcntl.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace elastify::profile {

TensorSlots::TensorSlots(const fs::path& file, int64_t slot_bytes) : path_(file), slot_bytes_(slot_bytes) {
  fd_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("{}: cannot open: {}", file.string(), std::strerror(errno));
}

TensorSlots::~TensorSlots() {
  if (fd_ >= 0) ::close(fd_);
}

void TensorSlots::put(int64_t slot, const at::Tensor& x) {
  if (fd_ < 0) {
    if (tensors_.size() <= static_cast<size_t>(slot)) tensors_.resize(static_cast<size_t>(slot) + 1);
    tensors_[static_cast<size_t>(slot)] = x;
    return;
  }
  const at::Tensor host = x.to(at::kCPU).contiguous();
  const auto* bytes = static_cast<const char*>(host.data_ptr());
  const size_t size = host.nbytes();
  for (size_t done = 0; done < size;) {
    const auto n = ::pwrite(fd_, bytes + done, size - done, slot * slot_bytes_ + static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      throw Error(fmt::format("{}: cannot write: {}", path_.string(), std::strerror(errno)),
                  "streamed profiling keeps what goes into every layer on disk: free some, or "
                  "write the profile to another one");
    done += static_cast<size_t>(n);
  }
}

at::Tensor TensorSlots::get(int64_t slot, const at::Tensor& like) const {
  if (fd_ < 0) return tensors_.at(static_cast<size_t>(slot));
  at::Tensor host = at::empty(like.sizes(), like.options().device(at::kCPU));
  auto* bytes = static_cast<char*>(host.data_ptr());
  const size_t size = host.nbytes();
  for (size_t done = 0; done < size;) {
    const auto n = ::pread(fd_, bytes + done, size - done, slot * slot_bytes_ + static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      fail("{}: cannot read: {}", path_.string(), n == 0 ? "the file is too short" : std::strerror(errno));
    done += static_cast<size_t>(n);
  }
  return host.to(like.device());
}

}  // namespace elastify::profile
