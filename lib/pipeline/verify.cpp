#include "pipeline/verify.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/hash.h"
#include "base/progress.h"
#include "eval/evaluate.h"
#include "export/export_model.h"
#include "export/write_tensors.h"
#include "model/imatrix.h"
#include "model/manifest.h"
#include "model/permutation.h"
#include "model/plan.h"
#include "pipeline/text.h"
#include "pipeline/verify_repairs.h"
#include "reorder/reorder_model.h"

namespace elastify::pipeline {
namespace {

/// A claim that does not hold, with the first difference.
struct Refuted {
  std::string detail;
};

template <typename... Args>
[[noreturn]] void refute(fmt::format_string<Args...> format, Args&&... args) {
  throw Refuted{fmt::format(format, std::forward<Args>(args)...)};
}

/// Refutes with the first difference between two tensors, if there is one, and both values.
void require_equal(const std::string& place, const HostTensor& expected, const HostTensor& found) {
  if (expected.shape != found.shape)
    refute("{}: expected shape {}, got {}", place, to_string(expected.shape), to_string(found.shape));
  if (expected.dtype != found.dtype)
    refute("{}: expected type {}, got {}", place, info(expected.dtype).name, info(found.dtype).name);
  if (expected.bytes.size() == found.bytes.size() &&
      std::memcmp(expected.bytes.data(), found.bytes.data(), expected.bytes.size()) == 0)
    return;
  const auto [a, b] = std::mismatch(expected.bytes.begin(), expected.bytes.end(), found.bytes.begin());
  const auto byte = static_cast<uint64_t>(a - expected.bytes.begin());
  const int64_t columns = expected.shape.back();
  const uint64_t row = byte / row_bytes(expected.dtype, columns);
  const DTypeInfo& type = info(expected.dtype);
  const uint64_t first = (byte % row_bytes(expected.dtype, columns)) /
                         static_cast<uint64_t>(type.block_bytes) * static_cast<uint64_t>(type.block_size);
  std::vector<float> left(static_cast<size_t>(type.block_size)), right(left.size());
  const uint64_t block =
      byte / static_cast<uint64_t>(type.block_bytes) * static_cast<uint64_t>(type.block_bytes);
  decode_row(expected.dtype, expected.bytes.data() + block, left.data(), type.block_size);
  decode_row(found.dtype, found.bytes.data() + block, right.data(), type.block_size);
  size_t at = 0;
  while (at + 1 < left.size() && std::memcmp(&left[at], &right[at], sizeof(float)) == 0) ++at;
  refute("{}: row {}, column {} (byte {}): expected {}, got {}", place, row, first + at, byte, left[at],
         right[at]);
}

/// Requires that `found` has exactly the tensors that the source keeps at these widths, and further ones only
/// if they are the level's own.
void require_same_tensors(const ModelSpec& source, const Widths& widths, const ModelSpec& found,
                          const std::string& place, const OwnTensors& own = {}) {
  for (const TensorSpec& tensor : source.tensors) {
    const bool kept = is_kept(source, tensor, widths), there = found.find(tensor.name) >= 0;
    if (kept && !there) refute("{}: tensor {} of the source is missing", place, tensor.name);
    if (!kept && there) refute("{}: tensor {} is there, but the plan leaves it out", place, tensor.name);
  }
  for (const TensorSpec& tensor : found.tensors)
    if (source.find(tensor.name) < 0 && !own.may_add(tensor))
      refute("{}: tensor {} is not in the source", place, tensor.name);
}

/// Hyperparameters that a file states besides its widths. GGUF holds the numbers as float32.
void require_same_numbers(const ModelSpec& expected, const ModelSpec& found, const std::string& place) {
  const auto near = [&](const char* name, double a, double b) {
    if (std::abs(a - b) > 1e-6 * std::abs(a)) refute("{}: {}: expected {}, got {}", place, name, a, b);
  };
  near("norm_eps", expected.norm_eps, found.norm_eps);
  near("head_dim", static_cast<double>(expected.head_dim), static_cast<double>(found.head_dim));
  for (size_t l = 0; l < std::min(expected.layers.size(), found.layers.size()); ++l) {
    const LayerSpec &wanted = expected.layers[l], &layer = found.layers[l];
    near("rope_theta", wanted.rope_theta, layer.rope_theta);
    const auto a = rope_frequency_divisors(wanted, expected.head_dim);
    const auto b = rope_frequency_divisors(layer, found.head_dim);
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) near("rotary frequency divisor", a[i], b[i]);
  }
}

/// Runs `body`. Its errors about the data refute the claim; interrupts and system errors are passed on.
template <typename Body>
decltype(auto) refuting(std::string_view place, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Interrupted&) {
    throw;
  } catch (const SystemError&) {
    throw;
  } catch (const Error& error) {
    refute("{}{}", place, error.what());
  }
}

