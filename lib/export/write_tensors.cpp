#include "export/write_tensors.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>

#include "base/error.h"
#include "base/memory.h"
#include "base/progress.h"
#include "base/size.h"
#include "export/level_repairs.h"
#include "export/levels.h"
#include "model/rope_order.h"

namespace elastify::exporter {
namespace {

constexpr int64_t kSlabElements = int64_t{1} << 19;

/// An encoding of a tensor that some files share.
struct Variant {
  DType dtype;
  RopeOrder order;
  bool operator==(const Variant& other) const { return dtype == other.dtype && order == other.order; }
};

/// A tensor while it is written.
struct Work {
  size_t index = 0;
  HostTensor source;
  const float* importance = nullptr;
  std::vector<Variant> variants;
  std::vector<int> variant_of;  ///< [sinks]; -1: the file does not have the tensor
};

/// Some rows of a tensor, encoded.
struct Slab {
  std::shared_ptr<const Work> work;
  int64_t first = 0, n = 0;                     ///< rows
  std::vector<std::vector<std::byte>> encoded;  ///< [variants]
};

/// Number of rows that are cut into slabs. A vector is one row.
int64_t n_slab_rows(const Shape& shape) {
  return shape.size() < 2 ? 1 : n_rows(shape);
}

class TensorWriter {
 public:
  TensorWriter(const Checkpoint& source, const std::vector<TensorSink>& sinks, bool fused_qkv,
               const ColumnImportance& importance)
      : source_(source),
        spec_(source.spec()),
        sinks_(sinks),
        fused_qkv_(fused_qkv),
        importance_(importance),
        cut_(sinks.size()) {}

  void run(int64_t max_ram) {
    const int n_threads = omp_get_max_threads();
    const auto n_slabs = static_cast<size_t>(2 * n_threads + 2);
    const int64_t elements = slab_elements(static_cast<int64_t>(n_slabs), max_ram);
    std::vector<Slab> ring(n_slabs);
    Progress progress("export", static_cast<int64_t>(spec_.tensors.size()), "tensors");
#pragma omp parallel num_threads(n_threads)
#pragma omp single
    {
      size_t sequence = 0;
      for (size_t i = 0; i < spec_.tensors.size() && !failed_; ++i) {
        guarded(sequence, i, [&] {
          check_interrupt();
          const auto work = prepare(i);
          const int64_t rows = n_slab_rows(spec_.tensors[i].shape), step = rows_per_slab(i, elements);
          for (int64_t first = 0; first < rows && !failed_; first += step, ++sequence)
            start(ring, sequence, work, first, std::min(step, rows - first));
          progress.advance(1);
        });
      }
    }
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  /// Number of elements of a slab with which the slabs and the memory that the process already holds stay
  /// within `max_ram`.
  int64_t slab_elements(int64_t n_slabs, int64_t max_ram) const {
    if (max_ram == 0) return kSlabElements;
    const int64_t held = resident_bytes();
    double per_element = 0;
    int64_t smallest = 1;
    for (size_t i = 0; i < spec_.tensors.size(); ++i) {
      smallest = std::max(smallest, rows_per_slab(i, 1) * spec_.tensors[i].shape.back());
      const auto bytes_of = [](DType type) {
        return static_cast<double>(info(type).block_bytes) / static_cast<double>(info(type).block_size);
      };
      double in_slab = 4, packed = 0;  // in_slab: the source's bytes, at most 4, and the encoded ones
      std::vector<int> variant_of;
      const std::vector<Variant> variants = variants_of(i, &variant_of);
      for (const Variant& variant : variants) in_slab += bytes_of(variant.dtype);
      for (const int at : variant_of)
        if (at >= 0) packed += bytes_of(variants[static_cast<size_t>(at)].dtype);
      per_element = std::max(per_element, in_slab * static_cast<double>(n_slabs) + packed);
    }
    const auto elements = static_cast<int64_t>(static_cast<double>(max_ram - held) / per_element);
    if (elements < smallest)
      throw UsageError(
          fmt::format("max-ram: {} are too few: {} are held already, and the smallest slabs take {}",
                      format_bytes(max_ram), format_bytes(held),
                      format_bytes(static_cast<int64_t>(static_cast<double>(smallest) * per_element))),
          "allow more, or use fewer --threads");
    return std::min(elements, kSlabElements);
  }

  /// Number of rows of a slab: whole heads if rows move inside heads.
  int64_t rows_per_slab(size_t i, int64_t elements) const {
    const TensorSpec& tensor = spec_.tensors[i];
    const int64_t rows = std::max<int64_t>(1, elements / std::max<int64_t>(1, tensor.shape.back()));
    if (!is_rotary(tensor.role)) return rows;
    return std::max(spec_.head_dim, rows / spec_.head_dim * spec_.head_dim);
  }

  /// The encodings of a tensor that the files need.
  /// \param variant_of  receives the index of each file's variant; may be null
  std::vector<Variant> variants_of(size_t i, std::vector<int>* variant_of) const {
    const TensorSpec& tensor = spec_.tensors[i];
    std::vector<Variant> variants;
    for (const TensorSink& sink : sinks_) {
      int at = -1;
      if (is_kept(spec_, tensor, sink.level->widths)) {
        const Variant wanted{sink.type.of(tensor, spec_, fused_qkv_),
                             is_rotary(tensor.role) ? sink.architecture->rope : RopeOrder::kHalves};
        auto found = std::find(variants.begin(), variants.end(), wanted);
        if (found == variants.end()) found = variants.insert(variants.end(), wanted);
        at = static_cast<int>(found - variants.begin());
      }
      if (variant_of != nullptr) variant_of->push_back(at);
    }
    return variants;
  }

  std::shared_ptr<const Work> prepare(size_t i) const {
    auto work = std::make_shared<Work>();
    work->index = i;
    work->source = source_.load(i);
    const auto weights = importance_.find(spec_.tensors[i].name);
    if (weights != importance_.end()) work->importance = weights->second.data();
    work->variants = variants_of(i, &work->variant_of);
    return work;
  }

  /// Runs `body` and records a failure. Of several failures, it keeps the one of the earliest slab.
  template <typename Body>
  void guarded(size_t sequence, size_t tensor, Body&& body) {
    try {
      with_context(spec_.tensors[tensor].name, body);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_ || sequence < failed_at_) {
        failure_ = std::current_exception();
        failed_at_ = sequence;
      }
      failed_ = true;
    }
  }

