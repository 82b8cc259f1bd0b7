#include "model/families/families.h"

#include <doctest/doctest.h>

#include <map>
#include <set>

#include "base/error.h"
#include "support/tiny_model.h"

using namespace elastify;
using elastify::test::TinyVariant;

namespace {

/// The expected kind of every axis of every tensor, by role, stated independently of the code.
enum class Axis { kFixed, kQueryGroups, kKvGroups, kNeurons };

const std::map<Role, std::vector<Axis>> kAxes{
    {Role::kTokenEmbedding, {Axis::kFixed, Axis::kFixed}},
    {Role::kOutputNorm, {Axis::kFixed}},
    {Role::kOutput, {Axis::kFixed, Axis::kFixed}},
    {Role::kAttnNorm, {Axis::kFixed}},
    {Role::kQuery, {Axis::kQueryGroups, Axis::kFixed}},
    {Role::kKey, {Axis::kKvGroups, Axis::kFixed}},
    {Role::kValue, {Axis::kKvGroups, Axis::kFixed}},
    {Role::kAttnOut, {Axis::kFixed, Axis::kQueryGroups}},
    {Role::kQueryBias, {Axis::kQueryGroups}},
    {Role::kKeyBias, {Axis::kKvGroups}},
    {Role::kValueBias, {Axis::kKvGroups}},
    {Role::kAttnOutBias, {Axis::kFixed}},
    {Role::kQueryNorm, {Axis::kFixed}},
    {Role::kKeyNorm, {Axis::kFixed}},
    {Role::kFfnNorm, {Axis::kFixed}},
    {Role::kGate, {Axis::kNeurons, Axis::kFixed}},
    {Role::kUp, {Axis::kNeurons, Axis::kFixed}},
    {Role::kDown, {Axis::kFixed, Axis::kNeurons}},
    {Role::kGateBias, {Axis::kNeurons}},
    {Role::kUpBias, {Axis::kNeurons}},
    {Role::kDownBias, {Axis::kFixed}},
};

void check_axis(const ModelSpec& spec, const TensorSpec& tensor, size_t i) {
  const AxisUse& use = tensor.axes[i];
  const Axis expected = kAxes.at(tensor.role).at(i);
  if (expected == Axis::kFixed) {
    CHECK(use.space == -1);
    return;
  }
  REQUIRE(use.space >= 0);
  const AxisSpace& space = spec.spaces.at(static_cast<size_t>(use.space));
  CHECK(space.layer == tensor.layer);
  CHECK(space.kind == (expected == Axis::kNeurons ? SpaceKind::kMlp : SpaceKind::kAttention));
  CHECK(use.block * space.n_units == tensor.shape[i]);
  const std::map<Axis, int64_t> blocks{{Axis::kQueryGroups, spec.layer(0).heads_per_group * spec.head_dim},
                                       {Axis::kKvGroups, spec.head_dim},
                                       {Axis::kNeurons, 1}};
  CHECK(use.block == blocks.at(expected));
}

}  // namespace

TEST_CASE("families: every axis of every tensor of every family has a space or explicitly none") {
  std::set<std::string> seen;
  for (const TinyVariant& variant : test::tiny_variants()) {
    CAPTURE(variant.name);
    seen.insert(variant.spec.family);
    for (const TensorSpec& tensor : variant.spec.tensors) {
      CAPTURE(tensor.name);
      REQUIRE(tensor.axes.size() == tensor.shape.size());
      REQUIRE(kAxes.at(tensor.role).size() == tensor.shape.size());
      for (size_t i = 0; i < tensor.axes.size(); ++i) check_axis(variant.spec, tensor, i);
    }
  }
  CHECK(seen.size() == families().size());
}

TEST_CASE("families: names of tensors are unique in both namings") {
  for (const TinyVariant& variant : test::tiny_variants()) {
    CAPTURE(variant.name);
    std::set<std::string> names, gguf_names;
    for (const TensorSpec& tensor : variant.spec.tensors) {
      names.insert(tensor.name);
      gguf_names.insert(tensor.gguf_name);
      CHECK(tensor.name.find('{') == std::string::npos);
      CHECK(tensor.gguf_name.find('{') == std::string::npos);
      CHECK(tensor.gguf_name.size() < 64);
    }
    CHECK(names.size() == variant.spec.tensors.size());
    CHECK(gguf_names.size() == variant.spec.tensors.size());
  }
}

TEST_CASE("families: an unknown family is refused with the list of known ones") {
  CHECK_THROWS_WITH_AS(family_named("gemma2"),
                       "model family 'gemma2' is not supported; supported are llama, mistral, qwen2, qwen3",
                       Error);
}
