#pragma once

#include <optional>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "model/rope_order.h"

// A packed file is the full model as stock runtimes load it. Keys elastify.packed.* describe its levels.
// After its last tensor there are complete GGUF files: adapters, importance matrices, and a part for each
// level. A part holds what the level's separate file has and the model does not: keys, biases, refitted
// weights. Keys and layout: docs/formats.md.

namespace elastify::exporter {

/// A complete GGUF file after the model's tensors.
struct EmbeddedFile {
  std::string name;  ///< "part-050.gguf", "lora-050.gguf", "imatrix-050.gguf"
  uint64_t offset = 0, bytes = 0;
  std::string sha256;
};

/// A level, and the separate file that slicing gives for it.
struct PackedLevel {
  std::string name;  ///< "level-050.gguf"; "full.gguf" for the full model
  double nominal = 1, decoder_ratio = 1, total_ratio = 1;
  std::string architecture, compensation;
  std::vector<int64_t> kv_groups, d_ff;  ///< [n_layers]
  uint64_t bytes = 0;                    ///< of the separate file
  std::string sha256;
  std::optional<size_t> part, adapter, imatrix;  ///< index of the embedded file; the full model has no part
};

/// The part of a stored tensor that a level keeps: the leading elements of the leading rows.
struct KeptTensor {
  std::string name;  ///< in the packed file, or in the part if it is `own`
  Shape shape;
  bool own = false;
};

/// A part: it describes how to make a level's file from the packed one.
struct LevelPart {
  GgufFile file;
  RopeOrder rope = RopeOrder::kHalves;  ///< of the level's file
  bool fused_qkv = false;               ///< the level's file has q, k and v as one tensor
  std::vector<KeptTensor> tensors;      ///< in the order of the level's file
};

/// An open packed file. All of its tables have been checked.
class PackedFile {
 public:
  /// \throws Error  naming the file, the key or the embedded file, what was expected and what was found
  static PackedFile open(const fs::path& path);
  /// Whether this is a GGUF file that contains levels.
  static bool is_packed(const fs::path& path);

  const GgufFile& model() const { return model_; }
  const fs::path& path() const { return model_.path(); }
  RopeOrder rope() const { return rope_; }  ///< of the stored rows of q and k
  int64_t head_dim() const { return head_dim_; }
  const std::vector<PackedLevel>& levels() const {
    return levels_;
  }  ///< narrowest first, the full model last
  /// \throws UsageError  listing the levels there are
  const PackedLevel& level(double nominal) const;

  const std::vector<EmbeddedFile>& embedded() const { return embedded_; }
  std::span<const std::byte> bytes_of(const EmbeddedFile& file) const;
  GgufFile open_embedded(const EmbeddedFile& file) const;
  /// \throws Error  if its bytes have another SHA-256 than the packed file states
  void check_hash(const EmbeddedFile& file) const;
  /// \throws Error  if the level is the full model, which has no part, or the part does not fit the model
  LevelPart part_of(const PackedLevel& level) const;

 private:
  explicit PackedFile(GgufFile model) : model_(std::move(model)) {}
  void read_embedded();
  void read_levels();

  GgufFile model_;
  RopeOrder rope_ = RopeOrder::kHalves;
  int64_t head_dim_ = 0;
  std::vector<PackedLevel> levels_;
  std::vector<EmbeddedFile> embedded_;
};

/// Keys of packed files and parts begin with these.
inline constexpr std::string_view kPackedPrefix = "elastify.packed.";
inline constexpr std::string_view kPartPrefix = "elastify.part.";
inline constexpr int64_t kPackedVersion = 1;
/// Alignment of an embedded file's first byte.
inline constexpr uint64_t kEmbeddedAlignment = 32;

std::string_view name_of(RopeOrder order);  ///< "interleaved", "halves"
/// Whether the order of this tensor's rows depends on the layout of rotary pairs, by its name in a file.
bool is_rotary_name(std::string_view name);
/// The leading elements of the leading rows of a tensor: a view if rows stay whole, else a copy.
HostTensor leading(const HostTensor& tensor, const Shape& shape);

}  // namespace elastify::exporter