  /// Starts the task that encodes a slab, and one task per file that writes its part once the slab is encoded
  /// and the slab before is written.
  void start(std::vector<Slab>& ring, size_t sequence, std::shared_ptr<const Work> work, int64_t first,
             int64_t n) {
    Slab* const slab = &ring[sequence % ring.size()];
    // Waits, and runs other tasks, until the slab that used this place is written. This bounds memory to the
    // ring.
#pragma omp taskwait depend(inout : slab[0])
    if (sequence % ring.size() == 0) source_.release_pages();
    slab->work = std::move(work);
    slab->first = first;
    slab->n = n;
#pragma omp task depend(inout : slab[0]) firstprivate(slab, sequence)
    if (!failed_) guarded(sequence, slab->work->index, [&] { encode(*slab); });
    for (size_t k = 0; k < sinks_.size(); ++k) {
      if (slab->work->variant_of[k] < 0) continue;
      [[maybe_unused]] std::vector<std::byte>* const turn = &cut_[k];  // a file's slabs are written in order
#pragma omp task depend(in : slab[0]) depend(inout : turn[0]) firstprivate(slab, sequence, k)
      if (!failed_) guarded(sequence, slab->work->index, [&] { write(*slab, k); });
    }
  }

  void encode(Slab& slab) const {
    const Work& work = *slab.work;
    const TensorSpec& tensor = spec_.tensors[work.index];
    const bool is_vector = tensor.shape.size() < 2;
    const Shape shape = is_vector ? tensor.shape : Shape{slab.n, tensor.shape.back()};
    if (slab.encoded.size() < work.variants.size()) slab.encoded.resize(work.variants.size());
    for (size_t v = 0; v < work.variants.size(); ++v) {
      const Variant& variant = work.variants[v];
      std::vector<std::byte>& target = slab.encoded[v];
      target.resize(n_bytes(variant.dtype, shape));
      // Rows move inside heads, and slabs and levels consist of whole heads. So a prefix of the reordered
      // rows is the reordered prefix.
      const auto begin = work.variants.begin(), own = begin + static_cast<long>(v);
      const auto same =
          std::find_if(begin, own, [&](const Variant& other) { return other.dtype == variant.dtype; });
      const bool is_new = same == own;
      if (is_new)
        convert_rows(work.source, slab.first, slab.n, variant.dtype, target.data(), work.importance);
      const RopeOrder from = is_new ? RopeOrder::kHalves : same->order;
      if (from == variant.order) continue;
      const HostTensor there{variant.dtype, shape, slab.encoded[static_cast<size_t>(same - begin)], nullptr};
      const HostTensor moved = reorder_rope_rows(there, spec_.head_dim, from, variant.order);
      std::copy(moved.bytes.begin(), moved.bytes.end(), target.begin());
    }
  }

