#include "base/error.h"
#include "cli/torch/work.h"
#include "eval/evaluate.h"
#include "nn/decoder.h"
#include "nn/device.h"
#include "nn/system.h"
#include "pipeline/artifact.h"
#include "pipeline/fit_to_model.h"
#include "pipeline/order.h"
#include "pipeline/repairs.h"

namespace elastify::cli {
namespace {

/// One model at one level, ready to be measured.
struct Subject {
  const nn::Decoder& decoder;
  const Widths* widths;            ///< null: the full model
  const nn::LevelRepair* repairs;  ///< null: none
};

void add_task(Report& report, const pipeline::OpenModel& model, const eval::EvalOptions& options,
              const Subject& subject) {
  const auto tokenizer = pipeline::tokenizer_of(model);
  if (options.tasks.size() != 1)
    throw UsageError(fmt::format("task: {} files are given", options.tasks.size()), "give one --task FILE");
  std::vector<TaskItem> items = load_task(options.tasks.front());
  if (options.items > 0) items.resize(std::min(items.size(), static_cast<size_t>(options.items)));
  const auto result =
      eval::multiple_choice(subject.decoder, *tokenizer, items, subject.widths, subject.repairs);
  report.json["accuracy"] = result.accuracy;
  report.json["accuracy_norm"] = result.accuracy_norm;
  report.json["items"] = result.items;
  report.text = fmt::format("accuracy {:.4f}, per character {:.4f}, {} items\n", result.accuracy,
                            result.accuracy_norm, result.items);
}

/// Perplexity of a random order of the units at the same widths.
void add_baseline(Report& report, const pipeline::OpenModel& model, const pipeline::RunConfig& config,
                  const TokenBatches& batches, const Widths& widths) {
  const Permutation order = pipeline::rank(model.checkpoint, nullptr, nullptr, Metric::kRandom, config.seed);
  const nn::Decoder decoder(pipeline::arranged(model.checkpoint, order), config.compute);
  const auto result = eval::perplexity(decoder, batches, &widths, config.eval.text.batch);
  report.json["perplexity_random_order"] = result.perplexity;
  report.text += fmt::format("random order: perplexity {:.4f}\n", result.perplexity);
}

}  // namespace

Report work(const Invocation& call, const EvalCommand& command) {
  pipeline::RunConfig config = call.config;
  nn::set_threads(static_cast<int>(config.threads));
  nn::warn_if_blas_is_slow();
  const pipeline::OpenModel model = pipeline::open_model(command.path, config.tokenizer, command.level);
  const ModelSpec& spec = model.checkpoint.spec();
  pipeline::fit_to_model(config, spec);
  const eval::EvalOptions& options = config.eval;
  const Level* level =
      model.plan && command.level && *command.level < 1 ? &find_level(*model.plan, *command.level) : nullptr;
  const nn::Decoder decoder(model.checkpoint,
                            pipeline::placed(spec, config.compute, options.text, config.max_ram));
  const pipeline::AppliedRepairs repairs =
      pipeline::repairs_of(command.path, command.level, model, decoder, command.repairs);
  const Subject subject{decoder, level != nullptr ? &level->widths : nullptr, repairs.pointer()};

  Report report;
  report.json["path"] = command.path.string();
  const auto stated = pipeline::stated_level(command.path);
  const double nominal = stated ? stated->nominal : command.level.value_or(1.0);
  report.json["level"] = nominal;
  report.json["true_ratio"] = pipeline::true_ratio(command.path, command.level);
  report.json["repairs"] = name_of(repairs.parts);
  if (!options.tasks.empty()) {
    add_task(report, model, options, subject);
    return report;
  }
  const TokenBatches batches = pipeline::load_batches(model, decoder, options.text, false);
  const auto result =
      eval::perplexity(decoder, batches, subject.widths, options.text.batch, nullptr, subject.repairs);
  with_context(command.path.string(), [&] { eval::require_finite(result); });
  report.json["perplexity"] = result.perplexity;
  report.json["bits_per_byte"] = result.bits_per_byte;
  report.json["nll"] = result.nll;
  report.json["tokens"] = result.tokens;
  report.json["tokens_per_second"] = result.tokens_per_second;
  report.text = fmt::format(
      "perplexity {:.4f}, {:.4f} bits per byte, {} tokens, {:.0f} tokens/s, level {}, true ratio {:.4f}, "
      "repairs: {}\n",
      result.perplexity, result.bits_per_byte, result.tokens, result.tokens_per_second, nominal,
      report.json["true_ratio"].get<double>(), name_of(repairs.parts));
  if (options.baseline) {
    if (level == nullptr)
      throw UsageError("baseline: a random order is compared at the widths of a level",
                       "give a reordered directory and --level");
    add_baseline(report, model, config, batches, level->widths);
  }
  return report;
}

}  // namespace elastify::cli