class Verifier {
 public:
  Verifier(fs::path output, const fs::path& model, const VerifyOptions& options,
           const nn::DecoderOptions& compute)
      : output_(std::move(output)),
        artifact_(is_artifact(output_)),
        manifest_(artifact_ ? std::optional(load_manifest(output_)) : std::nullopt),
        files_(output_),
        source_(Checkpoint::open(model)),
        spec_(source_.spec()),
        options_(options),
        compute_(compute) {}

  std::vector<Finding> run() {
    bool go_on = true;
    const auto claim = [&](std::string text, auto&& body) {
      if (!go_on) return;
      check_interrupt();
      try {
        findings_.push_back({text, true, body()});
      } catch (const Refuted& refuted) {
        findings_.push_back({text, false, refuted.detail});
        go_on = false;
      }
    };
    if (packed_file(output_))
      claim("every level comes out of the packed file with the hash that it states",
            [&] { return unpack(); });
    if (artifact_) claim("every file has the hash that the manifest states", [&] { return check_hashes(); });
    claim("it was made from a model of this shape", [&] { return check_provenance(); });
    claim(undoable() ? "undoing the permutation gives the source tensors, bit for bit"
                     : "reordering and encoding the source again gives the same tensors, bit for bit",
          [&] { return check_tensors(); });
    claim("every level is a prefix of the full model, bytewise, and of the next level",
          [&] { return check_levels(); });
    if (go_on && has_repairs(files_, artifact_))
      claim("repairs have the shapes of their levels and finite numbers", [&] { return check_repairs(); });
    claim("float32 logits before and after agree", [&] { return check_logits(); });
    if (!repaired_.empty())
      claim(
          "float32 logits of levels with own biases, weights or norms are the full model's with these in "
          "their places",
          [&] { return check_repaired_logits(); });
    return std::move(findings_);
  }

 private:
  fs::path model_file(double level) const { return PlainFiles::of(files_, std::nullopt)->file(level); }

  bool undoable() const { return !artifact_ || type().is_float(); }

  /// Unpacks a packed artifact. All further checks use the unpacked files.
  std::string unpack() {
    refuting("", [&] { unpacked_ = PlainFiles::of(output_, std::nullopt); });
    files_ = unpacked_->directory();
    return fmt::format("{} files", std::distance(fs::directory_iterator(files_), fs::directory_iterator()));
  }

  exporter::WeightType type() const { return exporter::weight_type_named(manifest_->type); }

  /// The importance matrix that K-quants were encoded with. The artifact has it in the order of the full
  /// model's file.
  std::optional<Imatrix> imatrix() const {
    const fs::path file = files_ / "imatrix.gguf";
    if (!artifact_ || !fs::exists(file)) return std::nullopt;
    Imatrix loaded = load_imatrix(file);
    check(loaded, spec_);
    return loaded;
  }

  static void check_hash(const WrittenFile& listed, const fs::path& directory) {
    const fs::path path = directory / listed.name;
    if (!fs::exists(path)) refute("{}: listed in manifest.json, but not there", listed.name);
    const auto size = fs::file_size(path);
    if (size != listed.bytes) refute("{}: expected {} bytes, got {}", listed.name, listed.bytes, size);
    const std::string digest = sha256_file(path);
    if (digest != listed.sha256) refute("{}: expected sha256 {}, got {}", listed.name, listed.sha256, digest);
  }

  std::string check_hashes() const {
    size_t n = 0;
    const auto check = [&](const WrittenFile& file, const fs::path& directory) {
      check_hash(file, directory);
      ++n;
    };
    const auto check_entry = [&](const auto& entry) {
      if (!manifest_->huggingface) return check({entry.name, entry.bytes, entry.sha256}, files_);
      for (const WrittenFile& part : entry.parts) check(part, files_);
    };
    for (const auto& holder : {manifest_->packed, manifest_->common})
      if (holder) check(*holder, output_);
    for (const ListedModel& model : manifest_->files) check_entry(model);
    for (const ListedAdapter& adapter : manifest_->adapters) check_entry(adapter);
    for (const ListedImatrix& imatrix : manifest_->imatrices)
      check({imatrix.name, imatrix.bytes, imatrix.sha256}, files_);
    return fmt::format("{} files", n);
  }

