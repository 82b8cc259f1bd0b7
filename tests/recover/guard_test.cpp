#include "recover/guard.h"

#include "base/error.h"
#include "recover/closed_form.h"
#include "support/batches.h"
#include "support/decoders.h"
#include "support/errors.h"

using namespace elastify;
using namespace elastify::test;
using recover::HeldOutText;
using recover::Verdict;

namespace {

/// A tiny model, a level of it and text.
struct Scene {
  ModelSpec spec = make_tiny_spec("llama");
  nn::Decoder decoder{tiny_checkpoint(spec), {}};
  Widths widths = half_widths(spec);
  std::vector<at::Tensor> batches = text(1), fresh = text(100);

  std::vector<at::Tensor> text(uint64_t seed, int64_t n_sequences = 8, int64_t n_vocab = 0) const {
    std::vector<at::Tensor> result;
    for (uint64_t i = 0; i < 5; ++i)
      result.push_back(random_ids(n_sequences, 24, n_vocab > 0 ? n_vocab : spec.n_vocab, seed + i));
    return result;
  }

  static recover::ClosedFormOptions options(Compensation compensation, bool guard) {
    recover::ClosedFormOptions options;
    options.compensation = compensation;
    options.rank = 8;
    options.guard = guard;
    return options;
  }
  /// A repair that is overfitted: little text, almost no ridge.
  nn::LevelRepair overfitted(const std::vector<at::Tensor>& on) const {
    auto greedy = options(Compensation::kBaked, false);
    greedy.ridge = 1e-4;
    return recover::fit_level(decoder, on, widths, greedy);
  }

  Verdict guard(nn::LevelRepair& repair, const HeldOutText& held_out) const {
    std::vector<nn::LevelRepair> repairs{std::move(repair)};
    std::vector<Verdict> verdicts(1);
    const c10::NoGradGuard no_gradients;
    recover::guard_levels(decoder, held_out, batches, {widths}, repairs, verdicts);
    repair = std::move(repairs.front());
    return verdicts.front();
  }

  /// Divergence of the level from the full model, computed from the logits.
  double divergence(const std::vector<at::Tensor>& on, const nn::LevelRepair* repair) const {
    const c10::NoGradGuard no_gradients;
    nn::ForwardOptions level;
    level.widths = &widths;
    level.repairs = repair;
    double sum = 0;
    for (const at::Tensor& ids : on) {
      const auto predict = [&](const nn::ForwardOptions& forward) {
        return at::log_softmax(decoder.logits(decoder.hidden(ids, forward)).to(at::kDouble), -1);
      };
      const at::Tensor full = predict({}), narrow = predict(level);
      sum += (full.exp() * (full - narrow)).sum(-1).mean().item<double>();
    }
    return sum / static_cast<double>(on.size());
  }
};

bool is_nothing(const nn::LevelRepair& repair) {
  for (const nn::LayerRepair& layer : repair.layers)
    if (!layer.empty()) return false;
  return !repair.output_norm.defined();
}

}  // namespace

TEST_CASE("guard: a repair that harms on held-out text is dropped, whole") {
  const Scene scene;
  const std::vector<at::Tensor> little = scene.text(7, 1, 6);
  nn::LevelRepair repair = scene.overfitted(little);
  REQUIRE(scene.divergence(little, &repair) < scene.divergence(little, nullptr));
  REQUIRE(scene.divergence(scene.fresh, &repair) > scene.divergence(scene.fresh, nullptr));
  const Verdict verdict = scene.guard(repair, {{scene.fresh}});
  CHECK(verdict.share == 0);
  CHECK(is_nothing(repair));
  CHECK(repair.layers.size() == static_cast<size_t>(scene.spec.n_layers));
  CHECK(verdict.kept == verdict.without);
  CHECK(verdict.fitted > verdict.without);
}

TEST_CASE(
    "guard: a repair that helps stays as it is, in every form, and the divergences are those of logits") {
  const Scene scene;
  for (const char* name : {"adapter+norm", "baked", "baked+bias+norm"}) {
    CAPTURE(name);
    const auto options = Scene::options(compensation_named(name), false);
    const nn::LevelRepair fitted = recover::fit_level(scene.decoder, scene.batches, scene.widths, options);
    nn::LevelRepair kept = fitted;
    const Verdict verdict = scene.guard(kept, {{scene.fresh}});
    CHECK(verdict.share == 1);
    CHECK(verdict.kept == doctest::Approx(scene.divergence(scene.fresh, &fitted)).epsilon(1e-4));
    CHECK(verdict.without == doctest::Approx(scene.divergence(scene.fresh, nullptr)).epsilon(1e-4));
    CHECK(verdict.kept < 0.9 * verdict.without);
    for (size_t l = 0; l < fitted.layers.size(); ++l)
      for (const auto& [role, repair] : fitted.layers[l]) {
        CHECK(kept.layers[l].at(role).a.is_same(repair.a));
        CHECK(kept.layers[l].at(role).weight.is_same(repair.weight));
      }
  }
}

