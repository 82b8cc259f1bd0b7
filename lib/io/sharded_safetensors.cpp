#include "io/sharded_safetensors.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/hash.h"

namespace elastify {
namespace {

constexpr const char* kIndex = "model.safetensors.index.json";

std::string shard_name(size_t index, size_t n_shards) {
  if (n_shards == 1) return "model.safetensors";
  return fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, n_shards);
}

}  // namespace

ShardedSafetensorsWriter::ShardedSafetensorsWriter(fs::path directory, const std::vector<TensorInfo>& tensors,
                                                   std::map<std::string, std::string> metadata,
                                                   uint64_t shard_bytes)
    : directory_(std::move(directory)), metadata_(std::move(metadata)), shards_(1) {
  for (const TensorInfo& tensor : tensors) {
    const uint64_t bytes = n_bytes(tensor.dtype, tensor.shape);
    if (!shards_.back().tensors.empty() && shards_.back().bytes + bytes > shard_bytes) shards_.emplace_back();
    shards_.back().tensors.push_back(tensor);
    shards_.back().bytes += bytes;
  }
  for (size_t i = 0; i < shards_.size(); ++i) shards_[i].name = shard_name(i, shards_.size());
  open_next();
}

void ShardedSafetensorsWriter::open_next() {
  const Shard& shard = shards_[opened_++];
  open_ = std::make_unique<SafetensorsWriter>(directory_ / shard.name, shard.tensors, metadata_);
  left_ = shard.bytes;
}

void ShardedSafetensorsWriter::close() {
  const std::string sha256 = open_->finish();
  open_.reset();
  const std::string& name = shards_[opened_ - 1].name;
  written_.push_back({name, fs::file_size(directory_ / name), sha256});
}

void ShardedSafetensorsWriter::write(std::span<const std::byte> bytes) {
  if (left_ == 0 && !bytes.empty() && opened_ < shards_.size()) {
    close();
    open_next();
  }
  open_->write(bytes);
  left_ -= bytes.size();
}

WrittenFile ShardedSafetensorsWriter::write_index() const {
  uint64_t total = 0;
  std::map<std::string, std::string> file_of;
  for (const Shard& shard : shards_) {
    total += shard.bytes;
    for (const TensorInfo& tensor : shard.tensors) file_of[tensor.name] = shard.name;
  }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", file_of}};
  const std::string text = index.dump(2) + "\n";
  write_text(directory_ / kIndex, text);
  return {kIndex, text.size(), sha256_hex(text)};
}

std::vector<WrittenFile> ShardedSafetensorsWriter::finish() {
  if (opened_ < shards_.size() && left_ == 0)
    fail("{}: no bytes were given for it", (directory_ / shards_[opened_].name).string());
  close();
  if (shards_.size() > 1) written_.push_back(write_index());
  return std::move(written_);
}

}  // namespace elastify