  std::string check_provenance() {
    const std::string hash = spec_hash(spec_);
    if (artifact_ && manifest_->spec_hash != hash)
      refute("manifest.json: made from a model with spec hash {}, the source has {}",
             manifest_->spec_hash.substr(0, 12), hash.substr(0, 12));
    refuting("", [&] {
      permutation_ = load_permutation(output_ / "permutation.h5", spec_);
      plan_ = load_plan(output_ / "plan.json", spec_);
    });
    full_ = std::make_unique<Checkpoint>(Checkpoint::open(artifact_ ? model_file(1) : output_));
    require_same_tensors(spec_, full_widths(spec_), full_->spec(), full_->path().filename().string());
    require_same_numbers(spec_, full_->spec(), full_->path().filename().string());
    return fmt::format("spec {}, {} spaces, {} levels", hash.substr(0, 12), spec_.spaces.size(),
                       plan_.levels.size());
  }

  HostTensor full_tensor(size_t index) const {
    return full_->load(static_cast<size_t>(full_->spec().find(spec_.tensors[index].name)));
  }

  std::string check_tensors() const {
    const DType storage = artifact_ ? dtype_from_name(manifest_->storage()) : full_->lossless_dtype();
    const Permutation undo = inverse(permutation_);
    const exporter::ColumnImportance importance =
        artifact_ ? exporter::column_importance(imatrix(), spec_) : exporter::ColumnImportance{};
    Progress progress("verify tensors", static_cast<int64_t>(spec_.tensors.size()), "tensors");
    for (size_t i = 0; i < spec_.tensors.size(); ++i) {
      const TensorSpec& tensor = spec_.tensors[i];
      const HostTensor found = full_tensor(i);
      const HostTensor source = source_.load(i, storage);
      if (is_float(found.dtype)) {
        require_equal(tensor.name, convert(source, found.dtype), permute(found, tensor, undo));
      } else {
        const auto weights = importance.find(tensor.name);
        require_equal(tensor.name,
                      convert(permute(source, tensor, permutation_), found.dtype,
                              weights == importance.end() ? nullptr : weights->second.data()),
                      found);
      }
      progress.advance(1);
    }
    return fmt::format("{} tensors{}", spec_.tensors.size(),
                       storage == source_.lossless_dtype()
                           ? ""
                           : fmt::format(", the source rounded to {}", info(storage).name));
  }

  std::string check_repairs() const {
    return refuting("", [&] { return pipeline::check_repairs(files_, artifact_, spec_, plan_); });
  }

  std::string check_levels() {
    refuting("plan.json: ", [&] { check(plan_, spec_); });
    if (!artifact_) return fmt::format("{} nested levels", plan_.levels.size());
    size_t n = 0;
    std::string own_found;
    for (const ListedModel& listed : manifest_->files) {
      if (listed.level >= 1) continue;
      const std::string& name = listed.name;
      const Level& level = find_level(plan_, listed.level);
      const Checkpoint sub = Checkpoint::open(files_ / name);
      const OwnTensors own = own_tensors(files_ / name);
      require_same_tensors(spec_, level.widths, sub.spec(), name, own);
      require_same_numbers(spec_, sub.spec(), name);
      if (own.any()) {
        repaired_.push_back(level);
        own_found += check_own(name, sub, own);
      }
      Progress progress(fmt::format("verify {}", name), static_cast<int64_t>(spec_.tensors.size()),
                        "tensors");
      for (size_t i = 0; i < spec_.tensors.size(); ++i) {
        progress.advance(1);
        if (!is_kept(spec_, spec_.tensors[i], level.widths)) continue;
        if (own.may_replace(spec_.tensors[i])) continue;  // check_own()
        const HostTensor found = sub.load(static_cast<size_t>(sub.spec().find(spec_.tensors[i].name)));
        require_equal(fmt::format("{}: {}", name, spec_.tensors[i].name),
                      slice(full_tensor(i), spec_.tensors[i], level.widths), found);
      }
      ++n;
    }
    return fmt::format("{} level files{}", n, own_found);
  }

  /// Checks the tensors that a level's file states are its own. They are not prefixes of the full model's.
  std::string check_own(const std::string& name, const Checkpoint& sub, const OwnTensors& own) const {
    size_t n_weights = 0, n_biases = 0, n_norms = 0;
    for (size_t i = 0; i < sub.spec().tensors.size(); ++i) {
      const TensorSpec& tensor = sub.spec().tensors[i];
      if (!own.may_replace(tensor) && (spec_.find(tensor.name) >= 0 || !own.may_add(tensor))) continue;
      const bool is_filler = own.is_filler(tensor);
      refuting(name + ": ", [&] { check_own_tensor(tensor, sub.load(i), is_filler); });
      const bool is_norm = tensor.shape.size() == 1 && !matrix_of(tensor.role);
      (is_norm ? n_norms : tensor.shape.size() > 1 ? n_weights : n_biases) += is_filler ? 0 : 1;
    }
    std::string found;
    for (const auto& [what, n] : {std::pair{"weights", n_weights}, {"biases", n_biases}, {"norms", n_norms}})
      if (n > 0) found += fmt::format("; {}: own {}: {} tensors, checked by hash only", name, what, n);
    return found;
  }