TEST_CASE("guard: a repair that goes twice too far is shrunk, every part of it") {
  const Scene scene;
  for (const char* name : {"adapter", "baked+bias"}) {
    CAPTURE(name);
    const auto options = Scene::options(compensation_named(name), false);
    const nn::LevelRepair fitted = recover::fit_level(scene.decoder, scene.batches, scene.widths, options);
    nn::LevelRepair twice = fitted;
    for (size_t l = 0; l < twice.layers.size(); ++l)
      for (auto& [role, repair] : twice.layers[l]) {
        if (repair.b.defined()) repair.b = 2 * repair.b;
        if (repair.bias.defined()) repair.bias = 2 * repair.bias;
        const Site site = role == Role::kDown ? Site::kFfnDown : Site::kAttnOut;
        if (repair.weight.defined())
          repair.weight =
              2 * repair.weight - scene.decoder.projection(static_cast<int64_t>(l), site, scene.widths);
      }
    const Verdict verdict = scene.guard(twice, {{scene.fresh}});
    const double share = verdict.share;
    CHECK(share < 1);
    CHECK(share > 0);
    CHECK(verdict.kept < verdict.fitted);
    CHECK(verdict.kept < verdict.without);
    for (size_t l = 0; l < twice.layers.size(); ++l)
      for (const auto& [role, repair] : twice.layers[l]) {
        const nn::TensorRepair& once = fitted.layers[l].at(role);
        if (once.b.defined()) CHECK(relative_difference(repair.b, once.b * (2 * share)) < 1e-5);
        if (once.weight.defined()) {
          const Site site = role == Role::kDown ? Site::kFfnDown : Site::kAttnOut;
          const at::Tensor now = scene.decoder.projection(static_cast<int64_t>(l), site, scene.widths);
          CHECK(relative_difference(repair.weight, at::lerp(now, once.weight, 2 * share)) < 1e-4);
        }
        if (once.bias.defined()) CHECK(relative_difference(repair.bias, once.bias * (2 * share)) < 1e-5);
      }
  }
}

TEST_CASE("guard: what helps on one source and harms on another is dropped") {
  const Scene scene;
  const std::vector<at::Tensor> little = scene.text(7, 1, 6);
  const nn::LevelRepair fitted = scene.overfitted(little);
  nn::LevelRepair on_its_own = fitted, on_both = fitted;
  CHECK(scene.guard(on_its_own, {{little}}).share > 0);
  CHECK(scene.guard(on_both, {{little, scene.fresh}}).share == 0);
}

TEST_CASE("guard: one sequence is too little to keep a repair by") {
  const Scene scene;
  auto fitted = recover::fit_level(scene.decoder, scene.batches, scene.widths,
                                   Scene::options(Compensation::kBaked, false));
  CHECK(scene.guard(fitted, {{{scene.fresh.front().narrow(0, 0, 1)}}}).share == 0);
}

TEST_CASE(
    "guard: where the repairs of the layers are dropped, the level may keep an output norm of its own") {
  const Scene scene;
  nn::LevelRepair repair = scene.overfitted(scene.text(7, 1, 6));
  repair.output_norm = scene.decoder.output_norm() * 2;
  const Verdict verdict = scene.guard(repair, {{scene.fresh}});
  CHECK(verdict.share == 0);
  CHECK(verdict.keeps_norm);
  CHECK(repair.output_norm.defined());
  for (const nn::LayerRepair& layer : repair.layers) CHECK(layer.empty());
  CHECK(verdict.kept < verdict.without);
  CHECK(verdict.kept == doctest::Approx(scene.divergence(scene.fresh, &repair)).epsilon(1e-4));
}

TEST_CASE("guard: fits that are guarded drop what harms, count what they shrink, and need held-out text") {
  const Scene scene;
  auto options = Scene::options(Compensation::kBaked, true);
  options.ridge = 1e-4;
  const std::vector<at::Tensor> little = scene.text(7, 1, 6);
  std::vector<Verdict> verdicts;
  const auto dropped =
      recover::fit_levels(scene.decoder, little, {scene.widths}, options, {{scene.fresh}}, &verdicts);
  CHECK(is_nothing(dropped.front()));
  REQUIRE(verdicts.size() == 1);
  CHECK(verdicts[0].n_matrices == 2 * scene.spec.n_layers);
  CHECK(verdicts[0].n_shrunk + verdicts[0].n_dropped > 0);
  CHECK(message_of([&] {
          recover::fit_levels(scene.decoder, little, {scene.widths}, options);
        }).find("held-out text, and none is given") != std::string::npos);
}

TEST_CASE("guard: off, held-out text changes no bit of a fit") {
  const Scene scene;
  const auto options = Scene::options(compensation_named("adapter+bias+norm"), false);
  const auto plain = recover::fit_levels(scene.decoder, scene.batches, {scene.widths}, options);
  const auto given =
      recover::fit_levels(scene.decoder, scene.batches, {scene.widths}, options, {{scene.fresh}});
  CHECK(at::equal(plain[0].output_norm, given[0].output_norm));
  for (size_t l = 0; l < plain[0].layers.size(); ++l)
    for (const auto& [role, repair] : plain[0].layers[l]) {
      CHECK(at::equal(repair.a, given[0].layers[l].at(role).a));
      CHECK(at::equal(repair.b, given[0].layers[l].at(role).b));
      CHECK(at::equal(repair.bias, given[0].layers[l].at(role).bias));
    }
}
