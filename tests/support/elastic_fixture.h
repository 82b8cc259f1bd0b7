#pragma once

#include <string>

#include "base/file.h"
#include "model/plan.h"
#include "model/spec.h"
#include "pipeline/config.h"
#include "support/temporary_directory.h"

namespace elastify::test {

/// A tiny model, its reordering (random order) and an artifact of it, on disk.
class ElasticFixture {
 public:
  explicit ElasticFixture(const ModelSpec& spec, DType type = DType::kF32,
                          plan::Method method = plan::Method::kUniform, uint64_t seed = 1);
  /// Uses this plan instead of making one.
  ElasticFixture(const ModelSpec& spec, const ElasticPlan& plan, DType type = DType::kF32);

  fs::path model() const { return directory_.path() / "model"; }
  fs::path reordered() const { return directory_.path() / "reordered"; }
  fs::path artifact() const { return directory_.path() / "artifact"; }
  fs::path path() const { return directory_.path(); }

 private:
  void make_artifact(DType type) const;

  TemporaryDirectory directory_;
};

}  // namespace elastify::test