  void write(const Slab& slab, size_t k) {
    const TensorSink& sink = sinks_[k];
    const Work& work = *slab.work;
    const TensorSpec& tensor = spec_.tensors[work.index];
    const auto variant = static_cast<size_t>(work.variant_of[k]);
    const DType dtype = work.variants[variant].dtype;
    const std::span<const std::byte> encoded = slab.encoded[variant];
    const bool is_first = slab.first == 0;
    const bool is_last = slab.first + slab.n >= n_slab_rows(tensor.shape);

    bool own = false;
    if (sink.repairs != nullptr) {
      const HostTensor whole{dtype, tensor.shape, encoded, nullptr};  // read only if it is a vector
      own = is_replaced(tensor, *sink.repairs);
      if (own && is_first)
        exporter::write(sink, replaced(spec_, tensor, whole, *sink.repairs,
                                       {dtype, sink.architecture->rope, work.importance})
                                  ->bytes);
    }
    if (!own) write_prefix(slab, sink, tensor, dtype, encoded, cut_[k]);
    if (sink.repairs != nullptr && is_last)
      if (const auto bias =
              added_bias(spec_, tensor, sink.level->widths, *sink.repairs, sink.architecture->rope))
        exporter::write(sink, bias->bytes);
  }

  static void write_prefix(const Slab& slab, const TensorSink& sink, const TensorSpec& tensor, DType dtype,
                           std::span<const std::byte> encoded, std::vector<std::byte>& cut) {
    const Shape shape = shape_at(tensor, sink.level->widths);
    const uint64_t kept_row = row_bytes(dtype, shape.back()),
                   full_row = row_bytes(dtype, tensor.shape.back());
    const int64_t rows = std::min(slab.n, n_slab_rows(shape) - slab.first);
    if (rows <= 0) return;
    const auto n = static_cast<uint64_t>(rows);
    const std::span<const std::byte> whole = encoded.first(n * full_row);
    exporter::write(sink, leading_of_rows(whole, full_row, kept_row, cut));
  }

  const Checkpoint& source_;
  const ModelSpec& spec_;
  const std::vector<TensorSink>& sinks_;
  bool fused_qkv_;
  const ColumnImportance& importance_;
  std::vector<std::vector<std::byte>> cut_;  ///< [sinks], rows cut to a level's width
  std::mutex mutex_;
  std::atomic<bool> failed_ = false;
  std::exception_ptr failure_;
  size_t failed_at_ = 0;
};

}  // namespace

ColumnImportance column_importance(const std::optional<Imatrix>& imatrix, const ModelSpec& spec) {
  ColumnImportance importance;
  if (!imatrix) return importance;
  for (const TensorSpec& tensor : spec.tensors) {
    const auto entry = imatrix->entries.find(tensor.gguf_name);
    if (entry == imatrix->entries.end()) continue;
    std::vector<float>& means = importance[tensor.name];
    for (const float sum : entry->second.sum_squares)
      means.push_back(static_cast<float>(double{sum} / entry->second.count));
  }
  return importance;
}

void write(const TensorSink& sink, std::span<const std::byte> bytes) {
  const bool in_part = sink.part != nullptr && sink.part->current() == sink.writer->current();
  sink.writer->write(bytes);
  if (in_part) sink.part->write(bytes);
}

void write_tensors(const Checkpoint& source, const std::vector<TensorSink>& sinks, bool fused_qkv,
                   const ColumnImportance& importance, int64_t max_ram) {
  TensorWriter(source, sinks, fused_qkv, importance).run(max_ram);
}

}  // namespace elastify::exporter
