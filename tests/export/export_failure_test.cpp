#include <doctest/doctest.h>

#include <csignal>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>

#include "base/progress.h"
#include "support/errors.h"
#include "support/exported_model.h"
#include "support/tensors.h"

namespace elastify {
namespace {

using exporter::export_model;
using test::blocks_spec;
using test::uneven_plan;
using test::uniform_plan;
using test::wide_spec;
using Json = nlohmann::ordered_json;
using Model = test::ExportedModel;

}  // namespace

TEST_CASE("export: a failure leaves nothing behind") {
  const ModelSpec spec = test::make_tiny_spec("llama");
  const Model model(spec);
  const fs::path target = model.make("artifact");
  const Checkpoint broken = model.open().transformed([](size_t index, HostTensor tensor) {
    if (index == 9) fail("unreadable");
    return tensor;
  });
  for (const bool packed : {false, true}) {
    CAPTURE(packed);
    const auto export_it = [&] {
      export_model(broken, nullptr, identity_permutation(spec), uniform_plan(spec, 8),
                   {.levels = {}, .packed = packed}, Json::object(), target);
    };
    CHECK(test::message_of(export_it) == spec.tensors[9].name + ": unreadable");
    CHECK(fs::is_empty(target));
  }
}

TEST_CASE("export: an interrupt leaves nothing behind") {
  const ModelSpec spec = test::make_tiny_spec("llama");
  const Model model(spec);
  const fs::path target = model.make("artifact");
  const Checkpoint interrupted = model.open().transformed([](size_t index, HostTensor tensor) {
    if (index == 9) throw Interrupted();
    return tensor;
  });
  for (const bool packed : {false, true}) {
    CAPTURE(packed);
    CHECK_THROWS_AS(export_model(interrupted, nullptr, identity_permutation(spec), uniform_plan(spec, 8),
                                 {.levels = {}, .packed = packed}, Json::object(), target),
                    Interrupted);
    CHECK(fs::is_empty(target));
  }
}

TEST_CASE("export: in a process of its own, a signal amid the tensors" * doctest::skip()) {
  install_interrupt_handler();
  const ModelSpec spec = test::make_tiny_spec("llama");
  const Model model(spec);
  const fs::path target = model.make("artifact");
  const Checkpoint interrupted = model.open().transformed([](size_t index, HostTensor tensor) {
    if (index == 9) std::raise(SIGINT), std::raise(SIGINT);  // timeout(1) sends its signal twice
    return tensor;
  });
  CHECK_THROWS_AS(export_model(interrupted, nullptr, identity_permutation(spec), uniform_plan(spec, 8), {},
                               Json::object(), target),
                  Interrupted);
  CHECK(fs::is_empty(target));
}

TEST_CASE("export: so does a signal, wherever it comes") {
  const std::string self = fs::read_symlink("/proc/self/exe").string();
  CHECK(std::system((self + " --no-skip -tc='export: in a process of its own*' >/dev/null 2>&1").c_str()) ==
        0);
}

TEST_CASE("export: values that the type cannot hold are refused by name, and nothing is left behind") {
  const ModelSpec spec = wide_spec("llama");
  const Model model(spec);
  const fs::path target = model.make("artifact");
  const auto index = static_cast<size_t>(spec.find(Role::kDown, 1));
  const Checkpoint infinite = model.open().transformed([&](size_t i, const HostTensor& tensor) {
    auto values = test::values_of(tensor);
    if (i == index) values[7] = std::numeric_limits<float>::infinity();
    return test::tensor_of(values, tensor.shape);
  });
  const auto export_it = [&] {
    export_model(infinite, nullptr, identity_permutation(spec), uniform_plan(spec, 32, {0.8}),
                 {.types = {DType::kQ8_0}, .levels = {}}, Json::object(), target);
  };
  CHECK(test::message_of(export_it).starts_with(spec.tensors[index].name + ": "));
  CHECK(fs::is_empty(target));
}

TEST_CASE("export: q8_0 is refused before anything is written where rows are not whole blocks") {
  const ModelSpec spec = wide_spec("llama");
  const auto refusal = [](const ModelSpec& of, const ElasticPlan& plan) {
    const Model model(of);
    const fs::path target = model.make("artifact");
    const auto export_it = [&] { model.to(target, plan, {.types = {DType::kQ8_0}, .levels = {}}); };
    const auto result = std::pair(test::message_of(export_it), test::hint_of(export_it));
    CHECK(fs::is_empty(target));
    return result;
  };
  ElasticPlan plan = uneven_plan(spec, 8);
  plan.levels[0].widths[spec.mlp_space(0)] = 40;
  plan.levels[0] = make_level(spec, 0.5, plan.levels[0].widths);
  plan.levels[1] = make_level(spec, 0.75, full_widths(spec));
  auto [message, hint] = refusal(spec, plan);
  CHECK(message ==
        "level-050: blk.0.ffn_down.weight: rows of 40 elements are not whole blocks of 32, as q8_0 needs");
  CHECK(hint ==
        "the nearest widths are 32 and 64; plan with --grid 32, or export with --type f16, which takes any "
        "width");

  const ModelSpec odd = test::make_tiny_spec("llama", {.d_ff = 172});
  std::tie(message, hint) = refusal(odd, uniform_plan(odd, 32, {0.8}));
  CHECK(message ==
        "level-100: blk.0.ffn_down.weight: rows of 172 elements are not whole blocks of 32, as q8_0 needs");
  CHECK(hint == "export with --type f16, which takes any width");

  const ModelSpec heads =
      test::make_tiny_spec("llama", {.head_dim = 8, .n_kv_heads = 4, .heads_per_group = 2});
  std::tie(message, hint) = refusal(heads, uneven_plan(heads, 32));
  CHECK(message ==
        "level-050: blk.0.attn_output.weight: rows of 16 elements are not whole blocks of 32, as q8_0 needs");
  CHECK(hint == "the nearest width is 2; export with --type f16, which takes any width");
}

TEST_CASE("export: foreign plans and permutations are refused") {
  const ModelSpec spec = test::make_tiny_spec("llama"), other = test::make_tiny_spec("llama", {.d_ff = 80});
  const Model model(spec);
  const fs::path target = model.make("artifact");
  CHECK(test::message_of([&] { model.to(target, uniform_plan(other, 8), {}); }) ==
        "the plan belongs to another model");
  const auto foreign = [&] {
    export_model(model.open(), nullptr, identity_permutation(other), uniform_plan(spec, 8), {},
                 Json::object(), target);
  };
  CHECK(test::message_of(foreign).find("expected 64 units, got 80") != std::string::npos);
  const ModelSpec untied = test::make_tiny_spec("qwen3", {.head_dim = 16});
  const Model qwen(untied);
  CHECK(test::message_of([&] {
          qwen.to(target, uneven_plan(untied, 8), {});
        }).starts_with("level-075: stock llama.cpp runs qwen3"));
  CHECK(fs::is_empty(target));
}

TEST_CASE("export: K-quants are refused by name where 256 does not divide a row, with what would do") {
  const ModelSpec spec = blocks_spec();
  const Model model(spec);
  const fs::path target = model.make("artifact");
  const auto export_it = [&] {
    model.to(target, uneven_plan(spec, 32), {.types = exporter::weight_types_named("q4_k_m"), .levels = {}});
  };
  CHECK(test::message_of(export_it) ==
        "level-075: blk.0.ffn_down.weight: rows of 480 elements are not whole blocks of 256, as q4_k needs");
  CHECK(test::hint_of(export_it) ==
        "the nearest widths are 256 and 512; plan with --grid 256, or export with --type q8_0, q5_1, q5_0, "
        "q4_1 "
        "or q4_0, whose blocks have 32");
  CHECK(fs::is_empty(target));
}

}  // namespace elastify