  std::string check_repaired_logits() const {
    double largest = 0;
    for (const Level& level : repaired_) {
      const fs::path file = model_file(level.nominal);
      const double difference = repaired_logit_difference(*full_, Checkpoint::open(file), own_tensors(file),
                                                          level, options_, compute_);
      if (!(difference <= options_.tolerance))
        refute("{}: largest difference {:.2e} of their standard deviation, tolerance {:.0e}",
               file.filename().string(), difference, options_.tolerance);
      largest = std::max(largest, difference);
    }
    return fmt::format("{} levels, largest difference {:.2e} of their standard deviation (tolerance {:.0e})",
                       repaired_.size(), largest, options_.tolerance);
  }

  std::string check_logits() const {
    // The source's own spec with the output's weights moved back. This checks weights and stated
    // hyperparameters together.
    const Permutation undo = inverse(permutation_);
    const Checkpoint before = source_.transformed([&](size_t i, const HostTensor&) {
      return permute(convert(full_tensor(i), DType::kF32), spec_.tensors[i], undo);
    });
    // A file may state a shorter context than its source, because stock graphs lack the sliding window.
    const int64_t n_tokens = std::min({options_.tokens, spec_.max_seq, full_->spec().max_seq});
    const nn::Decoder a(before, compute_), b(*full_, compute_);
    const double difference = eval::logit_difference(a, b, n_tokens, static_cast<uint64_t>(options_.seed));
    if (!(difference <= options_.tolerance))
      refute("largest difference {:.2e} of their standard deviation, tolerance {:.0e}", difference,
             options_.tolerance);
    return fmt::format("largest difference {:.2e} of their standard deviation (tolerance {:.0e})", difference,
                       options_.tolerance);
  }

  fs::path output_;
  bool artifact_;
  std::optional<Manifest> manifest_;  ///< of an artifact
  fs::path files_;                    ///< directory of the models: `output_`, or the unpacked files
  std::shared_ptr<const PlainFiles> unpacked_;
  Checkpoint source_;
  const ModelSpec& spec_;
  VerifyOptions options_;
  nn::DecoderOptions compute_;
  Permutation permutation_;
  ElasticPlan plan_;
  std::unique_ptr<Checkpoint> full_;
  std::vector<Level> repaired_;  ///< levels whose files hold repairs
  std::vector<Finding> findings_;
};

}  // namespace

std::vector<Finding> verify(const fs::path& path, const fs::path& model, const VerifyOptions& options,
                            const nn::DecoderOptions& compute) {
  fs::path output = path;
  if (fs::is_regular_file(path)) {
    output = fs::absolute(path).parent_path();
    if (path.filename() != "model.gguf" || packed_file(output) != output / "model.gguf")
      throw UsageError(
          fmt::format("{}: only an artifact's directory can be verified, or the model.gguf in it",
                      path.string()),
          "a claim about it needs the manifest.json, permutation.h5 and plan.json that lie there");
  }
  if (!is_artifact(output) && !reorder::is_reordered(output))
    throw UsageError(fmt::format("{}: neither a reordered directory nor an artifact", output.string()),
                     "give what `elastify reorder` or `elastify export` wrote");
  const TextOptions text{.data = {}, .tokens = options.tokens, .seq = options.tokens, .batch = 1};
  const nn::DecoderOptions placement = placed(Checkpoint::open(model).spec(), compute, text, options.max_ram);
  if (artifact_folders(output).empty()) return Verifier(output, model, options, placement).run();
  std::vector<Finding> findings;
  for (const auto& [name, type, manifest_sha256] : load_manifest(output).folders) {
    const std::string found = sha256_file(manifest_path(output / name));
    const bool same = found == manifest_sha256;
    findings.push_back(
        {fmt::format("{}: its manifest has the hash that is stated", name), same, found.substr(0, 12)});
    if (!same) return findings;
    for (Finding& finding : Verifier(output / name, model, options, placement).run()) {
      finding.claim = fmt::format("{}: {}", name, finding.claim);
      findings.push_back(std::move(finding));
      if (!findings.back().holds) return findings;
    }
  }
  return findings;
}

}  // namespace elastify::pipeline
