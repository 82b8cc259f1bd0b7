#include "base/error.h"
#include "cli/commands.h"
#include "eval/evaluate.h"
#include "nn/decoder.h"
#include "nn/device.h"
#include "nn/system.h"
#include "pipeline/repairs.h"
#include "pipeline/steps.h"

namespace elastify::cli {

Report run_eval(const Globals& globals, const EvalCommand& command) {
  nn::set_threads(globals.threads);
  nn::warn_if_blas_is_slow();
  const pipeline::OpenModel model = pipeline::open_model(command.path, globals.tokenizer, command.level);
  const Level* level =
      model.plan && command.level && *command.level < 1 ? &find_level(*model.plan, *command.level) : nullptr;
  const Widths* widths = level != nullptr ? &level->widths : nullptr;
  const nn::Decoder decoder(model.checkpoint, globals.compute);
  const pipeline::AppliedRepairs repairs =
      pipeline::repairs_of(command.path, command.level, model, decoder, command.repairs);

  Report report;
  report.json["path"] = command.path.string();
  report.json["level"] = command.level.value_or(1.0);
  report.json["true_ratio"] = pipeline::true_ratio(command.path, command.level);
  report.json["repairs"] = name_of(repairs.parts);
  if (!command.task.empty()) {
    if (!model.vocabulary)
      throw UsageError(fmt::format("{}: the model carries no tokenizer", command.path.string()),
                       "name one with --tokenizer FILE");
    const auto tokenizer = make_tokenizer(*model.vocabulary);
    const auto result =
        eval::multiple_choice(decoder, *tokenizer, load_task(command.task), widths, repairs.pointer());
    report.json["accuracy"] = result.accuracy;
    report.json["accuracy_norm"] = result.accuracy_norm;
    report.json["items"] = result.items;
    report.text = fmt::format("accuracy {:.4f}, per character {:.4f}, {} items\n", result.accuracy,
                              result.accuracy_norm, result.items);
    return report;
  }
  const auto& options = command.options;
  const TokenBatches batches =
      pipeline::load_batches(model, decoder, options.data, options.seq, options.tokens, std::nullopt);
  const auto result = eval::perplexity(decoder, batches, widths, options.batch, nullptr, repairs.pointer());
  report.json["perplexity"] = result.perplexity;
  report.json["bits_per_byte"] = result.bits_per_byte;
  report.json["nll"] = result.nll;
  report.json["tokens"] = result.tokens;
  report.json["tokens_per_second"] = result.tokens_per_second;
  report.text = fmt::format(
      "perplexity {:.4f}, {:.4f} bits per byte, {} tokens, {:.0f} tokens/s, level {}, true ratio {:.4f}, "
      "repairs: {}\n",
      result.perplexity, result.bits_per_byte, result.tokens, result.tokens_per_second,
      command.level.value_or(1.0), report.json["true_ratio"].get<double>(), name_of(repairs.parts));
  return report;
}

}  // namespace elastify::cli
