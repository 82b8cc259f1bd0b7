#include "profile/collect.h"

#include <torch/torch.h>

#include <chrono>
#include <numeric>

#include "base/error.h"
#include "base/progress.h"
#include "profile/tensor_slots.h"

namespace elastify::profile {
namespace {

int64_t count_tokens(const std::vector<at::Tensor>& batches) {
  return std::accumulate(batches.begin(), batches.end(), int64_t{0},
                         [](int64_t n, const at::Tensor& ids) { return n + ids.numel(); });
}

double nll_of(const nn::Decoder& decoder, const at::Tensor& last_output, const at::Tensor& ids) {
  return decoder.token_nll(decoder.final_norm(last_output), ids).sum(at::kDouble).item<double>();
}

/// A tensor with the shape and type of a batch's residual stream. Its values do not matter.
at::Tensor like_residual(const nn::Decoder& decoder, const at::Tensor& ids) {
  return at::empty({1}, at::TensorOptions().dtype(decoder.dtype()).device(decoder.device()))
      .expand({ids.size(0), ids.size(1), decoder.spec().d_model});
}

int64_t residual_bytes(const nn::Decoder& decoder, const at::Tensor& ids) {
  return ids.numel() * decoder.spec().d_model * static_cast<int64_t>(c10::elementSize(decoder.dtype()));
}

/// \throws Error  if the disk has less free space than the files need
void require_space(const Unfinished& unfinished, int64_t bytes) {
  std::error_code error;
  const auto space = fs::space(unfinished.path(""), error);
  if (error || space.available >= static_cast<uintmax_t>(bytes)) return;
  throw Error(fmt::format("{}: {:.1f} GB are needed for activations between the layers, {:.1f} GB are free",
                          unfinished.path("").string(), static_cast<double>(bytes) / 1e9,
                          static_cast<double>(space.available) / 1e9),
              "use fewer --tokens, free some space, or write the profile to another disk");
}

}  // namespace

double collect_resident(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                        const Wanted& wanted, const Unfinished& unfinished, double save_every,
                        std::vector<LayerStatistics>& layers) {
  using Clock = std::chrono::steady_clock;
  const c10::NoGradGuard no_gradients;
  const int64_t n_layers = decoder.spec().n_layers;
  std::vector<LayerStatistics*> pointers;
  layers.clear();
  for (int64_t l = 0; l < n_layers; ++l) layers.push_back(LayerStatistics::zeros(decoder.spec(), l, wanted));
  for (LayerStatistics& layer : layers) pointers.push_back(&layer);

  size_t n_done = 0;
  double nll = 0;
  if (unfinished.has("batches")) {
    const auto numbers = unfinished.load("batches", pointers);
    n_done = static_cast<size_t>(numbers.at("n_done").at(0));
    nll = numbers.at("nll").at(0);
  }
  const auto save = [&] {
    unfinished.save("batches", pointers, {{"n_done", {static_cast<double>(n_done)}}, {"nll", {nll}}});
  };
  Progress progress("profile", count_tokens(batches), "tokens");
  progress.skip(count_tokens({batches.begin(), batches.begin() + static_cast<int64_t>(n_done)}));
  auto saved = Clock::now();
  try {
    while (n_done < batches.size()) {
      const at::Tensor& ids = batches[n_done];
      std::vector<nn::LayerTrace> traces;
      at::Tensor x = decoder.embed(ids);
      for (int64_t l = 0; l < n_layers; ++l) {
        nn::LayerTrace trace = decoder.trace(l, x);
        layers[static_cast<size_t>(l)].add(decoder, l, trace);
        x = trace.output;
        if (wanted.any_gradient()) traces.push_back(std::move(trace));
      }
      if (wanted.any_gradient()) {
        const auto loss = decoder.loss_and_gradient(x, ids);
        nll += loss.nll.sum().item<double>();
        at::Tensor gradient = loss.gradient;
        for (int64_t l = n_layers - 1; l >= 0; --l) {
          gradient =
              layers[static_cast<size_t>(l)].add_backward(decoder, l, std::move(traces.back()), gradient);
          traces.pop_back();
        }
      } else {
        nll += nll_of(decoder, x, ids);
      }
      ++n_done;
      if (std::chrono::duration<double>(Clock::now() - saved).count() >= save_every) {
        save();
        saved = Clock::now();
      }
      progress.advance(ids.numel());
    }
  } catch (const Interrupted&) {
    save();
    throw;
  }
  return nll;
}

double collect_streamed(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                        const Wanted& wanted, const Unfinished& unfinished) {
  const c10::NoGradGuard no_gradients;
  const ModelSpec& spec = decoder.spec();
  const int64_t n_layers = spec.n_layers, n_batches = static_cast<int64_t>(batches.size());
  if (n_batches == 0) return 0;
  const int64_t slot_bytes = residual_bytes(decoder, batches[0]);
  // The backward pass needs the inputs of every layer. Without it, room for two layers is enough.
  const int64_t n_levels = wanted.any_gradient() ? n_layers + 1 : 2;
  if (!unfinished.has("forward-0"))
    require_space(unfinished, slot_bytes * n_batches * (n_levels + (wanted.any_gradient() ? 2 : 0)));
  TensorSlots hidden(unfinished.path("hidden"), slot_bytes);
  TensorSlots gradients(unfinished.path("gradients"), slot_bytes);
  const auto hidden_slot = [&](int64_t level, int64_t batch) { return level % n_levels * n_batches + batch; };
  const auto gradient_slot = [&](int64_t level, int64_t batch) { return level % 2 * n_batches + batch; };
  const auto batch_at = [&](int64_t b) -> const at::Tensor& { return batches[static_cast<size_t>(b)]; };

  const int64_t n_tokens = count_tokens(batches);
  Progress progress("profile, streamed", n_tokens * n_layers * (wanted.any_gradient() ? 2 : 1),
                    "layer-tokens");
  for (int64_t l = 0; l < n_layers; ++l) {
    const std::string part = fmt::format("forward-{}", l);
    if (unfinished.has(part)) {
      progress.skip(n_tokens);
      continue;
    }
    LayerStatistics sums = LayerStatistics::zeros(spec, l, wanted.forward());
    for (int64_t b = 0; b < n_batches; ++b) {
      const at::Tensor& ids = batch_at(b);
      if (l == 0) hidden.put(hidden_slot(0, b), decoder.embed(ids));
      const at::Tensor x = hidden.get(hidden_slot(l, b), like_residual(decoder, ids));
      const nn::LayerTrace trace = decoder.trace(l, x);
      sums.add(decoder, l, trace);
      hidden.put(hidden_slot(l + 1, b), trace.output);
      progress.advance(ids.numel());
    }
    LayerStatistics* const pointer = &sums;
    unfinished.save(part, {&pointer, 1}, {{"n_done", {static_cast<double>(n_batches)}}});
  }

  double nll = 0;
  if (unfinished.has("loss")) {
    nll = unfinished.load("loss", {}).at("nll").at(0);
  } else {
    for (int64_t b = 0; b < n_batches; ++b) {
      const at::Tensor x = hidden.get(hidden_slot(n_layers, b), like_residual(decoder, batch_at(b)));
      if (wanted.any_gradient()) {
        const auto loss = decoder.loss_and_gradient(x, batch_at(b));
        nll += loss.nll.sum().item<double>();
        gradients.put(gradient_slot(n_layers, b), loss.gradient);
      } else {
        nll += nll_of(decoder, x, batch_at(b));
      }
      progress.advance(0);
    }
    unfinished.save("loss", {}, {{"nll", {nll}}});
  }
  if (!wanted.any_gradient()) return nll;

  for (int64_t l = n_layers - 1; l >= 0; --l) {
    const std::string part = fmt::format("backward-{}", l);
    if (unfinished.has(part)) {
      progress.skip(n_tokens);
      continue;
    }
    LayerStatistics sums = LayerStatistics::zeros(spec, l, wanted.backward());
    for (int64_t b = 0; b < n_batches; ++b) {
      const at::Tensor like = like_residual(decoder, batch_at(b));
      const at::Tensor x = hidden.get(hidden_slot(l, b), like);
      const at::Tensor gradient = gradients.get(gradient_slot(l + 1, b), like);
      gradients.put(gradient_slot(l, b), sums.add_backward(decoder, l, decoder.trace(l, x), gradient));
      progress.advance(batch_at(b).numel());
    }
    LayerStatistics* const pointer = &sums;
    unfinished.save(part, {&pointer, 1}, {{"n_done", {static_cast<double>(n_batches)}}});
  }
  return nll;
}

LayerStatistics load_streamed(const ModelSpec& spec, int64_t layer, const Wanted& wanted,
                              const Unfinished& unfinished) {
  LayerStatistics sums = LayerStatistics::zeros(spec, layer, wanted);
  LayerStatistics* const pointer = &sums;
  unfinished.load(fmt::format("forward-{}", layer), {&pointer, 1});
  if (wanted.any_gradient()) unfinished.load(fmt::format("backward-{}", layer), {&pointer, 1});
  return sums;
}

RemovalSums measure_removal(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                            const Unfinished& unfinished) {
  const c10::NoGradGuard no_gradients;
  const int64_t n_layers = decoder.spec().n_layers;
  RemovalSums sums{0, std::vector<double>(static_cast<size_t>(n_layers), 0)};
  if (unfinished.has("removal")) {
    const auto numbers = unfinished.load("removal", {});
    return {numbers.at("nll").at(0), numbers.at("without")};
  }
  // Stream v < n_layers is the model without layer v; stream n_layers is the whole model. All of them go
  // through `group` layer by layer.
  Progress progress("layer removal", count_tokens(batches) * n_layers, "tokens");
  const auto measure = [&](const std::vector<at::Tensor>& group, TensorSlots& streams) {
    const auto n_batches = static_cast<int64_t>(group.size());
    const auto slot = [&](int64_t variant, int64_t batch) { return variant * n_batches + batch; };
    for (int64_t l = 0; l < n_layers; ++l)
      for (int64_t b = 0; b < n_batches; ++b) {
        const at::Tensor& ids = group[static_cast<size_t>(b)];
        const at::Tensor like = like_residual(decoder, ids);
        const at::Tensor whole = l == 0 ? decoder.embed(ids) : streams.get(slot(n_layers, b), like);
        for (int64_t v = 0; v < l; ++v)
          streams.put(slot(v, b), decoder.layer(l, streams.get(slot(v, b), like)));
        streams.put(slot(l, b), whole);
        streams.put(slot(n_layers, b), decoder.layer(l, whole));
        progress.advance(ids.numel());
      }
    for (int64_t b = 0; b < n_batches; ++b) {
      const at::Tensor& ids = group[static_cast<size_t>(b)];
      const at::Tensor like = like_residual(decoder, ids);
      sums.nll += nll_of(decoder, streams.get(slot(n_layers, b), like), ids);
      for (int64_t v = 0; v < n_layers; ++v)
        sums.without[static_cast<size_t>(v)] += nll_of(decoder, streams.get(slot(v, b), like), ids);
    }
  };
  if (decoder.is_streamed() && !batches.empty()) {
    const int64_t slot_bytes = residual_bytes(decoder, batches[0]);
    require_space(unfinished, slot_bytes * static_cast<int64_t>(batches.size()) * (n_layers + 1));
    TensorSlots streams(unfinished.path("streams"), slot_bytes);
    measure(batches, streams);
    std::error_code ignored;
    fs::remove(unfinished.path("streams"), ignored);
  } else {
    for (const at::Tensor& ids : batches) {
      TensorSlots streams;
      measure({ids}, streams);
    }
  }
  unfinished.save("removal", {}, {{"nll", {sums.nll}}, {"without", sums.without}});
  return sums;
}

}  // namespace elastify::profile
